"""What a plan depends on, as one key: as long as it is the same, nothing that a run is given is looked at again."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from miniplm.config.run import RunConfig, config_as_dict
from miniplm.errors import ConfigError, reading_users_file
from miniplm.models.architectures import locate_config
from miniplm.models.files import locate_model
from miniplm.models.presets import PRESETS
from miniplm.storage.file_facts import is_settled
from miniplm.storage.root import digest_content, identify_file
from miniplm.tokenizers.folders import locate_tokenizer

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "lm_eval", "wandb")


def make_key(config: RunConfig, emulated: bool = False) -> tuple[str, bool]:
    """A digest of all that a plan is made of, and whether no file of it was written to just now, and may be again unseen."""
    content = {name: value for name, value in config_as_dict(config).items() if name != "selection"}
    places, may_be_kept = [os.getcwd()], True
    for folder in _list_folders(config):
        with reading_users_file(folder, "cannot be read", "check its permissions", ConfigError):
            files = _list_files(folder)
            places += map(identify_file, files)
            may_be_kept &= all(map(is_settled, files))
    key = digest_content([content, places, emulated, _describe_program(), _describe_machine(config.planning_device)], length=32)
    return key, may_be_kept


def _list_folders(config: RunConfig) -> Iterator[Path]:
    """Where the models, tokenizers and tasks lie that a configuration names."""
    yield locate_tokenizer(config.corpus.tokenizer)
    if config.teacher.model is not None:
        yield locate_model(config.teacher.model, config.teacher.revision)
    if config.reference.model is not None:
        yield locate_model(config.reference.model, config.reference.revision)
    for student in config.students:
        if student.tokenizer is not None:
            yield locate_tokenizer(student.tokenizer)
    for export in config.exports:
        if export.tokenizer is not None:
            yield locate_tokenizer(export.tokenizer)
    architectures = [config.reference.architecture, *(student.architecture for student in config.students)]
    for architecture in architectures:
        if architecture is not None and architecture not in PRESETS:
            yield locate_config(architecture)
    if config.evaluation.task_folder is not None:
        yield Path(config.evaluation.task_folder).expanduser()


def _list_files(folder: Path) -> list[Path]:
    """A file itself; those in a folder and in its folders, which is as deep as models, tokenizers and task files go."""
    return sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()) or [folder]


def _describe_program() -> list[str]:
    """The code of this package as its files are, and the packages that a plan depends on."""
    own = [identify_file(path) for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(name)
    return own + versions


def _describe_machine(device: str) -> list[str]:
    """What the configured device is on this machine; torch is asked only where there are GPUs that it may take or not."""
    machine = [sys.platform, socket.gethostname()]
    has_gpus = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
    if has_gpus and device != "cpu":
        import torch

        machine.append(f"{torch.cuda.device_count()} GPUs")
    return machine

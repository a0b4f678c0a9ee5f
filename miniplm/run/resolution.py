"""The plan of a configuration: found where it is kept and still holds, else made.

It holds as long as its key is the same, which is made of all that a plan depends on: nothing that a run is given is looked at again then.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from miniplm.config.run import RunConfig, config_as_dict
from miniplm.errors import ConfigError, reading_users_file
from miniplm.models.locations import locate_config, locate_model, locate_tokenizer
from miniplm.models.presets import PRESETS
from miniplm.run.plan import RunPlan, find_plan, save_plan
from miniplm.storage.file_facts import is_settled
from miniplm.storage.root import Storage, digest_content, identify_file

if TYPE_CHECKING:
    from miniplm.run.pinning import WorkerDescription

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "lm_eval", "wandb")


def resolve(config: RunConfig, *, emulated: bool = False, checks: bool = True) -> RunPlan:
    """The plan of a configuration: the one that is kept, where it still holds, else made anew and kept.

    With `checks` everything that a run is given is seen to be usable; without, as for a look at a run, nothing is kept.
    `emulated` allows a dtype that the device has not, for a calibration.
    Raises what `check_inputs` raises, and where a given model or tokenizer is not there.
    """
    storage = Storage(config.storage)
    key, may_be_kept = make_key(config, emulated)
    plan = _plans.get(key) or find_plan(storage, config.name)
    if plan is not None and (plan.key == key or key in _plans):
        # How sequences are selected decides nothing of what was looked at.
        plan = plan.model_copy(
            update={"selection": config.selection, "config": config_as_dict(config), "text_id": None, "target_id": None}
        )
        if not checks:
            return plan.model_copy(update={"key": ""})  # what is learned of it is not kept either
        storage.check_writable()
        if config.selection.has_expressions:
            from miniplm.selection.steering import check_rule

            check_rule(config.selection)
        _plans[key] = plan
        return plan
    from miniplm.run.planning import make_plan

    is_kept = checks and may_be_kept and not emulated
    plan = make_plan(config, storage, key if is_kept else "", emulated, checks)
    if checks:
        _plans[key] = plan
    if is_kept:
        save_plan(storage, plan)
    return plan


def pin_plan(storage: Storage, plan: RunPlan, worker: WorkerDescription) -> RunPlan:
    """The plan with its dtypes as the workers resolve them, of whom one described itself; no other field is looked at again."""
    from miniplm.run.pinning import pin_to
    from miniplm.run.planning import identify_scorers

    pinned = pin_to(plan, worker)
    config = RunConfig.model_construct(**{name: getattr(pinned, name) for name in RunConfig.model_fields})
    key, may_be_kept = make_key(config)
    # What was named with other dtypes has other ids.
    changes = {"key": key if may_be_kept else "", "trainings": {}, "config": config_as_dict(config)}
    plan = identify_scorers(pinned.model_copy(update=changes), storage)
    save_plan(storage, plan)
    return plan


# Those that this process has made or found, by their keys.
_plans: dict[str, RunPlan] = {}


def make_key(config: RunConfig, emulated: bool = False) -> tuple[str, bool]:
    """A digest of all that a plan is made of, and whether no file of it was written to just now, and may be again unseen."""
    content = {name: value for name, value in config_as_dict(config).items() if name != "selection"}
    around = [_describe_program(), _describe_machine(config.planning_device), emulated, os.getcwd()]
    places: list[str] = []
    may_be_kept = True
    for folder in _list_folders(config):
        with reading_users_file(folder, "cannot be read", "check its permissions", ConfigError):
            # In folders of it too, which is as deep as models, tokenizers and task files go.
            files = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()) or [folder]
            places += map(identify_file, files)
            may_be_kept &= all(map(is_settled, files))
    return digest_content([content, around, places], length=32), may_be_kept


def _list_folders(config: RunConfig) -> Iterator[Path]:
    """Where the models, tokenizers and tasks lie that a configuration names."""
    yield locate_tokenizer(config.corpus.tokenizer)
    for given in (config.teacher, config.reference):
        if given.model is not None:
            yield locate_model(given.model, given.revision)
    for tokenizer in (*(student.tokenizer for student in config.students), *(export.tokenizer for export in config.exports)):
        if tokenizer is not None:
            yield locate_tokenizer(tokenizer)
    for architecture in (config.reference.architecture, *(student.architecture for student in config.students)):
        if architecture is not None and architecture not in PRESETS:
            yield locate_config(architecture)
    if config.evaluation.task_folder is not None:
        yield Path(config.evaluation.task_folder).expanduser()


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

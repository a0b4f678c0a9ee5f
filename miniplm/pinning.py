"""Makes a run's dtypes explicit: `auto` is what the machine that began the run has, on a fleet what its workers have."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch

from miniplm import __version__, layout
from miniplm.artifacts import Record
from miniplm.config import RunConfig, config_as_dict
from miniplm.config_files import check_config
from miniplm.errors import RunError
from miniplm.models.devices import describe_device, has_native_bfloat16, resolve_device, resolve_dtype, resolve_scoring_dtype
from miniplm.presets import PRESETS
from miniplm.records import find_record
from miniplm.run_record import load_run
from miniplm.storage import Storage


class WorkerDescription(Record):
    """What a run is computed on: the machine that began it, or the worker that answered for its pool.

    `device_type` is cpu, cuda or mps, `device` its name for people; `native_bfloat16`: its CPU multiplies in bfloat16.
    """

    device_type: str
    device: str
    worker: str
    version: str
    native_bfloat16: bool = False  # what earlier versions did not say, and made nothing of


def describe_machine(name: str) -> WorkerDescription:
    """What this machine has; `name` is what people know it by."""
    device = resolve_device("auto")
    return WorkerDescription(
        device_type=device.type,
        device=describe_device(device),
        worker=name,
        version=__version__,
        native_bfloat16=has_native_bfloat16(),
    )


def needs_worker(config: RunConfig) -> bool:
    """Whether a dtype of the run depends on a device that only the workers know: with `cpu`, on what their CPU multiplies in."""
    if config.scoring.device == "cpu":
        return "auto" in (config.teacher.dtype, config.reference.dtype)
    return config.scoring.device == "auto" and _leaves_dtype_open(config)


def _leaves_dtype_open(config: RunConfig) -> bool:
    content = config_as_dict(config)
    return any(section["dtype"] == "auto" for section in (*_scoring_sections(content), *_training_sections(content)))


def pin_dtypes(config: RunConfig, device_type: str, native_bfloat16: bool = False) -> RunConfig:
    """The configuration with every `auto` dtype as a device of that type resolves it: the ids are then the same everywhere.

    `native_bfloat16` says of a CPU whether it multiplies in bfloat16.
    """
    device = torch.device(device_type)
    content = config_as_dict(config)
    for section in _scoring_sections(content):
        section["dtype"] = resolve_scoring_dtype(section["dtype"], device, True, native_bfloat16)
    for section in _training_sections(content):
        section["dtype"] = resolve_dtype(section["dtype"], device)
    return check_config(content, f"run {config.name}")


def pin_to(config: RunConfig, worker: WorkerDescription) -> RunConfig:
    """The configuration with every `auto` dtype as that worker resolves it, on the device that the configuration names."""
    device = config.scoring.device
    return pin_dtypes(config, worker.device_type if device == "auto" else device.split(":")[0], worker.native_bfloat16)


def pin_to_machine(storage: Storage, config: RunConfig) -> RunConfig:
    """The dtypes of a run outside a work pool as the machine that began it resolves them: this one, where none has yet.

    A run whose record tells that it was scored in float32, as earlier versions did on every CPU, goes on in float32.
    """
    if not _leaves_dtype_open(config):
        return config
    path = layout.machine_description(config.name)
    machine = find_record(storage, path, WorkerDescription)
    if machine is None:
        machine = describe_machine(socket.gethostname())
        if _was_scored_in_float32(storage, config):
            machine = machine.model_copy(update={"native_bfloat16": False})
        storage.write_json(path, machine.as_json())
    return pin_to(config, machine)


def _was_scored_in_float32(storage: Storage, config: RunConfig) -> bool:
    try:
        record = load_run(storage, config.name)
    except RunError:
        return False
    scorers = ((config.teacher.dtype, record.teacher), (config.reference.dtype, record.reference))
    return any(dtype == "auto" and entry is not None and entry.dtype == "float32" for dtype, entry in scorers)


def find_pinned(storage: Storage, config: RunConfig) -> RunConfig:
    """The configuration with what an earlier start of the same run has pinned; what only the run itself can know stays `auto`."""
    if not config.is_on_work_pool:
        machine = find_record(storage, layout.machine_description(config.name), WorkerDescription)
        return config if machine is None else pin_to(config, machine)
    if config.scoring.device not in ("auto", "cpu"):
        return pin_dtypes(config, config.scoring.device)
    worker = find_worker(storage, config.name)
    return config if worker is None else pin_to(config, worker)


def find_worker(storage: Storage, run_name: str) -> WorkerDescription | None:
    """The description that a worker left for a run; None where none did, or one of another version of this package: it is asked for again."""
    return find_record(storage, layout.worker_description(run_name), WorkerDescription)


def save_worker(storage: Storage, run_name: str, worker: WorkerDescription) -> None:
    """Keeps what kind of device a run is computed on, so that the run has one answer from its start to its end."""
    storage.write_json(layout.worker_description(run_name), worker.as_json())


def make_absolute(config: RunConfig) -> RunConfig:
    """The configuration with its folders as absolute paths, as other processes have another working folder."""
    content = config_as_dict(config)
    content["storage"] = _absolute(content["storage"])
    for source in content["corpus"]["sources"]:
        source["path"] = _absolute(source["path"])
    if content["evaluation"]["task_folder"] is not None:
        content["evaluation"]["task_folder"] = _absolute(content["evaluation"]["task_folder"])
    for section, field in (
        (content["corpus"], "tokenizer"),
        (content["teacher"], "model"),
        (content["reference"], "model"),
        (content["reference"], "architecture"),
        *((student, field) for student in content["students"] for field in ("architecture", "tokenizer")),
    ):
        # What is no folder here is the name of a preset or of a model on a hub.
        if section[field] is not None and section[field] not in PRESETS and os.path.isdir(os.path.expanduser(section[field])):
            section[field] = _absolute(section[field])
    return check_config(content, f"run {config.name}")


def _absolute(url: str) -> str:
    # `~` is the home of this user, as it is to fsspec and to the models' folders.
    return url if "://" in url or "::" in url else os.path.abspath(os.path.expanduser(url))


def for_worker(config: RunConfig) -> RunConfig:
    """The pinned configuration as a worker gets it: what it is given it does itself."""
    return config.model_copy(update={"execution": config.execution.model_copy(update={"fan_out": "local"})})


def _scoring_sections(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [content["teacher"], content["reference"]]


def _training_sections(content: dict[str, Any]) -> list[dict[str, Any]]:
    trainings = [content["reference"]["training"], *(student["training"] for student in content["students"])]
    return [training for training in trainings if training is not None]

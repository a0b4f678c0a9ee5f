"""Makes a run's dtypes explicit: on a fleet `auto` is what the workers have, not the machine that plans the run."""

from __future__ import annotations

import os
from typing import Any

import torch

from miniplm import layout
from miniplm.artifacts import Record
from miniplm.config import RunConfig, config_as_dict
from miniplm.config_files import check_config
from miniplm.models.devices import resolve_dtype
from miniplm.presets import PRESETS
from miniplm.records import find_record
from miniplm.storage import Storage


class WorkerDescription(Record):
    """What the worker that answered for its pool has: `device_type` is cpu, cuda or mps, `device` its name for people."""

    device_type: str
    device: str
    worker: str
    version: str


def needs_worker(config: RunConfig) -> bool:
    """Whether a dtype of the run depends on a device that only the workers know."""
    return config.scoring.device == "auto" and any(dtype == "auto" for dtype in _list_dtypes(config_as_dict(config)))


def pin_dtypes(config: RunConfig, device_type: str) -> RunConfig:
    """The configuration with every `auto` dtype as a device of that type resolves it: the ids are then the same everywhere."""
    dtype = resolve_dtype("auto", torch.device(device_type))
    content = config_as_dict(config)
    for section in _dtype_sections(content):
        if section["dtype"] == "auto":
            section["dtype"] = dtype
    return check_config(content, f"run {config.name}")


def find_pinned(storage: Storage, config: RunConfig) -> RunConfig:
    """The configuration with what an earlier start of the same run on a work pool has pinned; itself where there is nothing."""
    if config.scoring.device != "auto":
        return pin_dtypes(config, config.scoring.device.split(":")[0])
    worker = find_worker(storage, config.name)
    return config if worker is None else pin_dtypes(config, worker.device_type)


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


def _dtype_sections(content: dict[str, Any]) -> list[dict[str, Any]]:
    trainings = [content["reference"]["training"], *(student["training"] for student in content["students"])]
    return [content["teacher"], content["reference"], *(training for training in trainings if training is not None)]


def _list_dtypes(content: dict[str, Any]) -> list[str]:
    return [section["dtype"] for section in _dtype_sections(content)]

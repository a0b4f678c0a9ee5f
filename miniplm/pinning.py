"""Makes a run's dtypes explicit: on a fleet `auto` is what the workers have, not the machine that plans the run."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from pydantic import ValidationError

from miniplm import layout
from miniplm.artifacts import Record
from miniplm.config import RunConfig
from miniplm.models.dtypes import choose_dtype
from miniplm.presets import PRESETS
from miniplm.run_plan import RunPlan
from miniplm.storage import Storage

Run = TypeVar("Run", RunConfig, RunPlan)


class WorkerDescription(Record):
    """What the worker that answered for its pool has: `device_type` is cpu, cuda or mps, `device` its name for people."""

    device_type: str
    device: str
    worker: str
    version: str


def needs_worker(run: RunConfig | RunPlan) -> bool:
    """Whether a dtype of the run depends on a device that only the workers know."""
    trainings = [run.reference.training, *(student.training for student in run.students)]
    dtypes = [run.teacher.dtype, run.reference.dtype, *(training.dtype for training in trainings if training is not None)]
    return run.scoring.device == "auto" and "auto" in dtypes


def pin_dtypes(run: Run, device_type: str) -> Run:
    """The run with every `auto` dtype as a device of that type resolves it: the ids are then the same everywhere."""

    def pin(section: Any) -> Any:
        return section.model_copy(update={"dtype": choose_dtype(device_type)}) if section.dtype == "auto" else section

    reference = pin(run.reference)
    if reference.training is not None:
        reference = reference.model_copy(update={"training": pin(reference.training)})
    students = tuple(student.model_copy(update={"training": pin(student.training)}) for student in run.students)
    return run.model_copy(update={"teacher": pin(run.teacher), "reference": reference, "students": students})


def find_pinned(storage: Storage, config: RunConfig) -> RunConfig:
    """The configuration with what an earlier start of the same run on a work pool has pinned; itself where there is nothing."""
    if config.scoring.device != "auto":
        return pin_dtypes(config, config.scoring.device.split(":")[0])
    worker = find_worker(storage, config.name)
    return config if worker is None else pin_dtypes(config, worker.device_type)


def find_worker(storage: Storage, run_name: str) -> WorkerDescription | None:
    """The description that a worker left for a run; None where none did."""
    path = layout.worker_description(run_name)
    if not storage.exists(path):
        return None
    try:
        return WorkerDescription.model_validate(storage.read_json(path))
    except ValidationError:
        return None  # of another version of this package: asked for again


def save_worker(storage: Storage, run_name: str, worker: WorkerDescription) -> None:
    """Keeps what kind of device a run is computed on, so that the run has one answer from its start to its end."""
    storage.write_json(layout.worker_description(run_name), worker.as_json())


def make_absolute(config: RunConfig) -> RunConfig:
    """The configuration with its folders as absolute paths, as other processes have another working folder."""

    def change(section: Any, **fields: str | None) -> Any:
        return section.model_copy(update=fields)

    corpus, teacher, reference, evaluation = config.corpus, config.teacher, config.reference, config.evaluation
    sources = tuple(change(source, path=_absolute(source.path)) for source in corpus.sources)
    students = tuple(
        change(student, architecture=_absolute_folder(student.architecture), tokenizer=_absolute_folder(student.tokenizer))
        for student in config.students
    )
    task_folder = None if evaluation.task_folder is None else _absolute(evaluation.task_folder)
    return config.model_copy(
        update={
            "storage": _absolute(config.storage),
            "corpus": corpus.model_copy(update={"sources": sources, "tokenizer": _absolute_folder(corpus.tokenizer)}),
            "teacher": change(teacher, model=_absolute_folder(teacher.model)),
            "reference": change(
                reference, model=_absolute_folder(reference.model), architecture=_absolute_folder(reference.architecture)
            ),
            "students": students,
            "evaluation": change(evaluation, task_folder=task_folder),
        }
    )


def _absolute_folder(name: str | None) -> str | None:
    """The path of a folder; what is no folder here is the name of a preset or of a model on a hub."""
    is_folder = name is not None and name not in PRESETS and os.path.isdir(os.path.expanduser(name))
    return _absolute(name) if is_folder and name is not None else name


def _absolute(url: str) -> str:
    # `~` is the home of this user, as it is to fsspec and to the models' folders.
    return url if "://" in url or "::" in url else os.path.abspath(os.path.expanduser(url))

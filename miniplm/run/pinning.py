"""Makes a run's dtypes explicit: `auto` is what the machine has that began the run, on a fleet what the workers have."""

from __future__ import annotations

import json
import os
import socket
from typing import Any, TypeVar

from miniplm import __version__, layout
from miniplm.config.exports import ExportConfig
from miniplm.config.run import ReferenceConfig, RunConfig, SourceConfig, TeacherConfig
from miniplm.errors import ModelError, RunError, reading_users_file
from miniplm.models.devices import describe_device, has_native_bfloat16, resolve_device
from miniplm.models.dtypes import choose_dtype, choose_scoring_dtype, find_hidden_width
from miniplm.models.locations import locate_config, locate_model
from miniplm.models.presets import PRESETS
from miniplm.records.manifests import Record
from miniplm.records.run import load_run
from miniplm.records.stored import find_record, read_record
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage

Run = TypeVar("Run", RunConfig, RunPlan)


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


def needs_worker(run: RunConfig | RunPlan) -> bool:
    """Whether a dtype of the run depends on a device that only the workers know: with `cpu`, on what their CPU multiplies in."""
    if run.scoring.device == "cpu":
        return "auto" in (run.teacher.dtype, run.reference.dtype)
    return run.scoring.device == "auto" and _leaves_dtype_open(run)


def _leaves_dtype_open(run: RunConfig | RunPlan) -> bool:
    tuned_on = run.teacher.tuned_on
    trainings = [run.reference.training, *(student.training for student in run.students)]
    trainings += [] if tuned_on is None else [tuned_on.training]
    dtypes = [run.teacher.dtype, run.reference.dtype, *(training.dtype for training in trainings if training is not None)]
    return "auto" in dtypes


def pin_dtypes(run: Run, device_type: str, native_bfloat16: bool = False) -> Run:
    """The run with every `auto` dtype as a device of that type resolves it: the ids are then the same everywhere.

    `native_bfloat16` says of a CPU whether it multiplies in bfloat16; the width of a model that scores decides with it.
    Raises `ModelError` or `ConfigError` where that is to be looked up and the model is not there.
    """
    native_bfloat16 = native_bfloat16 and device_type == "cpu"

    def pin(section: Any, dtype: str) -> Any:
        return section.model_copy(update={"dtype": dtype}) if section.dtype == "auto" else section

    def pin_scorer(section: Any) -> Any:
        if section.dtype != "auto":
            return section
        is_tuned = isinstance(section, TeacherConfig) and section.tuned_on is not None
        width = find_width(run.reference if is_tuned else section) if native_bfloat16 else 0
        return pin(section, choose_scoring_dtype(device_type, native_bfloat16, width))

    training = choose_dtype(device_type)
    reference = pin_scorer(run.reference)
    if reference.training is not None:
        reference = reference.model_copy(update={"training": pin(reference.training, training)})
    students = tuple(student.model_copy(update={"training": pin(student.training, training)}) for student in run.students)
    teacher = pin_scorer(run.teacher)
    if teacher.tuned_on is not None:
        tuned_on = teacher.tuned_on.model_copy(update={"training": pin(teacher.tuned_on.training, training)})
        teacher = teacher.model_copy(update={"tuned_on": tuned_on})
    return run.model_copy(update={"teacher": teacher, "reference": reference, "students": students})


def find_width(section: TeacherConfig | ReferenceConfig) -> int:
    """The hidden width of the model of a section, given or by its architecture."""
    if section.model is not None:
        path = locate_model(section.model, section.revision) / "config.json"
    else:
        assert isinstance(section, ReferenceConfig)
        assert section.architecture is not None
        if section.architecture in PRESETS:
            return find_hidden_width(PRESETS[section.architecture].describe())
        path = locate_config(section.architecture)
    with reading_users_file(path, "is no configuration of a model", "give a model as transformers saves it", ModelError):
        content = json.loads(path.read_bytes())
        return find_hidden_width(content)


def pin_to(run: Run, worker: WorkerDescription) -> Run:
    """The run with every `auto` dtype as that worker resolves it, on the device that the configuration names."""
    device = run.scoring.device
    return pin_dtypes(run, worker.device_type if device == "auto" else device.split(":")[0], worker.native_bfloat16)


def pin_run(storage: Storage, config: RunConfig, keep: bool = True) -> RunConfig:
    """The dtypes of a run as the machine that began it resolves them: this one, where none has yet; on a work pool as far as no worker has to say.

    With `keep`, that it was this one is kept beside the run's record. A run whose record tells that it was scored in float32, as
    earlier versions did on every CPU, goes on in float32 on a CPU.
    Raises `DamagedFileError` where what was kept cannot be read: another machine's dtypes are not to take its place unseen.
    """
    if config.is_on_work_pool:
        return _pin_configured(config)
    if not _leaves_dtype_open(config):
        return config
    path = layout.machine_description(config.name)
    if storage.exists(path):
        machine = read_record(storage, path, WorkerDescription)
    else:
        machine = describe_machine(socket.gethostname())
        if _was_scored_in_float32(storage, config):
            machine = machine.model_copy(update={"native_bfloat16": False})
        if keep:
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
    """The configuration of a run on a work pool with what an earlier start of it has pinned; what only its workers know stays `auto`."""
    worker = find_worker(storage, config.name) if needs_worker(config) else None
    return _pin_configured(config) if worker is None else pin_to(config, worker)


def _pin_configured(config: RunConfig) -> RunConfig:
    """The dtypes as the device that is configured resolves them, as far as that tells without its machine."""
    is_open = config.scoring.device == "auto" or needs_worker(config)
    return config if is_open else pin_dtypes(config, config.scoring.device.split(":")[0])


def find_worker(storage: Storage, run_name: str) -> WorkerDescription | None:
    """The description that a worker left for a run; None where none did, or one of another version of this package: it is asked for again."""
    return find_record(storage, layout.worker_description(run_name), WorkerDescription)


def save_worker(storage: Storage, run_name: str, worker: WorkerDescription) -> None:
    """Keeps what kind of device a run is computed on, so that the run has one answer from its start to its end."""
    storage.write_json(layout.worker_description(run_name), worker.as_json())


def make_absolute(config: RunConfig) -> RunConfig:
    """The configuration with its folders as absolute paths, as other processes have another working folder."""

    def change(section: Any, **fields: str | None) -> Any:
        return section.model_copy(update=fields)

    corpus, teacher, reference, evaluation = config.corpus, config.teacher, config.reference, config.evaluation

    def move(sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        return tuple(change(source, path=_absolute(source.path)) for source in sources)

    tuned_on = None if teacher.tuned_on is None else teacher.tuned_on.model_copy(update={"sources": move(teacher.tuned_on.sources)})
    students = tuple(
        change(student, architecture=_absolute_folder(student.architecture), tokenizer=_absolute_folder(student.tokenizer))
        for student in config.students
    )
    signals = tuple(change(signal, path=_absolute(signal.path)) for signal in config.selection.signals)
    task_folder = None if evaluation.task_folder is None else _absolute(evaluation.task_folder)
    return config.model_copy(
        update={
            "storage": _absolute(config.storage),
            "corpus": corpus.model_copy(update={"sources": move(corpus.sources), "tokenizer": _absolute_folder(corpus.tokenizer)}),
            "teacher": teacher.model_copy(update={"model": _absolute_folder(teacher.model), "tuned_on": tuned_on}),
            "reference": change(
                reference, model=_absolute_folder(reference.model), architecture=_absolute_folder(reference.architecture)
            ),
            "selection": config.selection.model_copy(update={"signals": signals}),
            "students": students,
            "evaluation": evaluation.model_copy(update={"task_folder": task_folder, "sources": move(evaluation.sources)}),
            "exports": tuple(make_export_absolute(export) for export in config.exports),
        }
    )


def make_export_absolute(export: ExportConfig) -> ExportConfig:
    """An export that means the same to other processes."""
    return export.model_copy(update={"to": _absolute(export.to), "tokenizer": _absolute_folder(export.tokenizer)})


def _absolute_folder(name: str | None) -> str | None:
    """The path of a folder; what is no folder here is the name of a preset or of a model on a hub."""
    is_folder = name is not None and name not in PRESETS and os.path.isdir(os.path.expanduser(name))
    return _absolute(name) if is_folder and name is not None else name


def _absolute(url: str) -> str:
    # `~` is the home of this user, as it is to fsspec and to the models' folders.
    return url if "://" in url or "::" in url else os.path.abspath(os.path.expanduser(url))

"""One plan for a run: what its configuration means here, made and checked once where the run starts, and handed down to all that works on it.

What can only be known later joins it in steps, once each: a training's id and length, when the corpus and the selection are there.
The plan is kept beside the run's record. As long as the configuration, this program, the machine's devices and every file that was read
are the same, it is found there and nothing is read, loaded or checked again. So this module imports nothing that is slow to import.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from miniplm import layout
from miniplm.artifacts import CorpusManifest, ModelEntry, Record, SelectionManifest
from miniplm.config import (
    CorpusConfig,
    EvaluationConfig,
    ExecutionConfig,
    ModelConfig,
    ReferenceConfig,
    RunConfig,
    ScoringConfig,
    SelectionConfig,
    StudentConfig,
    config_as_dict,
)
from miniplm.errors import ConfigError, DamagedFileError, reading_users_file
from miniplm.file_facts import is_settled
from miniplm.models.dtypes import choose_dtype
from miniplm.models.files import locate_model
from miniplm.presets import PRESETS
from miniplm.storage import Storage, digest_content, identify_file
from miniplm.tokenization import TokenizerIdentity
from miniplm.tokenizer_folders import locate_tokenizer

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "lm_eval", "wandb")


class PlannedTraining(Record):
    """A training whose data are known. `steps` are the optimizer steps, None where the number of sequences decides them.

    `derived_ids` are the sets that are to be made before it, in their order; `heldout_id` the held-out text in the student's own tokens.
    """

    training_id: str
    steps: int | None
    derived_ids: tuple[str, ...] = ()
    heldout_id: str | None = None


class RunPlan(Record):
    """A run as it will be. The sections are those of the configuration, every dtype explicit, on a work pool with absolute paths.

    `config` is the configuration as the run's record keeps it. `teacher_entry` is the teacher as it scores, `reference_entry` the
    reference where it is given. Where a fleet's workers have not said yet what they have, `auto` stays, and means a CPU's dtype.
    """

    key: str
    name: str
    storage: str
    config: dict[str, Any]
    corpus: CorpusConfig
    tokenizer: TokenizerIdentity | None = None
    teacher: ModelConfig
    teacher_entry: ModelEntry | None = None
    reference: ReferenceConfig
    reference_entry: ModelEntry | None = None
    scoring: ScoringConfig
    selection: SelectionConfig
    students: tuple[StudentConfig, ...]
    evaluation: EvaluationConfig
    execution: ExecutionConfig
    trainings: dict[str, PlannedTraining] = Field(default_factory=dict)

    @classmethod
    def of(cls, run: RunConfig, key: str = "", **known: Any) -> RunPlan:
        """The sections of a configuration as a plan, with what is `known` of it."""
        sections = {name: getattr(run, name) for name in RunConfig.model_fields}
        return cls(key=key, **{"config": config_as_dict(run)} | sections | known)

    @property
    def is_on_work_pool(self) -> bool:
        """Whether workers elsewhere score and train, so that this process only plans."""
        return self.execution.fan_out == "work-pool"

    @property
    def planning_device(self) -> str:
        """The device that names in this process are made for. Workers' devices are not here, and need not be: their dtypes are pinned."""
        return "cpu" if self.is_on_work_pool else self.scoring.device

    @property
    def reference_dtype(self) -> str:
        """The precision that the reference scores in."""
        return choose_dtype("cpu") if self.reference.dtype == "auto" else self.reference.dtype

    def require_teacher(self) -> ModelEntry:
        """The teacher as it scores."""
        assert self.teacher_entry is not None, "a plan that was resolved knows its teacher"
        return self.teacher_entry

    def find_student(self, student_name: str) -> StudentConfig:
        """What the configuration says of a student. Raises `ConfigError` where the run has none of that name."""
        for student in self.students:
            if student.name == student_name:
                return student
        names = ", ".join(student.name for student in self.students) or "none"
        raise ConfigError(f"run {self.name} has no student {student_name!r}; its students are {names}")

    def plan_reference(self, corpus: CorpusManifest) -> PlannedTraining:
        """The training of the reference model, of a run that has one trained."""
        key = f"reference of {corpus.corpus_id}"
        if key not in self.trainings:
            from miniplm.scorers import plan_reference

            plan = plan_reference(self, corpus)
            self._learn(key, PlannedTraining(training_id=plan.training_id, steps=plan.config.steps))
        return self.trainings[key]

    def plan_student(self, corpus: CorpusManifest, selection: SelectionManifest, student_name: str) -> PlannedTraining:
        """The training of a student on this selection, and what is to be derived for it."""
        key = f"student {student_name} of {corpus.corpus_id} {selection.selection_id}"
        if key not in self.trainings:
            from miniplm.student_plans import describe_training

            self._learn(key, describe_training(self, corpus, selection, student_name))
        return self.trainings[key]

    def _learn(self, key: str, training: PlannedTraining) -> None:
        self.trainings[key] = training
        if self.key:
            save_plan(self)

    def for_worker(self) -> RunPlan:
        """The plan as a worker of the pool gets it: what it is given it does itself, and the file is its parent's."""
        execution = self.execution.model_copy(update={"fan_out": "local"})
        return self.model_copy(update={"key": "", "execution": execution})


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
        plan = plan.model_copy(update={"selection": config.selection, "config": config_as_dict(config)})
        if checks:
            storage.check_writable()
            _plans[key] = plan
        return plan
    from miniplm.planning import make_plan

    is_kept = checks and may_be_kept and not emulated
    plan = make_plan(config, storage, key if is_kept else "", emulated, checks)
    if checks:
        _plans[key] = plan
    if is_kept:
        save_plan(plan)
    return plan


# Those that this process has made or found, by their keys.
_plans: dict[str, RunPlan] = {}


def find_plan(storage: Storage, run_name: str) -> RunPlan | None:
    """The plan that is kept beside a run's record; None where there is none, or one of another version of this program."""
    path = layout.run_plan(run_name)
    if not storage.exists(path):
        return None
    try:
        return RunPlan.model_validate(storage.read_json(path))
    except (ValidationError, DamagedFileError):
        return None  # it is made again


def save_plan(plan: RunPlan) -> None:
    """Keeps a plan beside the run's record. There is no secret in it, as there is none in a configuration."""
    Storage(plan.storage).write_json(layout.run_plan(plan.name), plan.as_json())


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
    yield locate_model(config.teacher.model, config.teacher.revision)
    if config.reference.model is not None:
        yield locate_model(config.reference.model, config.reference.revision)
    for student in config.students:
        if student.tokenizer is not None:
            yield locate_tokenizer(student.tokenizer)
    architectures = [config.reference.architecture, *(student.architecture for student in config.students)]
    for architecture in architectures:
        if architecture is not None and architecture not in PRESETS:
            from miniplm.architectures import locate_config

            yield locate_config(architecture)
    if config.evaluation.task_folder is not None:
        yield Path(config.evaluation.task_folder).expanduser()


def _list_files(folder: Path) -> list[Path]:
    """A file itself; those in a folder and in its folders, which is as deep as models, tokenizers and task files go."""
    return sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()) or [folder]


def _describe_program() -> list[str]:
    """The code of this package as its files are, and the packages that a plan depends on."""
    own = [identify_file(path) for path in sorted(Path(__file__).parent.rglob("*.py"))]
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

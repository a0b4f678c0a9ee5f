"""One plan for a run: what its configuration means here, made and checked once where the run starts, and handed down to all that works on it.

What can only be known later joins it in steps, once each: a training's id and length, when the corpus and the selection are there.
The plan is kept beside the run's record. As long as the configuration, this program, the machine's devices and every file that was read
are the same, it is found there and nothing is read, loaded or checked again. So this module imports nothing that is slow to import.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from miniplm import layout
from miniplm.config.run import (
    CorpusConfig,
    EvaluationConfig,
    ExecutionConfig,
    ExportConfig,
    ReferenceConfig,
    RunConfig,
    ScoringConfig,
    SelectionConfig,
    StudentConfig,
    TeacherConfig,
    config_as_dict,
)
from miniplm.errors import ConfigError, DamagedFileError, ModelError
from miniplm.models.dtypes import choose_dtype
from miniplm.records.manifests import ModelEntry, Record
from miniplm.storage.root import Storage, digest_content
from miniplm.tokenizers.tokenizer import TokenizerIdentity


class PlannedTraining(Record):
    """A training whose data are known. `steps` are the optimizer steps, None where the number of sequences decides them.

    `derived_ids` are the sets that are to be made before it, in their order; `heldout_ids` the held-out texts in the student's own tokens.
    """

    training_id: str
    steps: int | None
    derived_ids: tuple[str, ...] = ()
    heldout_ids: tuple[str, ...] = ()


class RunPlan(Record):
    """A run as it will be. The sections are those of the configuration, every dtype explicit, on a work pool with absolute paths.

    `config` is the configuration as the run's record keeps it. `teacher_entry` is the teacher as it scores, one that is tuned here
    once it is; `reference_entry` the reference where it is given; `text_id` and `target_id` the held-out text from elsewhere and the target text,
    once a run goes on by them (they are not kept: their files may change). Where a fleet's workers have not said yet what they have, `auto` stays, and means a CPU's dtype.
    """

    key: str
    name: str
    storage: str
    config: dict[str, Any]
    corpus: CorpusConfig
    tokenizer: TokenizerIdentity | None = None
    teacher: TeacherConfig
    teacher_entry: ModelEntry | None = None
    reference: ReferenceConfig
    reference_entry: ModelEntry | None = None
    scoring: ScoringConfig
    selection: SelectionConfig
    students: tuple[StudentConfig, ...]
    evaluation: EvaluationConfig
    exports: tuple[ExportConfig, ...] = Field((), exclude_if=lambda exports: not exports)
    execution: ExecutionConfig
    trainings: dict[str, PlannedTraining] = Field(default_factory=dict)
    text_id: str | None = None
    target_id: str | None = None

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
    def prepares_on_workers(self) -> bool:
        """Whether workers elsewhere read and tokenise the source files of the corpus."""
        return self.is_on_work_pool and self.execution.prepare == "workers"

    @property
    def planning_device(self) -> str:
        """The device that names in this process are made for. Workers' devices are not here, and need not be: their dtypes are pinned."""
        return "cpu" if self.is_on_work_pool else self.scoring.device

    @property
    def reference_dtype(self) -> str:
        """The precision that the reference scores in."""
        return choose_dtype("cpu") if self.reference.dtype == "auto" else self.reference.dtype

    @property
    def teacher_dtype(self) -> str:
        """The precision that a teacher scores in which is tuned here."""
        return choose_dtype("cpu") if self.teacher.dtype == "auto" else self.teacher.dtype

    def require_teacher(self) -> ModelEntry:
        """The teacher as it scores. Raises `ModelError` where it is yet to be tuned on its target."""
        if self.teacher_entry is None:
            raise ModelError(
                f"the teacher of run {self.name} is not tuned on its target yet; run `miniplm tune-teacher CONFIG`, which needs the reference"
            )
        return self.teacher_entry

    def find_student(self, student_name: str) -> StudentConfig:
        """What the configuration says of a student. Raises `ConfigError` where the run has none of that name."""
        for student in self.students:
            if student.name == student_name:
                return student
        names = ", ".join(student.name for student in self.students) or "none"
        raise ConfigError(f"run {self.name} has no student {student_name!r}; its students are {names}")

    def learn(self, storage: Storage, key: str, training: PlannedTraining) -> PlannedTraining:
        """Keeps what is known of a training from now on."""
        self.trainings[key] = training
        if self.key:
            save_plan(storage, self)
        return training

    def for_worker(self) -> RunPlan:
        """The plan as a worker of the pool gets it: what it is given it does itself, and the file is its parent's."""
        execution = self.execution.model_copy(update={"fan_out": "local"})
        return self.model_copy(update={"key": "", "execution": execution})


def find_plan(storage: Storage, run_name: str) -> RunPlan | None:
    """The plan that is kept beside a run's record; None where there is none, one of another version, or not as it was written: it is made again."""
    path = layout.run_plan(run_name)
    if not storage.exists(path):
        return None
    try:
        content = storage.read_json(path)
        if not isinstance(content, dict) or content.pop("digest", None) != digest_content(content):
            return None
        return RunPlan.model_validate(content)
    except (ValidationError, DamagedFileError):
        return None


def save_plan(storage: Storage, plan: RunPlan) -> None:
    """Keeps a plan beside the run's record, with a digest of itself. There is no secret in it, as there is none in a configuration."""
    # A tuned teacher follows from the reference and the text, which are looked at again.
    unkept = {"text_id": None, "target_id": None} | ({} if plan.teacher.model is not None else {"teacher_entry": None})
    content = plan.model_copy(update=unkept).as_json()
    storage.write_json(layout.run_plan(plan.name), content | {"digest": digest_content(content)})

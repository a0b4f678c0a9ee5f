"""The record of a run: which artifacts it used and what each stage took. The report and every inspection start from it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from miniplm import layout
from miniplm.errors import RunError, list_offenders
from miniplm.records.manifests import Evaluation, ModelEntry, Record
from miniplm.records.stored import describe_first_problem
from miniplm.records.texts import MeasuredText
from miniplm.storage.root import Storage


class StudentRecord(Record):
    """A student of a run. `num_tokens` is what it was trained on, `final_loss` the last training loss in nats a token.

    `evaluation` is on text from elsewhere where the run names some, and `on_split` then on the corpus's own held-out split.
    `num_unmatched_steps` are those it would have had without a teacher, where its `num_steps` were matched to their FLOPs.
    """

    training_id: str
    method: str
    architecture: str
    num_parameters: int
    num_steps: int
    num_unmatched_steps: int | None = None
    num_tokens: int
    final_loss: float
    folder: str
    evaluation: Evaluation | None = None
    on_split: Evaluation | None = None

    def describe_steps(self) -> str:
        """`100,000 steps`, or `25,000 of 100,000 steps: FLOP-matched`, for people."""
        if self.num_unmatched_steps is None:
            return f"{self.num_steps:,} steps"
        return f"{self.num_steps:,} of {self.num_unmatched_steps:,} steps: FLOP-matched"


class StageRecord(Record):
    """One stage of a run: `num_units` of `unit` in `seconds`, or found finished (`reused`)."""

    name: str
    seconds: float
    reused: bool
    num_units: int
    unit: str

    @property
    def units_per_second(self) -> float | None:
        """Throughput; None where the stage was reused or took no measurable time."""
        return None if self.reused or self.seconds <= 0 else self.num_units / self.seconds


class RunRecord(Record):
    """A run as far as it has come: what is not there yet is None or missing. Times are ISO 8601."""

    run_name: str
    config: dict[str, Any]
    corpus_id: str | None = None
    teacher: ModelEntry | None = None
    reference: ModelEntry | None = None
    # What predicts the teacher's scores, in a run of which the teacher scores a share; left out of other records.
    proxy: ModelEntry | None = Field(None, exclude_if=lambda proxy: proxy is None)
    selection_id: str | None = None
    students: dict[str, StudentRecord] = Field(default_factory=dict)
    stages: tuple[StageRecord, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    started_at: str
    finished_at: str | None = None

    @property
    def scorer_ids(self) -> tuple[str, str] | None:
        """Whose scores are joined: those of the teacher, or of the proxy in its place, and of the reference; None before both are known."""
        if self.teacher is None or self.reference is None or (self.proxy is None and self.has_proxy):
            return None
        return (self.proxy or self.teacher).model_id, self.reference.model_id

    @property
    def has_proxy(self) -> bool:
        """Whether the configuration has the teacher score a share only."""
        return self.config.get("scoring", {}).get("proxy") is not None

    def name_text(self) -> str:
        """Which held-out text the students are measured on, for people."""
        texts = {MeasuredText.of(student.evaluation).title for student in self.students.values() if student.evaluation is not None}
        return " and ".join(sorted(texts))

    def on_own_split(self) -> RunRecord:
        """The run with what was measured on the corpus's own held-out split beside text from elsewhere; of other runs, without evaluations."""
        students = {name: student.model_copy(update={"evaluation": student.on_split}) for name, student in self.students.items()}
        return self.model_copy(update={"students": students})

    def find_student_settings(self, student_name: str) -> dict[str, Any]:
        """What the configuration says of a student; empty where it does not name it."""
        settings: dict[str, Any] = next((item for item in self.config.get("students", ()) if item["name"] == student_name), {})
        return settings


def list_runs(storage: Storage) -> list[str]:
    """Names of the runs that have a record, sorted."""
    return [name for name in storage.list_names(layout.runs_folder()) if storage.exists(layout.run_record(name))]


def load_run(storage: Storage, run_name: str) -> RunRecord:
    """The record of a run. Raises `RunError` where there is none, naming the runs that exist, or where it cannot be read."""
    if "/" in run_name or not run_name or not storage.exists(layout.run_record(run_name)):
        runs = list_runs(storage)
        known = (
            f"the runs there are: {list_offenders(runs)}" if runs else "there is no run yet; start one with `miniplm run CONFIG`"
        )
        raise RunError(f"{storage.root} has no run {run_name!r}; {known}")
    try:
        return RunRecord.model_validate(storage.read_json(layout.run_record(run_name)))
    except ValidationError as error:
        raise RunError(
            f"{storage.url(layout.run_record(run_name))} is not a run record: {describe_first_problem(error)} "
            f"({error.error_count()} problems in all). Run `miniplm run` with its config again; finished work is kept"
        ) from error


def save_run(storage: Storage, record: RunRecord) -> None:
    """Publishes the record under its run's name, in place of an earlier one."""
    storage.write_json(layout.run_record(record.run_name), record.as_json())

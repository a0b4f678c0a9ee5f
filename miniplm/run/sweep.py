"""What the runs of a sweep came to, side by side."""

from __future__ import annotations

from miniplm import layout
from miniplm.evaluation.comparison import LossDifference, compare_students
from miniplm.records.manifests import DomainLoss, Record
from miniplm.records.run import load_run
from miniplm.records.sweep import SweepRecord
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage


class SweptStudent(Record):
    """A student of one run of a sweep: its held-out loss, and the difference to that run's own baseline; None where it has none yet."""

    name: str
    loss: DomainLoss | None = None
    baseline: str | None = None
    difference: LossDifference | None = None
    average_accuracy: float | None = None


class SweptResult(Record):
    """One run of a sweep as far as it has come: what it kept, and its students. `is_finished` runs have all of theirs."""

    run_name: str
    values: dict[str, str]
    is_finished: bool = False
    num_selected: int | None = None
    num_candidates: int | None = None
    num_selected_tokens: int | None = None
    students: tuple[SweptStudent, ...] = ()


def describe_sweep(storage: Storage, sweep: SweepRecord) -> list[SweptResult]:
    """The results of all runs of a sweep, in its order."""
    results = []
    for run in sweep.runs:
        result = SweptResult(run_name=run.run_name, values=run.values)
        if not storage.exists(layout.run_record(run.run_name)):
            results.append(result)
            continue
        record = load_run(storage, run.run_name)
        comparisons = compare_students(storage, record)
        students = []
        for name, student in record.students.items():
            comparison = comparisons.get(name)
            students.append(
                SweptStudent(
                    name=name,
                    loss=None if student.evaluation is None else student.evaluation.overall,
                    baseline=None if comparison is None else comparison.baseline,
                    difference=None if comparison is None else comparison.overall,
                    average_accuracy=None if comparison is None else comparison.average_accuracy,
                )
            )
        facts: dict[str, object] = {"is_finished": record.finished_at is not None, "students": tuple(students)}
        if record.selection_id is not None:
            selection = load_selection(storage, record.selection_id)
            facts |= {name: getattr(selection, name) for name in ("num_selected", "num_candidates", "num_selected_tokens")}
        results.append(result.model_copy(update=facts))
    return results

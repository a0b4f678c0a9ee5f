"""What the runs of a sweep came to, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from miniplm import layout
from miniplm.evaluation.baselines import find_tokenizer
from miniplm.evaluation.comparison import LossDifference, compare_students
from miniplm.records.manifests import DomainLoss, Record
from miniplm.records.run import RunRecord, load_run
from miniplm.records.sweep import SweepRecord
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage, digest_content


class SweptStudent(Record):
    """A student of one run of a sweep: its held-out loss, and the difference to that run's own baseline; None where it has none yet.

    `tokenizer` is what its configuration names; `text` names the held-out text, by all that its configuration says of it.
    """

    name: str
    tokenizer: str | None = None
    text: str = ""
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
        if record.started_at < sweep.started_at:  # of an earlier sweep of that name, whose configuration may have been another
            results.append(result)
            continue
        comparisons = compare_students(storage, record)
        students = []
        for name, student in record.students.items():
            comparison = comparisons.get(name)
            students.append(
                SweptStudent(
                    name=name,
                    tokenizer=find_tokenizer(record, name),
                    text=_name_text(record),
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


def compare_sweep_in_nats(results: Sequence[SweptResult]) -> bool:
    """Whether a token is the same all over a sweep, so that losses compare in nats a token; else they are told in bits a byte."""
    measured = _list_measured(results)
    has_nats = all(student.difference is None or student.difference.nats_per_token is not None for student in measured)
    return has_nats and len({student.tokenizer for student in measured}) <= 1


def has_several_texts(results: Sequence[SweptResult]) -> bool:
    """Whether runs are measured on other held-out text than each other, so that their losses do not compare."""
    return len({student.text for student in _list_measured(results)}) > 1


def read_loss(loss: DomainLoss, in_nats: bool) -> tuple[float, float | None]:
    """A loss in nats a token or bits a byte, and its standard error."""
    return (loss.nats_per_token, loss.nats_standard_error) if in_nats else (loss.bits_per_byte, loss.bits_standard_error)


def read_difference(difference: LossDifference, in_nats: bool) -> tuple[float, float | None]:
    """As `read_loss`, of a difference, which has nats where `compare_sweep_in_nats`."""
    if in_nats and difference.nats_per_token is not None:
        return difference.nats_per_token, difference.nats_standard_error
    return difference.bits_per_byte, difference.bits_standard_error


def _list_measured(results: Sequence[SweptResult]) -> list[SweptStudent]:
    return [student for result in results for student in result.students if student.loss is not None]


def _name_text(record: RunRecord) -> str:
    """The same for runs that are measured on the same documents, however these are packed."""
    corpus, elsewhere = record.config.get("corpus", {}), record.config.get("evaluation", {}).get("sources")
    return digest_content(elsewhere or [corpus.get(field) for field in ("sources", "splits", "seed", "extend")])

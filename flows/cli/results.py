"""What the students reach, as tables for people: held-out loss, the difference to the baseline, zero-shot accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from flows.cli.overlap import print_overlap
from flows.cli.tables import make_table, print_selection, print_taken
from flows.cli.terminal import PlainConsole
from flows.cli.truth import print_truth
from miniplm import layout
from miniplm.evaluation.advice import advise
from miniplm.evaluation.baselines import SELECTION_METHODS, find_tokenizer
from miniplm.evaluation.comparison import LossDifference, StudentComparison, compare_in_nats, compare_students
from miniplm.records.manifests import DomainLoss, Evaluation, TaskResult
from miniplm.records.run import RunRecord
from miniplm.storage.root import Storage

_ALL = "all"


def print_run(storage: Storage, record: RunRecord) -> None:
    """The end of a run: what was kept, how the students do, where the report is."""
    from miniplm.corpus.reader import load_corpus
    from miniplm.run.overlap import find_overlap_summary
    from miniplm.run.truth import find_truth
    from miniplm.selection.ranking import load_selection

    console = PlainConsole()
    stages = make_table(f"Run {record.run_name}", "stage", "amount", "time", "rate", "")
    for stage in record.stages:
        rate = f"{stage.num_units / stage.seconds:,.0f} {stage.unit}/s" if stage.seconds >= 0.1 else ""
        stages.add_row(
            stage.name,
            f"{stage.num_units:,} {stage.unit}",
            f"{stage.seconds:.1f} s",
            rate,
            Text("was there", "dim") if stage.reused else "",
        )
    console.print(stages)
    if record.corpus_id is not None:
        print_taken(console, storage, load_corpus(storage, record.corpus_id))
    if record.selection_id is not None:
        print_selection(console, storage, load_selection(storage, record.selection_id))
        print_overlap(console, find_overlap_summary(storage, record.selection_id), record.run_name)
    if (truth := find_truth(storage, record)) is not None:
        print_truth(console, truth)
    print_results(console, storage, record)
    console.print(f"report: {storage.url(layout.run_report(record.run_name))}", soft_wrap=True)


def describe_results(storage: Storage, record: RunRecord, names: Sequence[str]) -> dict[str, Any]:
    """The evaluated students of these names: the record of each, with its comparison to its baseline, for machines."""
    comparisons = compare_students(storage, record)
    return {name: record.students[name].as_json() | {"comparison": comparisons[name].as_json()} for name in names}


def print_results(console: Console, storage: Storage, record: RunRecord) -> None:
    """Tables over the evaluated students of a run; nothing where there is none. A value is followed by ± its standard error."""
    measured = _print_text(console, storage, record)
    if any(student.on_split is not None for student in record.students.values()):
        _print_text(console, storage, record.on_own_split())
    comparisons = compare_students(storage, record)
    _print_accuracies(console, {name: value for name, value in measured.items() if value.tasks}, comparisons)
    _print_advice(console, storage, record, comparisons)


def _print_advice(console: Console, storage: Storage, record: RunRecord, comparisons: Mapping[str, StudentComparison]) -> None:
    """What to try, where the first student of the selection is no better than one of random text."""
    name = next(
        (name for name in comparisons if record.students[name].method in SELECTION_METHODS and comparisons[name].baseline), None
    )
    if name is None or record.selection_id is None:
        return
    from miniplm.run.truth import find_truth
    from miniplm.selection.ranking import find_selection

    selection = find_selection(storage, record.selection_id)
    advice = advise(record, selection, comparisons[name], find_truth(storage, record))
    if advice:
        console.print(
            f"{name} is no better than {comparisons[name].baseline}, which read random text. What to try:",
            style="bold",
            soft_wrap=True,
        )
        for sentence in advice:
            console.print(f"- {sentence}", soft_wrap=True)


def _print_text(console: Console, storage: Storage, record: RunRecord) -> dict[str, Evaluation]:
    """The losses on one held-out text, and their differences; returns the evaluations."""
    measured = {name: student.evaluation for name, student in record.students.items() if student.evaluation is not None}
    if measured:
        comparisons = compare_students(storage, record)
        _print_losses(console, measured, record.name_text())
        if len({str(find_tokenizer(record, name)) for name in measured}) > 1:
            console.print("students with different tokenizers compare by bits a byte only", style="dim", soft_wrap=True)
        _print_differences(console, {name: comparisons[name] for name in measured if comparisons[name].baseline is not None})
    return measured


def _print_losses(console: Console, measured: Mapping[str, Evaluation], text: str) -> None:
    table = make_table(f"Held-out loss, nats a token\non {text}", "domain", *measured)
    for domain in _list_domains(measured.values()):
        table.add_row(domain, *[_loss_cell(evaluation.domains.get(domain)) for evaluation in measured.values()])
    table.add_section()
    table.add_row(_ALL, *[_loss_cell(evaluation.overall) for evaluation in measured.values()], style="bold")
    table.add_row(
        f"{_ALL}, bits a byte",
        *[with_error(value.overall.bits_per_byte, value.overall.bits_standard_error) for value in measured.values()],
    )
    console.print(table)


def _print_differences(console: Console, comparisons: Mapping[str, StudentComparison]) -> None:
    if not comparisons:
        return
    in_nats = compare_in_nats(comparisons.values())
    unit = "nats a token" if in_nats else "bits a byte"
    baselines = {comparison.baseline for comparison in comparisons.values()}
    headings = [name if len(baselines) == 1 else f"{name} - {comparison.baseline}" for name, comparison in comparisons.items()]
    title = f"Loss less that of {baselines.pop()}, {unit}" if len(baselines) == 1 else f"Loss less that of the baseline, {unit}"
    table = make_table(title, "domain", *headings)
    for domain in _list_domains(comparisons.values()):
        table.add_row(domain, *[difference_cell(comparison.domains.get(domain), in_nats) for comparison in comparisons.values()])
    table.add_section()
    table.add_row(_ALL, *[difference_cell(comparison.overall, in_nats) for comparison in comparisons.values()], style="bold")
    console.print(table)
    unpaired = [name for name, value in comparisons.items() if value.overall is not None and not value.overall.paired]
    note = (
        "below 0 is better; ± standard error over held-out documents, sequence against sequence; other seeds of training vary too"
    )
    if unpaired:
        note += f". Not of the same sequences as its baseline, and so less sure: {', '.join(unpaired)}"
    console.print(note, style="dim", soft_wrap=True)


def _print_accuracies(console: Console, measured: Mapping[str, Evaluation], comparisons: Mapping[str, StudentComparison]) -> None:
    if not measured:
        return
    table = make_table("Zero-shot accuracy, %", "task", *measured)
    tasks = list(dict.fromkeys(task for evaluation in measured.values() for task in evaluation.tasks))
    for task in tasks:
        results = [evaluation.tasks.get(task) for evaluation in measured.values()]
        metric = next(result.metric for result in results if result is not None)
        table.add_row(f"{task} ({metric})", *map(_accuracy_cell, results))
    table.add_section()
    averages = [
        (comparisons[name].average_accuracy, comparisons[name].average_accuracy_standard_error)
        if len(evaluation.tasks) == len(tasks)
        else (None, None)
        for name, evaluation in measured.items()
    ]
    table.add_row(
        "average",
        *["" if mean is None else with_error(100 * mean, None if error is None else 100 * error, 1) for mean, error in averages],
        style="bold",
    )
    console.print(table)
    counts = {result.num_documents for evaluation in measured.values() for result in evaluation.tasks.values()}
    documents = f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
    console.print(f"by lm-evaluation-harness, 0-shot, {documents} documents a task; ± standard error", style="dim", soft_wrap=True)


def with_error(value: float, error: float | None, digits: int = 3, sign: str = "") -> str:
    """`3.214 ± 0.012`; the value alone where its standard error is not known."""
    shown = f"{value:{sign}.{digits}f}"
    return shown if error is None else f"{shown} ± {error:.{digits}f}"


def _loss_cell(loss: DomainLoss | None) -> str:
    return "" if loss is None else with_error(loss.nats_per_token, loss.nats_standard_error)


def difference_cell(difference: LossDifference | None, in_nats: bool) -> str:
    """`-0.214 ± 0.012`; empty where there is none."""
    if difference is None:
        return ""
    if in_nats and difference.nats_per_token is not None:
        return with_error(difference.nats_per_token, difference.nats_standard_error, sign="+")
    return with_error(difference.bits_per_byte, difference.bits_standard_error, sign="+")


def _accuracy_cell(result: TaskResult | None) -> str:
    if result is None:
        return ""
    return with_error(100 * result.accuracy, None if result.standard_error is None else 100 * result.standard_error, 1)


def _list_domains(parts: Any) -> list[str]:
    return sorted({domain for part in parts for domain in part.domains})

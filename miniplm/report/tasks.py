"""The section about zero-shot tasks: accuracies with standard errors, and differences to the baseline."""

from __future__ import annotations

import math

from markupsafe import Markup

from miniplm.evaluation.accuracies import average_accuracy
from miniplm.evaluation.baselines import find_baselines
from miniplm.records.manifests import TaskResult
from miniplm.records.run import RunRecord
from miniplm.report.content import ReportContent
from miniplm.report.markup import MISSING, explain, fill, format_count, format_error, format_name, mark_best, render


def has_tasks(content: ReportContent) -> bool:
    return bool(_list_results(content.record))


def render_tasks(content: ReportContent) -> Markup:
    """Accuracy by task in percent; the average is over the tasks that all students have."""
    record = content.record
    results, baselines = _list_results(record), find_baselines(record)
    baselines = {name: baseline for name, baseline in baselines.items() if name in results and baseline in results}
    tasks = sorted({task for measured in results.values() for task in measured})
    common = [task for task in tasks if all(task in measured for measured in results.values())]
    head = ["Task", explain("Metric", "acc_norm: the answer likeliest by the character; acc: the likeliest"), "Documents"]
    for name in results:
        head.append(fill("{}<br><small>%</small>", format_name(name)))
        if name in baselines:
            head.append(explain("difference", f"points more or less than the baseline {baselines[name]}; above 0 is better"))
    rows = []
    if common:
        averages = {name: average_accuracy({task: measured[task] for task in common}) for name, measured in results.items()}
        rows.append([fill("<b>Average of {}</b>", len(common)), "", "", *_make_cells(averages, list(results), baselines)])
    for task in tasks:
        measured = {name: values[task] for name, values in results.items() if task in values}
        some = next(iter(measured.values()))
        figures = {name: (result.accuracy, result.standard_error) for name, result in measured.items()}
        metrics = ", ".join(sorted({result.metric for result in measured.values()}))
        rows.append([format_name(task), metrics, format_count(some.num_documents), *_make_cells(figures, list(results), baselines)])
    shots = sorted({result.num_shots for measured in results.values() for result in measured.values()})
    examples = "without examples (zero-shot)" if shots == [0] else f"with {', '.join(map(str, shots))} examples"
    return render("tasks.html", head=head, rows=rows, examples=examples, num_left_out=len(tasks) - len(common))


def _list_results(record: RunRecord) -> dict[str, dict[str, TaskResult]]:
    return {
        name: student.evaluation.tasks
        for name, student in record.students.items()
        if student.evaluation is not None and student.evaluation.tasks
    }


def _make_cells(figures: dict[str, tuple[float, float | None]], names: list[str], baselines: dict[str, str]) -> list[str]:
    accuracies = [accuracy for accuracy, _ in figures.values()]
    highest = _format_percent(max(accuracies)) if len(accuracies) > 1 else None
    cells: list[str] = []
    for name in names:
        if name not in figures:
            cells += [MISSING] * (2 if name in baselines else 1)
            continue
        accuracy, error = figures[name]
        cells.append(mark_best(_format_percent(accuracy), highest) + _format_error(error))
        if name in baselines:
            other = figures.get(baselines[name])
            cells.append(_format_difference((accuracy, error), other) if other is not None else MISSING)
    return cells


def _format_percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}"


def _format_difference(own: tuple[float, float | None], other: tuple[float, float | None]) -> Markup:
    points = round(100 * (own[0] - other[0]), 1) + 0.0
    kind = "" if points == 0 else "better" if points > 0 else "worse"
    error = math.hypot(own[1], other[1]) if own[1] is not None and other[1] is not None else None
    text = f"{points:{'+' if points else ''}.1f}".replace("-", "−")
    return fill("<span class='{}'>{}</span>{}", kind, text, _format_error(error))


def _format_error(error: float | None) -> Markup:
    return format_error(None if error is None else 100 * error, digits=1)

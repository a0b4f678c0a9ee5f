"""The section about zero-shot tasks: accuracies with standard errors, and differences to the baseline."""

from __future__ import annotations

import math

from miniplm.artifacts import TaskResult
from miniplm.baselines import find_baselines
from miniplm.report.content import ReportContent
from miniplm.report.markup import MISSING, explain, format_count, format_name, make_table
from miniplm.run_record import RunRecord


def has_tasks(content: ReportContent) -> bool:
    return bool(_list_results(content.record))


def render_tasks(content: ReportContent) -> str:
    """Accuracy by task in percent; the average is over the tasks that all students have."""
    record = content.record
    results, baselines = _list_results(record), find_baselines(record)
    baselines = {name: baseline for name, baseline in baselines.items() if name in results and baseline in results}
    tasks = sorted({task for measured in results.values() for task in measured})
    common = [task for task in tasks if all(task in measured for measured in results.values())]
    head = ["Task", explain("Metric", "acc_norm: the answer likeliest by the byte; acc: the likeliest"), "Documents"]
    for name in results:
        head.append(f"{format_name(name)}<br><small>%</small>")
        if name in baselines:
            head.append(explain("difference", f"points more or less than the baseline {baselines[name]}; above 0 is better"))
    averages = {name: average_results([measured[task] for task in common]) for name, measured in results.items()} if common else {}
    rows = (
        [
            [
                f"<b>Average of {len(common)}</b>",
                "",
                "",
                *_make_cells(averages, list(results), baselines),
            ]
        ]
        if common
        else []
    )
    for task in tasks:
        measured = {name: values[task] for name, values in results.items() if task in values}
        some = next(iter(measured.values()))
        figures = {name: (result.accuracy, result.standard_error) for name, result in measured.items()}
        metrics = ", ".join(sorted({result.metric for result in measured.values()}))
        rows.append([format_name(task), metrics, format_count(some.num_documents), *_make_cells(figures, list(results), baselines)])
    left_out = (
        f" {len(tasks) - len(common)} tasks that not all students have are not in the average." if len(common) < len(tasks) else ""
    )
    shots = sorted({result.num_shots for measured in results.values() for result in measured.values()})
    examples = "without examples (zero-shot)" if shots == [0] else f"with {', '.join(map(str, shots))} examples"
    return f"""{make_table(head, rows, num_text_columns=2)}
<p class="note">Accuracy in percent, {examples}, ± one standard error over the documents of a task; ★ marks the highest of a row. The error
of a difference takes both students' answers as independent; they answer the same questions, so it is rather too large.{left_out}</p>"""


def average_results(results: list[TaskResult]) -> tuple[float, float | None]:
    """The mean accuracy over tasks and its standard error, sqrt(sum of squares) / tasks; None where a task has none."""
    mean = sum(result.accuracy for result in results) / len(results)
    errors = [result.standard_error for result in results if result.standard_error is not None]
    return mean, math.hypot(*errors) / len(results) if len(errors) == len(results) else None


def _list_results(record: RunRecord) -> dict[str, dict[str, TaskResult]]:
    return {
        name: student.evaluation.tasks
        for name, student in record.students.items()
        if student.evaluation is not None and student.evaluation.tasks
    }


def _make_cells(figures: dict[str, tuple[float, float | None]], names: list[str], baselines: dict[str, str]) -> list[str]:
    highest = max((f"{100 * accuracy:05.1f}" for accuracy, _ in figures.values()), default="")
    cells = []
    for name in names:
        if name not in figures:
            cells += [MISSING] * (2 if name in baselines else 1)
            continue
        accuracy, error = figures[name]
        text = f"{100 * accuracy:.1f}"
        if len(figures) > 1 and f"{100 * accuracy:05.1f}" == highest:
            text = f"<span class='best'>★<span class='visually-hidden'> best </span>&nbsp;{text}</span>"
        cells.append(text + _format_error(error))
        if name in baselines:
            other = figures.get(baselines[name])
            cells.append(_format_difference((accuracy, error), other) if other is not None else MISSING)
    return cells


def _format_difference(own: tuple[float, float | None], other: tuple[float, float | None]) -> str:
    points = round(100 * (own[0] - other[0]), 1) + 0.0
    kind = "" if points == 0 else "better" if points > 0 else "worse"
    error = math.hypot(own[1], other[1]) if own[1] is not None and other[1] is not None else None
    text = f"{points:{'+' if points else ''}.1f}".replace("-", "−")
    return f"<span class='{kind}'>{text}</span>{_format_error(error)}"


def _format_error(error: float | None) -> str:
    return "" if error is None else f"&nbsp;<small>±&nbsp;{100 * error:.1f}</small>"

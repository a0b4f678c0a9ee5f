"""The page of a sweep: one plot and one table over all of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from markupsafe import Markup

from miniplm import layout
from miniplm.records.sweep import load_sweep
from miniplm.report.charts import choose_ticks, draw_differences, place_ticks
from miniplm.report.markup import MISSING, fill, format_count, format_nats, format_share, render, swatch
from miniplm.run.sweep import SweptResult, SweptStudent, describe_sweep
from miniplm.storage.root import Storage

# As wide as the axis of the plot on a screen; more would lie on each other.
_MOST_LABEL_CHARS = 100


def write_sweep_page(storage: Storage, name: str) -> str:
    """Writes `sweep.html` of a sweep, one page that needs nothing else, and gives its URL. Raises `RunError` where there is none."""
    sweep = load_sweep(storage, name)
    results = describe_sweep(storage, sweep)
    head, rows = _make_table(sweep.fields, results)
    page = render(
        "sweep.html",
        name=name,
        fields=sweep.fields,
        num_runs=len(results),
        num_finished=sum(result.is_finished for result in results),
        plot=_plot(results),
        head=head,
        rows=rows,
        text_columns=len(sweep.fields) + 2,
    )
    storage.write_bytes(layout.sweep_page(name), page.encode())
    return storage.url(layout.sweep_page(name))


def _make_table(fields: Sequence[str], results: Sequence[SweptResult]) -> tuple[list[object], list[list[object]]]:
    """A row a student, of a run without any one too; each run's number leads to its report, where there is one."""
    has_tasks = any(student.average_accuracy is not None for result in results for student in result.students)
    loss = fill("held-out loss<br><small>nats a token</small>")
    accuracy = [fill("accuracy<br><small>%</small>")] if has_tasks else []
    head: list[object] = ["run", *fields, "student", "kept", "kept tokens", loss, "less its baseline", *accuracy]
    rows: list[list[object]] = []
    for number, result in enumerate(results, 1):
        # Beside the page's own folder, so that the link holds wherever the storage root is looked at.
        report = fill('<a href="../{}/report.html">{}</a>', quote(result.run_name), number) if result.is_finished else number
        for student in result.students or (SweptStudent(name="–"),):
            difference = student.difference
            rows.append(
                [
                    report,
                    *result.values.values(),
                    student.name,
                    MISSING if result.num_selected is None else format_share(result.num_selected, result.num_candidates or 1),
                    MISSING if result.num_selected_tokens is None else format_count(result.num_selected_tokens),
                    format_nats(None if student.loss is None else student.loss.nats_per_token),
                    MISSING if difference is None else _with_error(*_in_nats(student)),
                    *([_describe_accuracy(student)] if has_tasks else []),
                ]
            )
    return head, rows


def _describe_accuracy(student: SweptStudent) -> str:
    return MISSING if student.average_accuracy is None else f"{100 * student.average_accuracy:.1f}"


def _in_nats(student: SweptStudent) -> tuple[float, float | None, str]:
    """The difference, its standard error and its unit."""
    difference = student.difference
    assert difference is not None
    if difference.nats_per_token is not None:
        return difference.nats_per_token, difference.nats_standard_error, "nats a token"
    return difference.bits_per_byte, difference.bits_standard_error, "bits a byte"


def _with_error(value: float, error: float | None, unit: str) -> Markup:
    return fill("{}{} <small>{}</small>", format_nats(value, signed=True), "" if error is None else f" ± {error:.3f}", unit)


def _plot(results: Sequence[SweptResult]) -> dict[str, object] | None:
    """The differences of every student that has a baseline, run by run; None where there are none, or in several units."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    units = set()
    for place, result in enumerate(results):
        for student in result.students:
            if student.difference is not None:
                value, error, unit = _in_nats(student)
                lines.setdefault(student.name, []).append((float(place), value, error or 0.0))
                units.add(unit)
    if len(units) != 1:
        return None
    ends = [value + sign * error for points in lines.values() for _, value, error in points for sign in (-1, 1)]
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    margin = 0.08 * (high - low or 1.0)
    bounds = (-0.5, len(results) - 0.5, low - margin, high + margin)
    labels = [", ".join(result.values.values()) for result in results]
    is_numbered = sum(map(len, labels)) > _MOST_LABEL_CHARS
    if is_numbered:
        labels = [str(number) for number in range(1, len(results) + 1)]
    return {
        "svg": draw_differences(lines, bounds, "held-out loss of each run's students less that of its baseline"),
        "x_ticks": place_ticks([(float(place), label) for place, label in enumerate(labels)], *bounds[:2]),
        "y_ticks": place_ticks(choose_ticks(*bounds[2:]), *bounds[2:]),
        "students": [fill("{} {}", swatch(f"--s{index % 6}"), name) for index, name in enumerate(lines)],
        "unit": units.pop(),
        "is_numbered": is_numbered,
    }

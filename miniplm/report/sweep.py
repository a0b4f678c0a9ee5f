"""The page of a sweep: one plot and one table over all of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from markupsafe import Markup

from miniplm import layout
from miniplm.records.sweep import load_sweep
from miniplm.report.charts import choose_ticks, draw_differences, place_ticks
from miniplm.report.markup import MISSING, fill, format_count, format_error, format_nats, format_share, render, swatch
from miniplm.run.sweep import (
    SweptResult,
    SweptStudent,
    compare_sweep_in_nats,
    describe_sweep,
    has_several_texts,
    read_difference,
    read_loss,
)
from miniplm.storage.root import Storage

# As wide as the axis of the plot on a screen; more would lie on each other.
_MOST_LABEL_CHARS = 100


def write_sweep_page(storage: Storage, name: str) -> str:
    """Writes `sweep.html` of a sweep, one page that needs nothing else, and gives its URL. Raises `RunError` where there is none."""
    sweep = load_sweep(storage, name)
    results = describe_sweep(storage, sweep)
    in_nats = compare_sweep_in_nats(results)
    head, rows = _make_table(sweep.fields, results, in_nats)
    page = render(
        "sweep.html",
        name=name,
        fields=sweep.fields,
        num_runs=len(results),
        num_finished=sum(result.is_finished for result in results),
        plot=_plot(results, in_nats),
        has_several_texts=has_several_texts(results),
        head=head,
        rows=rows,
        text_columns=len(sweep.fields) + 2,
    )
    storage.write_bytes(layout.sweep_page(name), page.encode())
    return storage.url(layout.sweep_page(name))


def _make_table(fields: Sequence[str], results: Sequence[SweptResult], in_nats: bool) -> tuple[list[object], list[list[object]]]:
    """A row a student, of a run without any one too; each run's number leads to its report, where there is one."""
    has_tasks = any(student.average_accuracy is not None for result in results for student in result.students)
    unit = "nats a token" if in_nats else "bits a byte"
    loss, less = (fill("{}<br><small>{}</small>", name, unit) for name in ("held-out loss", "less its baseline"))
    accuracy = [fill("accuracy<br><small>%</small>")] if has_tasks else []
    head: list[object] = ["run", *fields, "student", "kept", "kept tokens", loss, less, *accuracy]
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
                    format_nats(None if student.loss is None else read_loss(student.loss, in_nats)[0]),
                    MISSING if difference is None else _with_error(*read_difference(difference, in_nats)),
                    *([_describe_accuracy(student)] if has_tasks else []),
                ]
            )
    return head, rows


def _describe_accuracy(student: SweptStudent) -> str:
    return MISSING if student.average_accuracy is None else f"{100 * student.average_accuracy:.1f}"


def _with_error(value: float, error: float | None) -> Markup:
    return fill("{}{}", format_nats(value, signed=True), format_error(error))


def _plot(results: Sequence[SweptResult], in_nats: bool) -> dict[str, object] | None:
    """The differences of every student that has a baseline, run by run; None where there are none."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for place, result in enumerate(results):
        for student in result.students:
            if student.difference is not None:
                value, error = read_difference(student.difference, in_nats)
                lines.setdefault(student.name, []).append((float(place), value, error or 0.0))
    if not lines:
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
        "unit": "nats a token" if in_nats else "bits a byte",
        "is_numbered": is_numbered,
    }

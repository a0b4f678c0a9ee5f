"""The section about the students: what they are, how they learned, and how they do on held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from miniplm.artifacts import DomainLoss, Evaluation
from miniplm.report.charts import choose_ticks, draw_loss_curves
from miniplm.report.content import LossCurve, ReportContent
from miniplm.report.markup import (
    MISSING,
    escape,
    explain,
    format_code,
    format_count,
    format_name,
    format_nats,
    format_size,
    make_table,
)
from miniplm.run_record import RunRecord, StudentRecord

BASELINE_METHOD = "pretrain"
_LOG_SCALE_STEPS = 200


@dataclass(frozen=True)
class StudentPair:
    """The evaluated student of the headline, and the baseline it is held against where there is one."""

    name: str
    student: StudentRecord
    evaluation: Evaluation
    baseline: StudentRecord | None


def choose_pair(record: RunRecord) -> StudentPair | None:
    """The first evaluated student of a selection with the baseline most like it; None where no such student is evaluated."""
    evaluated = {name: student for name, student in record.students.items() if student.evaluation is not None}
    name = next((name for name, student in evaluated.items() if student.method != BASELINE_METHOD), None)
    if name is None:
        return None
    student = evaluated[name]
    assert student.evaluation is not None
    baselines = [other for other in evaluated.values() if other.method == BASELINE_METHOD]
    baselines.sort(key=lambda other: (other.architecture != student.architecture, abs(other.num_tokens - student.num_tokens)))
    return StudentPair(name, student, student.evaluation, baselines[0] if baselines else None)


def render_students(content: ReportContent) -> str:
    record = content.record
    if not record.students:
        return "<p>The run has trained no students.</p>"
    head = [
        "Student",
        explain("Method", "miniplm: trained on the selection; pretrain: on sequences drawn at random from the candidates"),
        "Architecture",
        "Parameters",
        explain("Steps", "optimizer steps"),
        explain("Tokens", "tokens trained on, repeats included"),
        explain("Final training loss", "of the last step, on its own training text: not comparable between students")
        + "<br><small>nats a token</small>",
    ]
    rows = [
        [
            format_name(name),
            escape(student.method),
            format_code(student.architecture),
            format_size(student.num_parameters),
            _format_steps(student),
            format_count(student.num_tokens),
            format_nats(student.final_loss),
        ]
        for name, student in record.students.items()
    ]
    return make_table(head, rows, num_text_columns=3) + _render_curves(content.curves) + _render_evaluation(record)


def _format_steps(student: StudentRecord) -> str:
    steps = format_count(student.num_steps)
    if student.num_unmatched_steps is None:
        return steps
    return f"{steps}<br><small>of {format_count(student.num_unmatched_steps)}: FLOP-matched</small>"


def _render_curves(curves: dict[str, LossCurve]) -> str:
    if not curves:
        return "<p class='note'>There are no training metrics to draw.</p>"
    last = max(float(curve.step[-1]) for curve in curves.values())
    first = max(1.0, min(float(curve.step[0]) for curve in curves.values()))
    scale = "log" if last - first >= _LOG_SCALE_STEPS else "linear"
    left, right = (first, last) if last > first else (first - 1, last + 1)
    losses = [float(value) for curve in curves.values() for value in (curve.loss.min(), curve.loss.max())]
    margin = 0.03 * (max(losses) - min(losses)) or 0.5
    bottom, top = min(losses) - margin, max(losses) + margin
    chart = draw_loss_curves(curves, (left, right, bottom, top), scale, "Training loss of the students by optimizer step")
    legend = "".join(
        f"<li><i class='{'dashed' if index % 2 else ''}' style='--c:var(--s{index % 6})'></i>{format_name(name)}, "
        f"at the end {format_nats(float(curve.smooth_loss[-1]))}</li>"
        for index, (name, curve) in enumerate(curves.items())
    )
    y_ticks = "".join(
        f'<span style="bottom:{100 * (value - bottom) / (top - bottom):.2f}%">{label}</span>'
        for value, label in choose_ticks(bottom, top)
    )
    x_ticks = "".join(
        f'<span style="left:{100 * position:.2f}%">{label}</span>'
        for value, label in choose_ticks(left, right, scale=scale)
        for position in [_place(value, left, right, scale)]
    )
    axis = " on a logarithmic axis" if scale == "log" else ""
    return f"""<h3>Training loss</h3>
<figure><ul class="legend">{legend}</ul>
<div class="with-axis"><div class="y-axis">{y_ticks}</div><div class="plot tall">{chart}</div>
<div></div><div class="axis">{x_ticks}</div></div>
<figcaption>Training loss (nats a token) by optimizer step{axis}: the loss of each step faint, over it the mean of the steps
around it (15&nbsp;% before and after). Each student is
measured on its own training text, so a lower curve here does not mean a better model; the held-out loss below tells that.</figcaption>
</figure>"""


def _render_evaluation(record: RunRecord) -> str:
    evaluations = {name: student.evaluation for name, student in record.students.items() if student.evaluation is not None}
    if not evaluations:
        return "<h3>Held-out loss</h3>\n<p>The students have not been evaluated on held-out text.</p>"
    baseline = next((name for name in evaluations if record.students[name].method == BASELINE_METHOD), None)
    head = ["Domain", explain("Held-out text", "scored tokens of the held-out split") + "<br><small>tokens</small>"]
    for name in evaluations:
        head += [f"{format_name(name)}<br><small>nats a token</small>"]
        if baseline is not None and name != baseline:
            head += [
                explain("difference", f"nats a token less or more than the baseline {baseline}; below 0 is better")
                + "<br><small>nats a token</small>"
            ]
        head += [f"{format_name(name)}<br><small>bits a byte</small>"]
    domains = sorted({domain for evaluation in evaluations.values() for domain in evaluation.domains})
    rows = [_evaluation_row("<b>All domains</b>", {name: value.overall for name, value in evaluations.items()}, baseline)]
    rows += [
        _evaluation_row(format_name(domain), {name: value.domains.get(domain) for name, value in evaluations.items()}, baseline)
        for domain in domains
    ]
    return f"""<h3>Held-out loss</h3>
{make_table(head, rows)}
<p class="note">Loss on documents that no student was trained on; lower is better, ★ marks the lowest of a row. Differences are
against {format_name(baseline) if baseline is not None else "no baseline: none of the students was trained on random data"}{", which was trained on random data" if baseline is not None else ""}.</p>"""


def _evaluation_row(title: str, losses: dict[str, DomainLoss | None], baseline: str | None) -> list[str]:
    known = {name: loss.nats_per_token for name, loss in losses.items() if loss is not None}
    lowest = min(known.values(), default=None)
    tokens = max((loss.num_scored_tokens for loss in losses.values() if loss is not None), default=0)
    cells = [title, format_count(tokens)]
    reference = known.get(baseline) if baseline is not None else None
    for name, loss in losses.items():
        best = loss is not None and len(known) > 1 and format_nats(loss.nats_per_token) == format_nats(lowest)
        value = format_nats(loss.nats_per_token) if loss is not None else MISSING
        cells.append(f"<span class='best'>★<span class='visually-hidden'> best </span>&nbsp;{value}</span>" if best else value)
        if baseline is not None and name != baseline:
            cells.append(
                _format_difference(loss.nats_per_token - reference) if loss is not None and reference is not None else MISSING
            )
        cells.append(format_nats(loss.bits_per_byte) if loss is not None else MISSING)
    return cells


def _format_difference(difference: float) -> str:
    kind = "" if round(difference, 3) == 0 else "better" if difference < 0 else "worse"
    return f"<span class='{kind}'>{format_nats(difference, signed=True)}</span>"


def _place(value: float, left: float, right: float, scale: str) -> float:
    return log(value / left) / log(right / left) if scale == "log" else (value - left) / (right - left)

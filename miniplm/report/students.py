"""The section about the students: what they are, how they learned, and how they do on held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from miniplm.artifacts import Evaluation
from miniplm.baselines import SELECTION_METHODS, find_baselines
from miniplm.report.charts import choose_ticks, draw_loss_curves
from miniplm.report.content import LossCurve, ReportContent
from miniplm.report.heldout import render_heldout
from miniplm.report.markup import (
    escape,
    explain,
    format_code,
    format_count,
    format_name,
    format_nats,
    format_power,
    format_size,
    make_table,
)
from miniplm.run_record import RunRecord, StudentRecord
from miniplm.scaling_curves import student_flops_per_token

_LOG_SCALE_STEPS = 200

_METHODS = {
    "miniplm": "trained on the selection",
    "pretrain": "the baseline: trained on sequences drawn at random from the candidates, as many tokens as the selection has",
    "vanilla-kd": "trained on the same text as pretrain; the teacher runs along, and the student learns the teacher's distribution over "
    "the next token beside the token itself: (1 - a) cross entropy + a KL(teacher || student)",
    "seqkd": "trained on the same text as pretrain, the end of each sequence written anew by the teacher",
    "miniplm+vanilla-kd": "trained on the selection; the teacher runs along, and the student learns its distributions too, as with vanilla-kd",
}


@dataclass(frozen=True)
class StudentPair:
    """The evaluated student of the headline, and the baseline it is held against where there is one."""

    name: str
    student: StudentRecord
    evaluation: Evaluation
    baseline: StudentRecord | None


def choose_pair(record: RunRecord) -> StudentPair | None:
    """The first evaluated student of a selection with the baseline most like it; None where no such student is evaluated.

    One of method miniplm comes before one that also had the teacher in training; students that never saw the selection
    (vanilla-kd, seqkd) are none.
    """
    evaluated = [
        (SELECTION_METHODS.index(student.method), name, student.evaluation)
        for name, student in record.students.items()
        if student.method in SELECTION_METHODS and student.evaluation is not None
    ]
    if not evaluated:
        return None
    _, name, evaluation = min(evaluated, key=lambda candidate: candidate[0])
    baseline = find_baselines(record).get(name)
    return StudentPair(name, record.students[name], evaluation, record.students[baseline] if baseline is not None else None)


def render_students(content: ReportContent) -> str:
    record = content.record
    if not record.students:
        return "<p>The run has trained no students.</p>"
    head = [
        "Student",
        explain("Method", "what the student was trained on and how; each tells more when pointed at"),
        "Architecture",
        "Parameters",
        explain("Steps", "optimizer steps"),
        explain("Tokens", "tokens trained on, repeats included"),
        explain(
            "FLOPs",
            "floating-point operations of training: 6 a parameter and token, and 2 a parameter of a teacher that runs along",
        ),
        explain("Final training loss", "of the last step, on its own training text: not comparable between students")
        + "<br><small>nats a token</small>",
    ]
    rows = [
        [
            format_name(name),
            explain(escape(student.method), _METHODS[student.method]) if student.method in _METHODS else escape(student.method),
            format_code(student.architecture),
            format_size(student.num_parameters),
            _format_steps(student),
            format_count(student.num_tokens),
            format_power(student_flops_per_token(record, name) * student.num_tokens),
            format_nats(student.final_loss),
        ]
        for name, student in record.students.items()
    ]
    return make_table(head, rows, num_text_columns=3) + _render_curves(content.curves) + render_heldout(content)


def _format_steps(student: StudentRecord) -> str:
    steps = format_count(student.num_steps)
    if student.num_unmatched_steps is None:
        return steps
    meaning = (
        "as many steps as cost, teacher included, what the configured training costs without one: steps * 3 N / (3 N + N_teacher)"
    )
    return f"{steps}<br><small>of {format_count(student.num_unmatched_steps)}: {explain('FLOP-matched', meaning)}</small>"


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


def _place(value: float, left: float, right: float, scale: str) -> float:
    return log(value / left) / log(right / left) if scale == "log" else (value - left) / (right - left)

"""The section about the students: what they are, how they learned, and how they do on held-out text."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from miniplm.config.methods import METHOD_FACTS
from miniplm.evaluation.baselines import SELECTION_METHODS, find_baselines
from miniplm.evaluation.curves import student_flops_per_token
from miniplm.records.manifests import Evaluation
from miniplm.records.run import RunRecord, StudentRecord
from miniplm.report.charts import choose_ticks, draw_loss_curves, place_ticks
from miniplm.report.content import LossCurve, ReportContent
from miniplm.report.heldout import render_heldout
from miniplm.report.markup import (
    explain,
    fill,
    format_code,
    format_count,
    format_name,
    format_nats,
    format_power,
    format_size,
    render,
)

_LOG_SCALE_STEPS = 200


@dataclass(frozen=True)
class StudentPair:
    """The evaluated student of the headline, and the baseline that it is compared with, where there is one."""

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


def render_students(content: ReportContent) -> Markup:
    record, curves = content.record, content.curves
    if not record.students:
        return Markup("<p>The run has trained no students.</p>")
    rows = [
        [
            format_name(name),
            explain(student.method, METHOD_FACTS[student.method].summary) if student.method in METHOD_FACTS else student.method,
            format_code(student.architecture),
            format_size(student.num_parameters),
            _format_steps(student),
            format_count(student.num_tokens),
            format_power(student_flops_per_token(record, name) * student.num_tokens),
            format_nats(student.final_loss),
        ]
        for name, student in record.students.items()
    ]
    chart = _draw_curves(curves) if curves else {}
    return render("students.html", rows=rows, curves=curves, heldout=render_heldout(content), **chart)


def _format_steps(student: StudentRecord) -> str:
    steps = format_count(student.num_steps)
    if student.num_unmatched_steps is None:
        return steps
    meaning = (
        "as many steps as cost, teacher included, what the configured training costs without one: steps * 3 N / (3 N + N_teacher)"
    )
    matched = explain("FLOP-matched", meaning)
    return fill("{}<br><small>of {}: {}</small>", steps, format_count(student.num_unmatched_steps), matched)


def _draw_curves(curves: dict[str, LossCurve]) -> dict[str, object]:
    """The chart of training losses and the labels of its axes, as the template takes them."""
    last = max(float(curve.step[-1]) for curve in curves.values())
    first = max(1.0, min(float(curve.step[0]) for curve in curves.values()))
    scale = "log" if last - first >= _LOG_SCALE_STEPS else "linear"
    left, right = (first, last) if last > first else (first - 1, last + 1)
    losses = [float(value) for curve in curves.values() for value in (curve.loss.min(), curve.loss.max())]
    margin = 0.03 * (max(losses) - min(losses)) or 0.5
    bottom, top = min(losses) - margin, max(losses) + margin
    return {
        "svg": draw_loss_curves(curves, (left, right, bottom, top), scale, "Training loss of the students by optimizer step"),
        "x_ticks": place_ticks(choose_ticks(left, right, scale=scale), left, right, scale),
        "y_ticks": place_ticks(choose_ticks(bottom, top), bottom, top),
        "scale": scale,
    }

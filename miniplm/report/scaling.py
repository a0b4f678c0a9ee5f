"""The section about held-out loss by training compute: curves, fitted laws, what they tell for longer training, and savings."""

from __future__ import annotations

import math

from miniplm.report.charts import choose_power_ticks, choose_ticks, draw_scaling_curves
from miniplm.report.content import ReportContent
from miniplm.report.markup import (
    MISSING,
    escape,
    explain,
    format_count,
    format_error,
    format_name,
    format_nats,
    format_power,
    format_size,
    format_times,
    make_table,
)
from miniplm.scaling_curves import CurvePoint, Extrapolation, Saving, StudentCurve

# The chart goes on for one power of ten beyond the last checkpoint; the table tells what lies further.
_DRAWN_BEYOND = 10.0
_INTERVAL = "95 % interval: of a bootstrap over the residuals of the fit; another seed of training is not in it"


def has_curves(content: ReportContent) -> bool:
    """Whether a student was measured on the way, not only at its end."""
    return any(len(curve.points) > 1 for curve in content.scaling.values())


def render_scaling(content: ReportContent) -> str:
    """Chart, savings, fits and checkpoints of the students that were measured."""
    curves = {name: curve for name, curve in content.scaling.items() if curve.points}
    return _render_chart(curves) + _render_savings(curves) + _render_fits(curves) + _render_notes(curves) + _render_points(curves)


def _render_chart(curves: dict[str, StudentCurve]) -> str:
    shown = {name: [point for point in curve.points if point.is_fitted] for name, curve in curves.items()}
    flops = [point.flops for points in shown.values() for point in points]
    losses = [point.loss for points in shown.values() for point in points]
    if not flops:
        return "<p>All checkpoints that were measured lie in the warm-up.</p>"
    fits = {name: (index, curve.fit) for index, (name, curve) in enumerate(curves.items()) if curve.fit is not None}
    left, right = min(flops) / 1.25, max(flops) * (_DRAWN_BEYOND if fits else 1.25)
    ends = [fit.law.predict_loss(right) for _, fit in fits.values()]
    margin = 0.05 * (max(losses) - min([*losses, *ends])) or 0.5
    bottom, top = min([*losses, *ends]) - margin, max(losses) + margin
    chart = draw_scaling_curves(fits, (left, right, bottom, top), "Held-out loss of the students by training FLOPs")
    dots = "".join(
        _make_dot(name, index, point, (left, right, bottom, top)) for index, name in enumerate(curves) for point in shown[name]
    )
    legend = "".join(
        f"<li><b class='{_shape(index)}' style='--c:var(--s{index % 6})'></b>{format_name(name)}, "
        f"at the end {format_nats(curve.points[-1].loss)}</li>"
        for index, (name, curve) in enumerate(curves.items())
    )
    y_ticks = "".join(
        f'<span style="bottom:{100 * (value - bottom) / (top - bottom):.2f}%">{label}</span>'
        for value, label in choose_ticks(bottom, top)
    )
    x_ticks = "".join(
        f'<span style="left:{100 * _place(value, left, right):.2f}%">{label}</span>'
        for value, label in choose_power_ticks(left, right)
    )
    hidden = sum(len(curve.points) - len(shown[name]) for name, curve in curves.items())
    left_out = f" {hidden} in the warm-up of the learning rate are left out." if hidden else ""
    lines = (
        " Lines are the fitted laws L(C) = L<sub>∞</sub> + A / C<sup>α</sup>, with their 95&nbsp;% band; dashes go beyond the last "
        "checkpoint, ten times at most."
        if fits
        else ""
    )
    return f"""<figure><ul class="legend dots">{legend}</ul>
<div class="with-axis"><div class="y-axis">{y_ticks}</div><div class="plot tall">{chart}{dots}</div>
<div></div><div class="axis">{x_ticks}</div></div>
<figcaption>Held-out loss (nats a token) by training FLOPs on a logarithmic axis. Each dot is a checkpoint and tells its
figures when pointed at.{left_out}{lines} In the middle of a training the learning rate is still high, so the curves compare students of one
schedule; they do not tell what a shorter training would have reached.</figcaption>
</figure>
"""


def _make_dot(name: str, index: int, point: CurvePoint, bounds: tuple[float, float, float, float]) -> str:
    left, right, bottom, top = bounds
    error = "" if point.standard_error is None else f" ± {point.standard_error:.3f}"
    words = f"{name}, step {point.step:,}: {point.loss:.3f}{error} nats a token after {point.num_tokens:,} tokens, {point.flops:.2e} FLOPs"
    return (
        f'<b class="{_shape(index)}" style="--c:var(--s{index % 6});left:{100 * _place(point.flops, left, right):.2f}%;'
        f'bottom:{100 * (point.loss - bottom) / (top - bottom):.2f}%" title="{escape(words)}"></b>'
    )


def _shape(index: int) -> str:
    return ("dot", "dot square", "dot ring")[index % 3]


def _render_savings(curves: dict[str, StudentCurve]) -> str:
    sentences = "".join(f"<li>{_describe_saving(name, curve, curve.saving)}</li>" for name, curve in curves.items() if curve.saving)
    return f"<h3>Savings at equal loss</h3>\n<ul class='facts'>{sentences}</ul>\n" if sentences else ""


def _describe_saving(name: str, curve: StudentCurve, saving: Saving) -> str:
    student, baseline = f"<b>{format_name(name)}</b>", format_name(saving.baseline)
    reached = f"{student} reaches {format_nats(saving.loss)}&nbsp;nats a token with {format_power(curve.points[-1].flops)} FLOPs, by its fit."
    if math.isinf(saving.compute):
        return f"{reached} The baseline {baseline} never comes there: its fit stays above that loss."
    data = (
        "" if saving.data == saving.compute else f", and {_in_bold(saving.data)} times the tokens {_bracket(saving.data_interval)}"
    )
    same = " and of data" if not data else ""
    verdict = f"a saving of compute{same}" if saving.compute > 1 else "no saving of compute"
    if saving.compute_interval[0] <= 1 <= saving.compute_interval[1]:
        verdict = "which is not told apart from 1"
    followed = (
        f" For that the baseline was followed {format_times(saving.times_beyond)} times beyond its last checkpoint."
        if saving.times_beyond > 1.005
        else ""
    )
    return (
        f"{reached} The baseline {baseline} needs {_in_bold(saving.compute)} times the FLOPs to come there "
        f"{_bracket(saving.compute_interval)}{data}: {verdict}.{followed}"
    )


def _render_fits(curves: dict[str, StudentCurve]) -> str:
    fitted = {name: curve for name, curve in curves.items() if curve.fit is not None}
    if not fitted:
        return ""
    tokens = [extrapolation.num_tokens for extrapolation in next(iter(fitted.values())).extrapolations]
    head = [
        "Student",
        explain("L<sub>∞</sub>", "the loss that training comes near to and never goes below, by the fit")
        + "<br><small>nats a token</small>",
        explain("A", "how much compute it takes: the loss above L_inf at one FLOP, by the fit"),
        explain("α", "how fast the loss falls: ten times the FLOPs leave 10^-α of what is above L_inf"),
        explain("Checkpoints", "that the law was fitted to"),
        explain("Scatter", "root mean square of measured over fitted loss, less 1"),
        *(
            explain(
                f"at {format_size(number)}&nbsp;tokens",
                "the loss the law tells for that many tokens, and how far that is beyond the last checkpoint",
            )
            + "<br><small>nats a token</small>"
            for number in tokens
        ),
    ]
    rows = [_fit_row(name, curve) for name, curve in fitted.items()]
    return f"""<h3>Fitted laws</h3>
{make_table(head, rows)}
<p class="note">In brackets the {_INTERVAL}. A law fitted to a short training says little of one a hundred times as long.</p>
"""


def _fit_row(name: str, curve: StudentCurve) -> list[str]:
    fit = curve.fit
    assert fit is not None
    amplitudes = fit.find_interval(lambda law: law.amplitude)
    return [
        format_name(name),
        f"{format_nats(fit.law.loss_floor)}{_small_bracket(fit.find_interval(lambda law: law.loss_floor))}",
        f"{_format_amplitude(fit.law.amplitude)}<br><small>[{_format_amplitude(amplitudes[0])}, {_format_amplitude(amplitudes[1])}]</small>",
        f"{format_nats(fit.law.exponent)}{_small_bracket(fit.find_interval(lambda law: law.exponent))}",
        format_count(fit.num_points),
        f"{100 * fit.residual_spread:.2f}&nbsp;%",
        *(_format_extrapolation(extrapolation) for extrapolation in curve.extrapolations),
    ]


def _format_extrapolation(extrapolation: Extrapolation) -> str:
    beyond = f"<br><small>{format_times(extrapolation.times_beyond)} times beyond</small>" if extrapolation.times_beyond > 1 else ""
    return f"{format_nats(extrapolation.loss)}{_small_bracket(extrapolation.interval)}{beyond}"


def _format_amplitude(value: float) -> str:
    return format_power(value) if math.isfinite(value) else "beyond 10<sup>300</sup>"


def _render_notes(curves: dict[str, StudentCurve]) -> str:
    notes = [
        f"<li>{format_name(name)}: {escape(note)}.</li>"
        for name, curve in curves.items()
        for note in (curve.no_fit, *(curve.fit.doubts if curve.fit else ()), curve.no_saving)
        if note is not None
    ]
    return f"<h3>What to doubt</h3>\n<ul class='facts'>{''.join(notes)}</ul>\n" if notes else ""


def _render_points(curves: dict[str, StudentCurve]) -> str:
    head = ["Student", "Step", "Tokens", "FLOPs", "Held-out loss<br><small>nats a token</small>", "Fitted to"]
    rows = [
        [
            format_name(name),
            format_count(point.step),
            format_count(point.num_tokens),
            format_power(point.flops),
            format_nats(point.loss) + format_error(point.standard_error),
            "yes" if point.is_fitted and curve.fit else "no: warm-up" if not point.is_fitted else MISSING,
        ]
        for name, curve in curves.items()
        for point in curve.points
    ]
    return f"<details class='box'><summary>The measured checkpoints</summary>{make_table(head, rows)}</details>"


def _in_bold(value: float) -> str:
    return f"<b>{format_times(value)}</b>"


def _bracket(interval: tuple[float, float]) -> str:
    low, high = ("never" if math.isinf(value) else format_times(value) for value in interval)
    return f"({explain('95&nbsp;%', _INTERVAL)}: {low} to {high})"


def _small_bracket(interval: tuple[float, float]) -> str:
    return f"<br><small>[{format_nats(interval[0])}, {format_nats(interval[1])}]</small>"


def _place(value: float, left: float, right: float) -> float:
    return math.log(value / left) / math.log(right / left)

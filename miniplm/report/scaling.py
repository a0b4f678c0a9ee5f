"""The section about held-out loss by training compute: curves, fitted laws, what they tell for longer training, and savings."""

from __future__ import annotations

import math

from markupsafe import Markup

from miniplm.evaluation.curves import Extrapolation, Saving, StudentCurve
from miniplm.evaluation.scaling import ScalingFit
from miniplm.report.charts import choose_power_ticks, choose_ticks, draw_scaling_curves, place, place_ticks
from miniplm.report.content import ReportContent
from miniplm.report.markup import (
    MISSING,
    explain,
    fill,
    format_count,
    format_error,
    format_name,
    format_nats,
    format_power,
    format_size,
    format_times,
    render,
)

# The chart goes on for one power of ten beyond the last checkpoint; the table tells what lies further.
_DRAWN_BEYOND = 10.0
_INTERVAL = "95 % interval: of a bootstrap over the residuals of the fit; another seed of training is not in it"


def has_curves(content: ReportContent) -> bool:
    """Whether a student was measured on the way, not only at its end."""
    return any(len(curve.points) > 1 for curve in content.scaling.values())


def render_scaling(content: ReportContent) -> Markup:
    """Chart, savings, fits and checkpoints of the students that were measured."""
    curves = {name: curve for name, curve in content.scaling.items() if curve.points}
    fits = {name: curve.fit for name, curve in curves.items() if curve.fit is not None}
    tokens = [extrapolation.num_tokens for extrapolation in curves[next(iter(fits))].extrapolations] if fits else []
    return render(
        "scaling.html",
        curves=curves,
        text=content.record.name_text() or "held-out text",
        plot=_plot(curves),
        savings=[
            (name, curve.points[-1].flops, curve.saving, _judge_saving(curve.saving))
            for name, curve in curves.items()
            if curve.saving
        ],
        bracket=_bracket,
        extrapolation_titles=[_extrapolation_title(number) for number in tokens],
        fit_rows=[_fit_row(name, fit, curves[name].extrapolations) for name, fit in fits.items()],
        interval_words=_INTERVAL,
        notes=[
            (name, note)
            for name, curve in curves.items()
            for note in (curve.no_fit, *(curve.fit.doubts if curve.fit else ()), curve.no_saving)
            if note is not None
        ],
        point_rows=[
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
        ],
    )


def _plot(curves: dict[str, StudentCurve]) -> dict[str, object] | None:
    """The chart with its dots and the labels of its axes, as the template takes them; None where all checkpoints lie in the warm-up."""
    shown = [
        (name, index, point) for index, (name, curve) in enumerate(curves.items()) for point in curve.points if point.is_fitted
    ]
    if not shown:
        return None
    flops, losses = [point.flops for _, _, point in shown], [point.loss for _, _, point in shown]
    fits = {name: (index, curve.fit) for index, (name, curve) in enumerate(curves.items()) if curve.fit is not None}
    left, right = min(flops) / 1.25, max(flops) * (_DRAWN_BEYOND if fits else 1.25)
    ends = [fit.law.predict_loss(right) for _, fit in fits.values()]
    margin = 0.05 * (max(losses) - min([*losses, *ends])) or 0.5
    bottom, top = min([*losses, *ends]) - margin, max(losses) + margin
    return {
        "svg": draw_scaling_curves(fits, (left, right, bottom, top), "Held-out loss of the students by training FLOPs"),
        "dots": [
            (name, index, point, place(point.flops, left, right, "log"), place(point.loss, bottom, top))
            for name, index, point in shown
        ],
        "x_ticks": place_ticks(choose_power_ticks(left, right), left, right, "log"),
        "y_ticks": place_ticks(choose_ticks(bottom, top), bottom, top),
        "num_hidden": sum(len(curve.points) for curve in curves.values()) - len(shown),
    }


def _judge_saving(saving: Saving) -> str | None:
    """What a saving comes to, in words; None where the baseline never has the student's loss."""
    if math.isinf(saving.compute):
        return None
    if saving.compute_interval[0] <= 1 <= saving.compute_interval[1]:
        return "which is not told apart from 1"
    same = " and of data" if saving.data == saving.compute else ""
    return f"a saving of compute{same}" if saving.compute > 1 else "no saving of compute"


def _extrapolation_title(num_tokens: float) -> Markup:
    meaning = "the loss the law tells for that many tokens, and how far that is beyond the last checkpoint"
    return fill("{}<br><small>nats a token</small>", explain(fill("at {}&nbsp;tokens", format_size(num_tokens)), meaning))


def _fit_row(name: str, fit: ScalingFit, extrapolations: tuple[Extrapolation, ...]) -> list[str]:
    amplitudes = fit.find_interval(lambda law: law.amplitude)
    return [
        format_name(name),
        format_nats(fit.law.loss_floor) + _small_bracket(fit.find_interval(lambda law: law.loss_floor)),
        fill("{}<br><small>[{}, {}]</small>", *map(_format_amplitude, (fit.law.amplitude, *amplitudes))),
        format_nats(fit.law.exponent) + _small_bracket(fit.find_interval(lambda law: law.exponent)),
        format_count(fit.num_points),
        fill("{}&nbsp;%", f"{100 * fit.residual_spread:.2f}"),
        *map(_format_extrapolation, extrapolations),
    ]


def _format_extrapolation(extrapolation: Extrapolation) -> Markup:
    told = format_nats(extrapolation.loss) + _small_bracket(extrapolation.interval)
    if extrapolation.times_beyond <= 1:
        return told
    return told + fill("<br><small>{} times beyond</small>", format_times(extrapolation.times_beyond))


def _format_amplitude(value: float) -> Markup:
    return format_power(value) if math.isfinite(value) else Markup("beyond 10<sup>300</sup>")


def _bracket(interval: tuple[float, float]) -> Markup:
    bounds = ("never" if math.isinf(value) else format_times(value) for value in interval)
    return fill("({}: {} to {})", explain(Markup("95&nbsp;%"), _INTERVAL), *bounds)


def _small_bracket(interval: tuple[float, float]) -> Markup:
    return fill("<br><small>[{}, {}]</small>", *map(format_nats, interval))

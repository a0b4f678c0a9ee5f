"""Charts as inline SVG: matplotlib draws the shapes, the page writes the words around them.

So text keeps its size on a phone, any script or `$` in a name is harmless, and colours follow the page's theme: a
figure is drawn in placeholder colours that become CSS variables. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup

from miniplm.evaluation.scaling import ScalingFit, ScalingLaw
from miniplm.report.content import LossCurve
from miniplm.report.markup import fill

# CSS variables by the placeholder that matplotlib draws in; no two may differ only by rounding.
_VARIABLES = (
    "--ink",
    "--muted",
    "--grid",
    "--noise",
    "--threshold",
    *(f"--d{i}" for i in range(8)),
    *(f"--s{i}" for i in range(6)),
)
_PLACEHOLDERS = {name: f"#0a{index:02x}f1" for index, name in enumerate(_VARIABLES)}


def choose_ticks(low: float, high: float, num_ticks: int = 6, scale: str = "linear") -> list[tuple[float, str]]:
    """Round values within [low, high] with their labels, for an axis the page writes."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    locator: Any = LogLocator(base=10, subs=(1, 3)) if scale == "log" else MaxNLocator(num_ticks, steps=[1, 2, 2.5, 5, 10])
    values = [float(value) for value in locator.tick_values(low, high) if low <= value <= high]
    return [(value, _label_tick(value)) for value in values]


def place(value: float, low: float, high: float, scale: str = "linear") -> float:
    """Where a value lies on an axis from `low` to `high`, in percent."""
    return 100 * (math.log(value / low) / math.log(high / low) if scale == "log" else (value - low) / (high - low))


def place_ticks(ticks: Sequence[tuple[float, str]], low: float, high: float, scale: str = "linear") -> list[tuple[str, str]]:
    """Places in percent with the labels."""
    return [(f"{place(value, low, high, scale):.2f}", label) for value, label in ticks]


def draw_distribution(
    edges: np.ndarray[Any, Any], counts: np.ndarray[Any, Any], threshold: float | None, colour: str, label: str
) -> Markup:
    """One domain's histogram, edges (num_bins + 1,) and counts (num_bins,), scaled to its own height: what was kept in full colour, the rest faint, r < 0 shaded."""

    def draw(axes: Any) -> None:
        peak = max(1, int(counts.max()))
        left, right = float(edges[0]), float(edges[-1])
        if left < 0:
            axes.axvspan(left, min(0.0, right), color=_PLACEHOLDERS["--noise"], linewidth=0, zorder=-2)
        for value, _ in choose_ticks(left, right):
            axes.axvline(value, color=_PLACEHOLDERS["--grid"], linewidth=0.8, zorder=-1)
        # The threshold is an edge of a bin; half a bin of tolerance finds it whatever the rounding.
        first_kept = 0 if threshold is None else int(np.searchsorted(edges, threshold - (edges[1] - edges[0]) / 2))
        first_kept = len(counts) if threshold is None else first_kept
        for part, alpha in ((slice(0, first_kept), 0.32), (slice(first_kept, None), 1.0)):
            if counts[part].any():
                part_edges = edges[: first_kept + 1] if part.stop is not None else edges[first_kept:]
                axes.stairs(counts[part] / peak, part_edges, fill=True, color=_PLACEHOLDERS[colour], alpha=alpha, linewidth=0)
        axes.axhline(0, color=_PLACEHOLDERS["--muted"], linewidth=1)
        if threshold is not None:
            axes.axvline(threshold, color=_PLACEHOLDERS["--threshold"], linewidth=1.5, linestyle=(0, (4, 3)))
        axes.set_xlim(left, right)
        axes.set_ylim(0, 1.06)

    return _render(draw, (8, 0.7), label)


def draw_loss_curves(curves: dict[str, LossCurve], bounds: tuple[float, float, float, float], scale: str, label: str) -> Markup:
    """Training loss by step: the raw losses faint, their moving average over them; students differ in colour and dash."""
    left, right, bottom, top = bounds

    def draw(axes: Any) -> None:
        axes.set_xscale(scale)
        for value, _ in choose_ticks(left, right, scale=scale):
            axes.axvline(value, color=_PLACEHOLDERS["--grid"], linewidth=0.8, zorder=-1)
        for value, _ in choose_ticks(bottom, top):
            axes.axhline(value, color=_PLACEHOLDERS["--grid"], linewidth=0.8, zorder=-1)
        for index, curve in enumerate(curves.values()):
            colour = _PLACEHOLDERS[f"--s{index % 6}"]
            dash = ("-", (0, (5, 2)))[index % 2]
            if len(curve.step) == 1:
                axes.axhline(float(curve.loss[0]), color=colour, linewidth=2.2, linestyle=dash)
                continue
            axes.plot(curve.step, curve.loss, color=colour, linewidth=1, alpha=0.25)
            axes.plot(curve.step, curve.smooth_loss, color=colour, linewidth=2.2, linestyle=dash)
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)

    return _render(draw, (8, 4), label)


def draw_shares(
    lines: dict[str, list[tuple[float, float]]], level: float | None, mark: float, bounds: tuple[float, float], label: str
) -> Markup:
    """Shares from 0 to 1 along an axis with the given ends, one line each; faint marks at a `level` of the share and at a place of the axis."""
    left, right = bounds

    def draw(axes: Any) -> None:
        for value, _ in choose_ticks(left, right, 10):
            axes.axvline(value, color=_PLACEHOLDERS["--grid"], linewidth=0.8, zorder=-1)
        for value in (0.0, 0.25, 0.5, 0.75, 1.0):
            axes.axhline(value, color=_PLACEHOLDERS["--grid"], linewidth=0.8, zorder=-1)
        axes.axvline(mark, color=_PLACEHOLDERS["--threshold"], linewidth=1.2, linestyle=(0, (4, 3)))
        if level is not None:
            axes.axhline(level, color=_PLACEHOLDERS["--muted"], linewidth=1.2, linestyle=(0, (1, 3)))
        for index, points in enumerate(lines.values()):
            style = ("-", (0, (5, 2)))[index % 2]
            axes.plot(*zip(*points, strict=True), color=_PLACEHOLDERS[f"--s{index % 6}"], linewidth=2.2, linestyle=style)
        axes.set_xlim(left, right)
        axes.set_ylim(0, 1.03)

    return _render(draw, (8, 4), label)


def draw_differences(
    lines: dict[str, list[tuple[float, float, float]]], bounds: tuple[float, float, float, float], label: str
) -> Markup:
    """Differences with their standard errors, (place, difference, error) each, one line a student; 0 is marked."""
    left, right, bottom, top = bounds

    def draw(axes: Any) -> None:
        for value, _ in choose_ticks(bottom, top):
            axes.axhline(value, color=_PLACEHOLDERS["--grid"], linewidth=0.8, zorder=-1)
        axes.axhline(0, color=_PLACEHOLDERS["--threshold"], linewidth=1.2, linestyle=(0, (4, 3)))
        for index, points in enumerate(lines.values()):
            places, differences, errors = zip(*points, strict=True)
            style: Any = {"color": _PLACEHOLDERS[f"--s{index % 6}"], "linewidth": 2.2, "linestyle": ("-", (0, (5, 2)))[index % 2]}
            axes.errorbar(places, differences, yerr=errors, marker="o", markersize=7, capsize=5, **style)
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)

    return _render(draw, (8, 4), label)


def choose_power_ticks(low: float, high: float) -> list[tuple[float, Markup]]:
    """Powers of ten within [low, high] with their labels as HTML, every few where there are many; threefold ones where there are few."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, -(-(last - first + 1) // 7))
    ticks = [(10.0**power, fill("10<sup>{}</sup>", power)) for power in range(first, last + 1, step)]
    if len(ticks) < 3:
        threes = [(3 * 10.0**power, fill("3·10<sup>{}</sup>", power)) for power in range(first - 1, last + 1)]
        ticks = sorted([*ticks, *(tick for tick in threes if low <= tick[0] <= high)])
    return ticks


def draw_scaling_curves(fits: dict[str, tuple[int, ScalingFit]], bounds: tuple[float, float, float, float], label: str) -> Markup:
    """Fitted laws by training FLOPs, each in the colour of its index: a line over the measured stretch, dashes beyond, the 95 % band faint.

    The checkpoints are not drawn here: the page puts them over it, as each tells its figures when pointed at.
    """
    left, right, bottom, top = bounds

    def draw(axes: Any) -> None:
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        for value, _ in choose_power_ticks(left, right):
            axes.axvline(value, color=_PLACEHOLDERS["--grid"], linewidth=0.8, zorder=-1)
        for value, _ in choose_ticks(bottom, top):
            axes.axhline(value, color=_PLACEHOLDERS["--grid"], linewidth=0.8, zorder=-1)
        for index, fit in fits.values():
            colour = _PLACEHOLDERS[f"--s{index % 6}"]
            measured, beyond = np.geomspace(fit.min_flops, fit.max_flops, 50), np.geomspace(fit.max_flops, right, 30)
            if fit.samples:
                flops = np.concatenate([measured, beyond])
                band = np.array([fit.find_interval(partial(_predict_loss, flops=float(value))) for value in flops])
                edge = np.concatenate([band[:, 0], band[::-1, 1]])
                axes.fill(np.concatenate([flops, flops[::-1]]), edge, color=colour, alpha=0.13, linewidth=0)
            for flops, style in ((measured, {"linewidth": 2.2}), (beyond, {"linewidth": 1.6, "linestyle": (0, (4, 3))})):
                axes.plot(flops, [fit.law.predict_loss(float(value)) for value in flops], color=colour, **style)

    return _render(draw, (8, 4), label)


def _predict_loss(law: ScalingLaw, flops: float) -> float:
    return law.predict_loss(flops)


def _render(draw: Callable[[Any], None], size: tuple[float, float], label: str) -> Markup:
    """An SVG that stretches to its place: no text, no size, no id or style of its own that could clash on the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Without a salt matplotlib writes other ids each time, and the page would have other bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "miniplm", "path.simplify": False}):
        figure = Figure(figsize=size, facecolor="none")
        axes = figure.add_axes((0, 0, 1, 1), facecolor="none")
        draw(axes)
        axes.set_axis_off()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    assert view_box is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    # The axes fill the figure, so its edge clips as well as matplotlib's clip paths, and no id is left to clash.
    body = re.sub(r"<metadata>.*?</metadata>|<defs>.*?</defs>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r' id="[^"]*"| clip-path="[^"]*"', "", body)
    for name, placeholder in _PLACEHOLDERS.items():
        body = body.replace(placeholder, f"var({name})")
    head = fill('<svg class="chart" viewBox="{}" preserveAspectRatio="none" role="img" aria-label="{}">', view_box.group(1), label)
    return head + Markup(re.sub(r"\s*\n\s*", "\n", body).strip())


def _label_tick(value: float) -> str:
    label = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return label.replace("-", "−")

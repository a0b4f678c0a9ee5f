"""The section about selections that were tried and not made: the domains of what each would keep, along the first field of the grid."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from miniplm.records.what_if import Outcome, WhatIf
from miniplm.report.charts import choose_ticks, draw_shares, place, place_ticks
from miniplm.report.markup import MISSING, fill, format_count, format_nats, format_share, render

# Lines that can be told apart, and charts that can be looked at.
_MOST_LINES = 5
_MOST_CHARTS = 8
_OVERLAP = "overlap"


def render_what_if(what_if: WhatIf) -> Markup:
    """A chart for each combination of the other fields, and the figures of all."""
    fields = list(what_if.outcomes[0].settings)
    axis = next((field for field in fields if _is_number(what_if, field)), None)
    families: dict[tuple[tuple[str, Any], ...], list[Outcome]] = {}
    for outcome in what_if.outcomes:
        others = tuple((field, value) for field, value in outcome.settings.items() if field != axis)
        families.setdefault(others, []).append(outcome)
    domains = sorted(what_if.tokens, key=lambda domain: (-what_if.tokens[domain], domain))[:_MOST_LINES]
    charts = (
        []
        if axis is None
        else [chart for others, rows in families.items() if (chart := _draw(what_if, axis, others, rows, domains))]
    )
    total = sum(what_if.tokens.values())
    return render(
        "what_if.html",
        what_if=what_if,
        axis=axis,
        legend=[
            ("overlap with the run's own selection", False),
            *[(domain, index % 2 == 0) for index, domain in enumerate(domains)],
        ],
        charts=charts[:_MOST_CHARTS],
        fields=fields,
        rows=[_make_row(what_if, outcome, total) for outcome in what_if.outcomes],
    )


def _is_number(what_if: WhatIf, field: str) -> bool:
    values = {outcome.settings[field] for outcome in what_if.outcomes}
    return len(values) > 1 and all(isinstance(value, int | float) for value in values)


def _draw(
    what_if: WhatIf, axis: str, others: tuple[tuple[str, Any], ...], outcomes: list[Outcome], domains: list[str]
) -> dict[str, object] | None:
    met = sorted((outcome for outcome in outcomes if not outcome.problem), key=lambda outcome: outcome.settings[axis])
    if len(met) < 2:
        return None
    places = [float(outcome.settings[axis]) for outcome in met]
    lines = {_OVERLAP: list(zip(places, map(what_if.overlap, met), strict=True))}
    for domain in domains:
        lines[f"share of {domain}"] = [(at, what_if.share(outcome, domain)) for at, outcome in zip(places, met, strict=True)]
    left, right = places[0], places[-1]
    title = ", ".join(f"{field} {value}" for field, value in others)
    return {
        "title": title,
        "svg": draw_shares(lines, None, left, (left, right), f"Shares of the kept tokens by {axis}, {title}"),
        "x_ticks": place_ticks(choose_ticks(left, right, 10), left, right),
        "y_ticks": [(f"{place(share, 0.0, 1.03):.2f}", f"{100 * share:.0f} %") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
    }


def _make_row(what_if: WhatIf, outcome: Outcome, total: int) -> list[Markup | str]:
    settings: list[Markup | str] = [str(value) for value in outcome.settings.values()]
    if outcome.problem:
        return [*settings, MISSING, MISSING, MISSING, MISSING]
    threshold = MISSING if outcome.threshold is None else format_nats(outcome.threshold, signed=True)
    return [
        *settings,
        format_count(outcome.num_selected_tokens),
        format_share(outcome.num_selected_tokens, total),
        threshold,
        fill("{}&nbsp;%", f"{100 * what_if.overlap(outcome):.1f}"),
    ]

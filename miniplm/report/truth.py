"""The section that holds the selection against what is known of the documents: bars a kind, and precision and recall by ratio."""

from __future__ import annotations

from functools import partial

from markupsafe import Markup

from miniplm.records.truth import UNKNOWN, KindRow, TruthSummary
from miniplm.report.charts import choose_ticks, draw_shares, place, place_ticks
from miniplm.report.markup import MISSING, fill, format_count, format_name, format_nats, format_share, render, swatch

_CLEAN, _MIXED, _DIRT, _UNKNOWN = "--d0", "--d4", "--d1", "--d7"


def render_truth(truth: TruthSummary) -> Markup:
    """What was kept of each kind, as bars and a table, and what another ratio would do."""
    colour = partial(_choose_colour, has_clean=truth.clean_share is not None)
    total = sum(row.num_candidate_tokens for row in truth.kinds)
    rows = [
        [
            swatch(colour(row)) + (fill("<i>{}</i>", row.kind) if row.is_mixed else format_name(row.kind)),
            "clean" if row.is_clean else "",
            format_count(row.num_candidates),
            format_count(row.num_selected),
            format_share(row.num_selected, row.num_candidates),
            format_share(row.num_candidate_tokens, total),
            format_share(row.num_selected_tokens, row.num_candidate_tokens),
            format_nats(row.mean_difference_score, signed=True),
        ]
        for row in truth.kinds
    ]
    return render(
        "truth.html",
        truth=truth,
        bars=[(row, colour(row), 100 * row.num_selected / row.num_candidates) for row in truth.kinds],
        rows=rows,
        has_unknown=any(colour(row) == _UNKNOWN for row in truth.kinds),
        clean_share=_percent(truth.clean_share),
        precision=_percent(truth.precision),
        recall=_percent(truth.recall),
        curve=_draw_ratios(truth) if truth.ratios else None,
        ratio_rows=[[f"{row.ratio:g}", _percent(row.precision), _percent(row.recall)] for row in truth.ratios],
    )


def _choose_colour(row: KindRow, has_clean: bool) -> str:
    """Of dirt its own only where some text is known to be clean."""
    if row.is_clean or row.is_mixed:
        return _CLEAN if row.is_clean else _MIXED
    return _UNKNOWN if row.kind == UNKNOWN else _DIRT if has_clean else _CLEAN


def _draw_ratios(truth: TruthSummary) -> dict[str, object]:
    """The two curves with the labels of their axes and a mark at the run's own ratio."""
    lines = {
        "precision": [(row.ratio, row.precision) for row in truth.ratios if row.precision is not None],
        "recall": [(row.ratio, row.recall) for row in truth.ratios if row.recall is not None],
    }
    left = truth.ratios[0].ratio
    label = "Precision and recall of clean text by selection ratio"
    return {
        "svg": draw_shares(lines, truth.clean_share, truth.ratio, (left, 1.0), label),
        "x_ticks": place_ticks(choose_ticks(left, 1.0, 10), left, 1.0),
        "y_ticks": [(f"{place(share, 0.0, 1.03):.2f}", f"{100 * share:.0f} %") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
    }


def _percent(share: float | None) -> Markup | str:
    return MISSING if share is None else fill("{}&nbsp;%", f"{100 * share:.1f}")

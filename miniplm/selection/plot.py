"""A selection at a glance: of each domain how much was kept, and how its difference scores lie to the threshold."""

from __future__ import annotations

import io

from miniplm.records.selections import SelectionManifest

# More bars than this cannot be read; the table has them all.
_MOST_DOMAINS = 30
_QUARTILES = (2, 3, 4)


def plot_selection(manifest: SelectionManifest) -> bytes:
    """A PNG: kept shares by domain, largest first, beside the middle half and the median of their difference scores (nats a token or sequence)."""
    from matplotlib.figure import Figure  # half a second that other commands need not wait

    domains = sorted(manifest.domains.items(), key=lambda item: (-item[1].num_selected / max(item[1].num_candidates, 1), item[0]))[
        :_MOST_DOMAINS
    ]
    names = [name if len(name) <= 28 else f"{name[:27]}…" for name, _ in domains]
    rows = range(len(domains))
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(domains)), layout="constrained")
    kept, scores = figure.subplots(1, 2, sharey=True)
    kept.barh(rows, [100 * counts.num_selected / max(counts.num_candidates, 1) for _, counts in domains], color="#4477aa")
    kept.axvline(100 * manifest.num_selected / max(manifest.num_candidates, 1), color="black", linewidth=1, linestyle=":")
    kept.set(xlabel="kept, % of the candidates\n(dotted: all domains)", xlim=(0, 100), yticks=list(rows), yticklabels=names)
    kept.invert_yaxis()
    for row, (_, counts) in zip(rows, domains, strict=True):
        low, median, high = (counts.difference_score_quantiles[index] for index in _QUARTILES)
        scores.plot([low, high], [row, row], color="#4477aa", linewidth=5, solid_capstyle="butt")
        scores.plot([median], [row], marker="|", color="black", markersize=10)
        if manifest.threshold is None and counts.threshold is not None:
            scores.plot([counts.threshold], [row], marker="|", color="#cc3311", markersize=10)
    if manifest.threshold is not None:
        scores.axvline(manifest.threshold, color="#cc3311", linewidth=1)
    unit = "sequence" if manifest.score == "sum" else "token"
    scores.set(xlabel=f"difference score, nats a {unit}:\nmiddle half and median (red: threshold)")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()

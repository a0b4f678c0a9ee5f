"""The section about the proxy that predicted the scores of a run."""

from __future__ import annotations

from markupsafe import Markup

from miniplm.report.markup import format_code, format_count, render
from miniplm.run.proxy_summary import ProxySummary


def render_proxy(summary: ProxySummary) -> Markup:
    """What was predicted, how well, and what that saved."""
    manifest, flops = summary.manifest, summary.flops
    rows = [
        (
            "Labelled sequences",
            "those that the teacher scored, drawn by their ids",
            f"{format_count(manifest.num_labels)} ({manifest.share:.1%})",
        ),
        *_list_measured(summary),
        ("FLOPs of scoring", "teacher on its share, reference and proxy on all candidates", f"{flops.with_proxy:.3g}"),
        ("FLOPs without it", "teacher and reference on all candidates", f"{flops.without_proxy:.3g} ({flops.saved:.0%} saved)"),
        *(
            [("Hours saved", "the teacher's on the rest, at the rate of its share, less the proxy's", f"{summary.hours_saved:.2f}")]
            if summary.hours_saved is not None
            else []
        ),
    ]
    return render("proxy.html", manifest=manifest, proxy_id=format_code(manifest.proxy_id), rows=rows)


def _list_measured(summary: ProxySummary) -> list[tuple[str, str, str]]:
    fidelity = summary.measured
    allowed = ("Least overlap allowed", "scoring.proxy.min_overlap", f"{summary.min_overlap:.1%}")
    if fidelity is None:
        return [("Overlap", f"cannot be measured any more: {summary.problem}", "-"), allowed]
    return [
        (
            "Overlap",
            "share of what full scores select of the labelled sequences that the proxy selects too, each predicted by a fit that had not seen it",
            f"{fidelity.overlap:.1%} ± {fidelity.overlap_error:.1%}",
        ),
        ("By chance", "the overlap of a random selection of as many", f"{fidelity.chance:.1%}"),
        allowed,
        ("Spearman", "rank correlation of predicted and full scores", f"{fidelity.spearman:.3f}"),
    ]

"""The section about the proxy that predicted the scores of a run."""

from __future__ import annotations

from markupsafe import Markup

from miniplm.report.markup import MISSING, fill, format_code, format_count, format_power, format_seconds, format_share, render
from miniplm.run.proxy_summary import ProxySummary

_Row = tuple[str, str, Markup | str]


def render_proxy(summary: ProxySummary) -> Markup:
    """What was predicted, how well, and what that saved."""
    manifest, flops = summary.manifest, summary.flops
    rows = [
        (
            "Labelled sequences",
            "those that the teacher scored, drawn by their ids",
            fill("{} ({})", format_count(manifest.num_labels), format_share(manifest.share, 1)),
        ),
        *_list_measured(summary),
        ("FLOPs of scoring", "teacher on its share, reference and proxy on all candidates", format_power(flops.with_proxy)),
        ("FLOPs without it", "teacher and reference on all candidates", format_power(flops.without_proxy)),
        _name_change("FLOPs", "of what scoring takes without it", flops.saved, format_share(abs(flops.saved), 1)),
        *([] if summary.hours_saved is None else [_describe_time(summary.hours_saved)]),
    ]
    return render("proxy.html", manifest=manifest, problem=summary.problem, proxy_id=format_code(manifest.proxy_id), rows=rows)


def _describe_time(hours: float) -> _Row:
    return _name_change(
        "Time", "the teacher's on the rest, at the rate of its share, less the proxy's", hours, format_seconds(3600 * abs(hours))
    )


def _name_change(what: str, meaning: str, change: float, size: Markup | str) -> _Row:
    """What a proxy saves, or where it does not pay what it costs more."""
    return (f"{what} saved" if change >= 0 else f"{what} that it takes more", meaning, size)


def _list_measured(summary: ProxySummary) -> list[_Row]:
    fidelity = summary.measured
    allowed = ("Least overlap allowed", "scoring.proxy.min_overlap", format_share(summary.min_overlap, 1))
    if fidelity is None:
        return [("Overlap", "with what full scores select of the labelled sequences", MISSING), allowed]
    return [
        (
            "Overlap",
            "share of what full scores select of the labelled sequences that the proxy selects too, each predicted by a fit that had not seen it",
            fill("{}&nbsp;±&nbsp;{}", format_share(fidelity.overlap, 1), format_share(fidelity.overlap_error, 1)),
        ),
        ("By chance", "the overlap of a random selection of as many", format_share(fidelity.chance, 1)),
        allowed,
        ("Spearman", "rank correlation of predicted and full scores", f"{fidelity.spearman:.3f}"),
    ]

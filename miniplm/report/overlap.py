"""The section about copies of what was kept, and texts that students are measured on in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from miniplm.records.overlap import CopiesSummary, OverlapSummary
from miniplm.report.markup import format_count, format_name, format_share, render


def render_overlap(overlap: OverlapSummary, rule: Mapping[str, Any]) -> Markup:
    """Copies among the kept and all candidates, and the words that evaluation texts share with them; `rule` is what the selection goes by beside scores."""
    found = overlap.contamination
    return render(
        "overlap.html",
        copies=overlap.copies,
        copy_rows=[] if overlap.copies is None else _list_copies(overlap.copies),
        found=found,
        problem=overlap.problem,
        drops_copies=rule.get("duplicates") == "best",
        drops_contaminated=rule.get("contamination") == "drop",
        source_rows=[]
        if found is None
        else [
            [
                format_name(source.name),
                *map(format_count, (source.num_items, source.num_short, source.num_found, source.num_found_kept)),
            ]
            for source in found.sources
        ],
    )


def _list_copies(copies: CopiesSummary) -> list[list[Markup | str]]:
    return [
        [
            name,
            format_count(share.num_exact),
            format_count(share.num_near),
            format_count(share.repeated_tokens),
            format_share(share.repeated_tokens, share.num_tokens),
        ]
        for name, share in (("What was kept", copies.kept), ("All candidates", copies.candidates))
    ]

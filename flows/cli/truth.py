"""What was kept of each kind of document, as tables for people."""

from __future__ import annotations

from rich.console import Console

from flows.cli.tables import make_table
from miniplm.errors import list_offenders
from miniplm.records.truth import UNKNOWN, TruthSummary

_SHOWN_RATIOS = tuple(step / 10 for step in range(1, 10))


def print_truth(console: Console, truth: TruthSummary) -> None:
    """Each kind of sequence with what was kept of it; precision and recall of clean text, here and at other ratios."""
    table = make_table(f"Kept by what the documents are ({truth.field})", "kind", "kept", "share", "of tokens", "difference")
    for row in truth.kinds:
        table.add_row(
            f"{row.kind} *" if row.is_clean else row.kind,
            f"{row.num_selected:,} of {row.num_candidates:,}",
            f"{row.num_selected / row.num_candidates:.0%}",
            f"{row.num_selected_tokens / max(row.num_candidate_tokens, 1):.0%}",
            f"{row.mean_difference_score:+.3f}",
        )
    console.print(table)
    console.print(
        f"kind: of sequences, all of whose documents are of it; difference: mean of reference - teacher, {truth.score_unit}; * clean",
        style="dim",
        soft_wrap=True,
    )
    if truth.num_unknown:
        console.print(
            f"{truth.num_unknown:,} of {truth.num_records:,} records have no {truth.field}: unknown", style="yellow", soft_wrap=True
        )
    if truth.gone_files:
        console.print(
            f"their labels are not known, as the files are not there any more: {list_offenders(truth.gone_files)}",
            style="yellow",
            soft_wrap=True,
        )
    known = list_offenders([kind for kind in truth.records if kind != UNKNOWN])
    if truth.clean_share is None or truth.recall is None:
        console.print(
            f"no candidate is labelled {' or '.join(truth.clean)}, so there is no precision or recall; set corpus.clean to labels of clean text among "
            f"{known}",
            style="yellow",
            soft_wrap=True,
        )
        return
    if truth.unmet_clean:
        console.print(
            f"corpus.clean names what no record is labelled: {list_offenders(truth.unmet_clean)}; labels are {known}",
            style="yellow",
            soft_wrap=True,
        )
    console.print(
        f"clean text: precision {_share(truth.precision)} (random text: {_share(truth.clean_share)}), recall {_share(truth.recall)}, by tokens",
        style="bold",
        soft_wrap=True,
    )
    curve = make_table("What another ratio would do", "ratio", "precision", "recall")
    for point in truth.ratios:
        if point.ratio in _SHOWN_RATIOS:
            curve.add_row(
                f"{point.ratio:g}",
                _share(point.precision),
                _share(point.recall),
                style="bold" if point.ratio == truth.ratio else None,
            )
    console.print(curve)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"

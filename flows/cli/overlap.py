"""Copies and evaluation texts among what was kept, as tables for people."""

from __future__ import annotations

from rich.console import Console

from flows.cli.tables import make_table
from miniplm.records.overlap import ContaminationSummary, CopiedShare, CopiesSummary, OverlapSummary

_MOST_SHOWN = 5


def print_overlap(console: Console, summary: OverlapSummary, run_name: str) -> None:
    """Both in a line each, and how more is told; where nobody looked, how to."""
    if summary.copies is None:
        console.print(f"copies were not looked for: `miniplm inspect {run_name} --duplicates` does", style="dim", soft_wrap=True)
    else:
        kept, candidates = summary.copies.kept, summary.copies.candidates
        console.print(
            f"copies: {_describe(kept)} of what was kept, {_describe(candidates)} of all candidates"
            + (f" (`miniplm inspect {run_name} --duplicates`)" if kept.num_exact + kept.num_near else ""),
            soft_wrap=True,
        )
    found = summary.contamination
    if summary.problem:
        console.print(f"evaluation texts were not looked for: {summary.problem}", style="yellow", soft_wrap=True)
    elif found is None:
        console.print(
            f"evaluation texts were not looked for: `miniplm inspect {run_name} --contamination` does", style="dim", soft_wrap=True
        )
    elif found.sources:
        told = ", ".join(f"{source.num_found_kept:,} of {source.num_items:,} of {source.name}" for source in found.sources)
        console.print(
            f"evaluation texts in what was kept: {told}; in {found.num_kept:,} sequences"
            + (f" (`miniplm inspect {run_name} --contamination`)" if found.num_kept else ""),
            soft_wrap=True,
        )


def _describe(share: CopiedShare) -> str:
    percent = 100 * share.repeated_tokens / max(share.num_tokens, 1)
    return f"{share.num_exact + share.num_near:,} documents ({percent:.1f}% of the tokens are read once more)"


def print_copies(console: Console, copies: CopiesSummary) -> None:
    """How many documents have a copy beside them, and the beginnings of those that were kept most often."""
    table = make_table("Copies", "among", "exact", "near", "read once more", "of the tokens")
    for name, share in (("what was kept", copies.kept), ("all candidates", copies.candidates)):
        table.add_row(
            name,
            f"{share.num_exact:,}",
            f"{share.num_near:,}",
            f"{share.repeated_tokens:,} tokens",
            f"{100 * share.repeated_tokens / max(share.num_tokens, 1):.2f}%",
        )
    console.print(table)
    console.print(
        "exact: documents with a copy token for token; near: with one that shares 0.8 of its 5-token shingles; read once more: their tokens "
        "beyond one of each group. selection.duplicates=best keeps the best of each",
        style="dim",
        soft_wrap=True,
    )
    if copies.num_crowded:
        console.print(
            f"{copies.num_crowded:,} documents are like too many others to be compared with each", style="yellow", soft_wrap=True
        )
    for group in copies.groups:
        console.print(
            f"\n{group.num_kept:,} of {group.num_documents:,} kept, document {group.document_id}:", style="bold", soft_wrap=True
        )
        console.print(group.text, soft_wrap=True)


def print_contamination(console: Console, found: ContaminationSummary) -> None:
    """How much of each text that students are measured on is among the candidates, with the words."""
    if not found.sources:
        console.print("no text to look for: the run has neither evaluation.tasks nor held-out text", style="yellow")
        return
    table = make_table("Evaluation texts", "source", "items", "too short", "in candidates", "in what was kept")
    for source in found.sources:
        table.add_row(
            source.name, f"{source.num_items:,}", f"{source.num_short:,}", f"{source.num_found:,}", f"{source.num_found_kept:,}"
        )
    console.print(table)
    console.print(
        f"items that share 13 words in a row with a candidate; too short: of fewer words. {found.num_sequences:,} candidate sequences hold some, "
        f"{found.num_kept:,} of those kept. selection.contamination=drop leaves them out",
        style="dim",
        soft_wrap=True,
    )
    for text in found.texts[:_MOST_SHOWN]:
        console.print(
            f"\nsequence {text.sequence_id}{'' if text.is_kept else ' (not kept)'}, {text.num_words:,} words of {text.source}, {text.place}:",
            style="bold",
            soft_wrap=True,
        )
        console.print(text.text, soft_wrap=True)

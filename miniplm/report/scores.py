"""The sections about difference scores: their distribution, what was kept of each domain, single sequences."""

from __future__ import annotations

from markupsafe import Markup

from miniplm.records.selections import DomainSelection, SelectionManifest
from miniplm.report.charts import choose_ticks, draw_distribution, place_ticks
from miniplm.report.content import ReportContent
from miniplm.report.markup import cut_text, format_count, format_name, format_nats, format_share, render, swatch
from miniplm.selection.ranking import QUANTILES

_NOT_SELECTED = Markup("<p>The run has not come to the selection yet.</p>")
_MEDIAN = QUANTILES.index(0.5)
_NUM_SNIPPET_CHARACTERS = 400
_NUM_SNIPPET_LINES = 8


def domain_colour(selection: SelectionManifest, domain: str) -> str:
    """The CSS variable of a domain, the same all over the page; the ninth domain has the colour of the first again."""
    return f"--d{sorted(selection.domains).index(domain) % 8}" if domain in selection.domains else "--muted"


def render_distribution(content: ReportContent) -> Markup:
    """One histogram a domain over a common axis."""
    selection, histogram = content.selection, content.histogram
    if selection is None or histogram is None:
        return _NOT_SELECTED
    low, high = float(histogram.edges[0]), float(histogram.edges[-1])
    rows = []
    # Of each domain by itself where it was ranked so; none where something else than the difference decided.
    by_domain = selection.within == "domain" or "mix" in selection.rule
    for domain, counts in sorted(selection.domains.items()):
        colour = domain_colour(selection, domain)
        threshold = (counts.threshold if by_domain else selection.threshold) if selection.ranks_by_difference else None
        label = f"Distribution of difference scores of the domain {domain}"
        chart = draw_distribution(histogram.edges, histogram.counts[domain], threshold, colour, label)
        rows.append((domain, colour, chart, counts.difference_score_quantiles[_MEDIAN], counts.num_candidates))
    return render(
        "distribution.html",
        selection=selection,
        score_unit=selection.score_unit,
        by_domain=by_domain,
        is_tuned=content.record.config.get("teacher", {}).get("tuned_on") is not None,
        threshold_place=None if selection.threshold is None else 100 * (selection.threshold - low) / (high - low),
        rows=rows,
        ticks=place_ticks(choose_ticks(low, high), low, high),
        num_outside=histogram.num_below + histogram.num_above,
    )


def render_domains(content: ReportContent) -> Markup:
    """The kept share of each domain's tokens as bars, then all figures as a table."""
    selection = content.selection
    if selection is None:
        return _NOT_SELECTED
    total = _add_up(selection)
    coloured = [(domain, domain_colour(selection, domain), counts) for domain, counts in sorted(selection.domains.items())]
    rows = [[swatch(colour) + format_name(domain), *_domain_cells(counts, total)] for domain, colour, counts in coloured]
    return render(
        "domains.html",
        by_share=sorted(coloured, key=lambda row: -_percent_kept(row[2])),
        percent_kept=_percent_kept,
        total=total,
        rows=[*rows, [Markup("<b>All domains</b>"), *_domain_cells(total, total)]],
        units=selection.units,
        score_unit=selection.score_unit,
    )


def _percent_kept(counts: DomainSelection) -> float:
    return 100 * counts.num_selected_tokens / max(1, counts.num_candidate_tokens)


def _domain_cells(counts: DomainSelection, total: DomainSelection) -> list[str]:
    quantiles = dict(zip(QUANTILES, counts.difference_score_quantiles, strict=False))
    return [
        format_count(counts.num_candidates),
        format_count(counts.num_selected),
        format_count(counts.num_candidate_tokens),
        format_count(counts.num_selected_tokens),
        format_share(counts.num_selected_tokens, counts.num_candidate_tokens),
        format_share(counts.num_candidate_tokens, total.num_candidate_tokens),
        format_share(counts.num_selected_tokens, total.num_selected_tokens),
        format_nats(counts.mean_teacher_nll),
        format_nats(counts.mean_reference_nll),
        *(format_nats(quantiles.get(level)) for level in (0.1, 0.5, 0.9)),
    ]


def _add_up(selection: SelectionManifest) -> DomainSelection:
    domains = list(selection.domains.values())
    num_candidates = sum(domain.num_candidates for domain in domains)
    return DomainSelection(
        num_candidates=num_candidates,
        num_selected=sum(domain.num_selected for domain in domains),
        num_candidate_tokens=sum(domain.num_candidate_tokens for domain in domains),
        num_selected_tokens=sum(domain.num_selected_tokens for domain in domains),
        mean_teacher_nll=sum(domain.mean_teacher_nll * domain.num_candidates for domain in domains) / max(1, num_candidates),
        mean_reference_nll=sum(domain.mean_reference_nll * domain.num_candidates for domain in domains) / max(1, num_candidates),
        difference_score_quantiles=(),
    )


def render_sequences(content: ReportContent) -> Markup:
    """The sequences at both ends of the ranking, decoded."""
    selection = content.selection
    if selection is None:
        return _NOT_SELECTED
    # Of a selection by documents too: it is sequences that are shown.
    num_candidates = selection.num_candidates
    if selection.unit == "document" and content.corpus is not None:
        num_candidates = sum(shard.num_sequences for shard in content.corpus.split_shards("candidate"))
    columns = [
        (
            title,
            [
                (
                    rank,
                    sequence,
                    domain_colour(selection, sequence.domain),
                    cut_text(sequence.text, _NUM_SNIPPET_CHARACTERS, _NUM_SNIPPET_LINES),
                )
                for rank, sequence in zip(ranks, sequences, strict=False)
            ],
        )
        for title, ranks, sequences in (
            ("most wanted", range(1, num_candidates + 1), content.most_wanted),
            ("least wanted", range(num_candidates, 0, -1), content.least_wanted),
        )
    ]
    return render("sequences.html", num_candidates=num_candidates, columns=columns)

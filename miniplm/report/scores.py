"""The sections about difference scores: their distribution, what was kept of each domain, single sequences."""

from __future__ import annotations

from miniplm.artifacts import DomainSelection, SelectionManifest
from miniplm.inspection import InspectedSequence
from miniplm.report.charts import choose_ticks, draw_distribution
from miniplm.report.content import ReportContent, ScoreHistogram
from miniplm.report.markup import (
    cut_text,
    escape,
    explain,
    format_count,
    format_name,
    format_nats,
    format_share,
    make_table,
)
from miniplm.selection.ranking import QUANTILES

_NOT_SELECTED = "<p>The run has not come to the selection yet.</p>"
_MEDIAN = QUANTILES.index(0.5)
_NUM_SNIPPET_CHARACTERS = 400
_NUM_SNIPPET_LINES = 8


def score_unit(selection: SelectionManifest) -> str:
    return "nats a token" if selection.score == "mean" else "nats a sequence"


def domain_colour(domains: list[str], domain: str) -> str:
    """The CSS variable of a domain, the same all over the page; the ninth domain has the colour of the first again."""
    return f"--d{sorted(domains).index(domain) % 8}"


def render_distribution(content: ReportContent) -> str:
    """One histogram a domain over a common axis."""
    selection, histogram = content.selection, content.histogram
    if selection is None or histogram is None:
        return _NOT_SELECTED
    low, high = float(histogram.edges[0]), float(histogram.edges[-1])
    rows = "\n".join(_render_histogram(selection, histogram, domain) for domain in sorted(selection.domains))
    ticks = "".join(f'<span style="left:{_percent(value, low, high)}">{label}</span>' for value, label in choose_ticks(low, high))
    above = ""
    if selection.threshold is not None:
        position = (selection.threshold - low) / (high - low)
        side = "left" if position > 0.7 else "right"
        words = f"kept from r = {format_nats(selection.threshold)} →"
        above = f'<div class="row"><div class="above"><span class="{side}" style="left:{100 * position:.2f}%">{words}</span></div></div>'
    of_each = " of their domain" if selection.within == "domain" else ""
    outside = histogram.num_below + histogram.num_above
    beyond = f" Far outliers outside the axis, not drawn: {format_count(outside)}." if outside else ""
    return f"""<p>The difference score r of a sequence is how much better the teacher predicts it than the small reference does, in
{score_unit(selection)}. The {format_count(selection.num_selected)} sequences with the highest r{of_each} were kept.</p>
<figure class="ridges">{above}
{rows}
<div class="row"><div class="axis">{ticks}</div></div>
<figcaption>Number of sequences by r ({score_unit(selection)}), each domain scaled to its own height. Full colour: kept. Faint:
dropped. Tinted ground: r below 0, where the teacher does worse than the reference. Dashed line: the threshold.{beyond}</figcaption>
</figure>"""


def _render_histogram(selection: SelectionManifest, histogram: ScoreHistogram, domain: str) -> str:
    counts = selection.domains[domain]
    colour = domain_colour(list(selection.domains), domain)
    label = f"Distribution of difference scores of the domain {domain}"
    threshold = counts.threshold if selection.within == "domain" else selection.threshold
    chart = draw_distribution(histogram.edges, histogram.counts[domain], threshold, colour, escape(label))
    median = format_nats(counts.difference_score_quantiles[_MEDIAN])
    return (
        f'<div class="row"><div class="name">{_swatch(colour)}{format_name(domain)}</div><div class="plot">{chart}</div>'
        f'<div class="value"><span>median <b>{median}</b></span> <span>{format_count(counts.num_candidates)} sequences</span></div></div>'
    )


def render_domains(content: ReportContent) -> str:
    """The kept share of each domain's tokens as bars, then all figures as a table."""
    selection = content.selection
    if selection is None:
        return _NOT_SELECTED
    total = _add_up(selection)
    by_share = sorted(
        selection.domains.items(), key=lambda item: (-item[1].num_selected_tokens / max(1, item[1].num_candidate_tokens), item[0])
    )
    overall = 100 * total.num_selected_tokens / max(1, total.num_candidate_tokens)
    bars = "\n".join(
        f'<div class="row"><div class="name">{_swatch(colour)}{format_name(domain)}</div>'
        f'<div class="bar" role="img" aria-label="{share} of its tokens kept"><i style="--c:var({colour});width:{width:.2f}%"></i>'
        f'<s style="left:{overall:.2f}%"></s></div>'
        f'<div class="value"><span><b>{share}</b> kept</span></div></div>'
        for domain, counts in by_share
        for colour in [domain_colour(list(selection.domains), domain)]
        for share in [format_share(counts.num_selected_tokens, counts.num_candidate_tokens)]
        for width in [100 * counts.num_selected_tokens / max(1, counts.num_candidate_tokens)]
    )
    head = [
        "Domain",
        "Candidates<br><small>sequences</small>",
        "Kept<br><small>sequences</small>",
        "Candidates<br><small>tokens</small>",
        "Kept<br><small>tokens</small>",
        explain("Kept share", "kept tokens / candidate tokens of the domain"),
        explain("Share before", "of all candidate tokens, how many are of this domain"),
        explain("Share after", "of all kept tokens, how many are of this domain"),
        explain("Teacher NLL", "mean over the domain's candidate sequences, nats a token; lower is better"),
        explain("Reference NLL", "mean over the domain's candidate sequences, nats a token; lower is better"),
        explain("r at 10&nbsp;%", f"a tenth of the domain's sequences have a lower difference score; {score_unit(selection)}"),
        explain("r at 50&nbsp;%", f"the median difference score; {score_unit(selection)}"),
        explain("r at 90&nbsp;%", f"a tenth of the domain's sequences have a higher difference score; {score_unit(selection)}"),
    ]
    rows = [
        [
            _swatch(domain_colour(list(selection.domains), domain)) + format_name(domain),
            *_domain_cells(selection.domains[domain], total),
        ]
        for domain in sorted(selection.domains)
    ]
    rows.append(["<b>All domains</b>", *_domain_cells(total, total)])
    return f"""<figure>{bars}
<figcaption>Kept share of each domain's candidate tokens. Dashed line: all domains together, {overall:.1f}&nbsp;%. A domain left of it lost
weight in the corpus, one right of it gained.</figcaption></figure>
{make_table(head, rows, f"NLL in nats a token, means over candidate sequences; difference score r in {score_unit(selection)}.")}"""


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


def render_sequences(content: ReportContent) -> str:
    """The sequences at both ends of the ranking, decoded."""
    selection = content.selection
    if selection is None:
        return _NOT_SELECTED
    domains = list(selection.domains)
    columns = "\n".join(
        f"<div><h3>{title}</h3>\n"
        + "\n".join(_render_sequence(number, sequence, domains) for number, sequence in numbered)
        + "</div>"
        for title, numbered in (
            (f"The {len(content.most_wanted)} most wanted", enumerate(content.most_wanted, start=1)),
            (
                f"The {len(content.least_wanted)} least wanted",
                zip(range(selection.num_candidates, 0, -1), content.least_wanted, strict=False),
            ),
        )
    )
    return f"""<p>Text from both ends of the ranking, as the models read it. The number is the place in the ranking of all
{format_count(selection.num_candidates)} candidate sequences.</p>
<div class="columns">{columns}</div>"""


def _render_sequence(rank: int, sequence: InspectedSequence, domains: list[str]) -> str:
    snippet = cut_text(sequence.text, _NUM_SNIPPET_CHARACTERS, _NUM_SNIPPET_LINES)
    whole = ""
    if len(snippet) < len(sequence.text):
        whole = (
            f"<details><summary>show all {format_count(len(sequence.text))} characters</summary>"
            f'<pre dir="auto">{escape(sequence.text)}</pre></details>'
        )
        snippet += "…"
    colour = domain_colour(domains, sequence.domain) if sequence.domain in domains else "--muted"
    badge = "<span class='badge kept'>kept</span>" if sequence.selected else "<span class='badge'>dropped</span>"
    first = sequence.documents[0] if sequence.documents else None
    origin = (
        f"begins in record {first.record_number} of {first.path}"
        if first is not None and first.path is not None
        else "origin not known"
    )
    return f"""<article class="sequence"><header><span class="meta">{format_count(rank)}.</span>
<b>{explain(f"r = {format_nats(sequence.difference_score, signed=True)}", "difference score: reference NLL minus teacher NLL")}</b>
<span>{_swatch(colour)}{format_name(sequence.domain)}</span> {badge}
<span class="meta"><abbr title="{escape(origin)}">sequence&nbsp;{sequence.sequence_id}</abbr> ·
{format_count(sequence.num_tokens)}&nbsp;tokens · NLL teacher&nbsp;{format_nats(sequence.teacher_nll)},
reference&nbsp;{format_nats(sequence.reference_nll)} nats&nbsp;a&nbsp;token</span></header>
<pre dir="auto">{escape(snippet)}</pre>{whole}</article>"""


def _swatch(colour: str) -> str:
    return f'<span class="swatch" style="--c:var({colour})"></span>'


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * (value - low) / (high - low):.2f}%"

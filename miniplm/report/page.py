"""The report page: what a person reads to know what a run kept, what that was worth, and how it was made."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from miniplm import layout
from miniplm.evaluation.advice import advise
from miniplm.records.run import load_run
from miniplm.records.texts import MeasuredText
from miniplm.report import diversity, overlap, proxy, scaling, scores, setup, students, tasks, truth, what_if
from miniplm.report.content import ReportContent, gather_content
from miniplm.report.markup import format_count, format_nats, render
from miniplm.storage.root import Storage


def write_report(storage: Storage, run_name: str) -> str:
    """Writes `report.html` of a run, one page that needs nothing else, and gives its URL.

    Shows what the run has so far; the same state of the storage gives the same bytes. Raises `RunError` where
    there is no such run, and as the inspection does where its artifacts are damaged.
    """
    content = gather_content(storage, load_run(storage, run_name))
    storage.write_bytes(layout.run_report(run_name), render_page(content).encode())
    return storage.url(layout.run_report(run_name))


def render_page(content: ReportContent) -> Markup:
    """The whole page as HTML."""
    record, selection, pair = content.record, content.selection, students.choose_pair(content.record)
    sections = [
        *_list_truth(content),
        ("pipeline", "Pipeline", render("pipeline.html", stages=record.stages)),
        *([("proxy", "The proxy that predicted scores", proxy.render_proxy(content.proxy))] if content.proxy else []),
        ("scores", "Difference scores", scores.render_distribution(content)),
        ("domains", "What was kept of each domain", scores.render_domains(content)),
        *([("diversity", "How varied and how hard", diversity.render_diversity(content.diversity))] if content.diversity else []),
        *(
            [
                (
                    "overlap",
                    "Copies and evaluation texts",
                    overlap.render_overlap(content.sharing, {} if selection is None else selection.rule),
                )
            ]
            if content.sharing
            else []
        ),
        *([("what-if", "What other selections would keep", what_if.render_what_if(content.what_if))] if content.what_if else []),
        ("students", "Students", students.render_students(content)),
        *([("scaling", "Loss by training compute", scaling.render_scaling(content))] if scaling.has_curves(content) else []),
        *([("tasks", "Zero-shot tasks", tasks.render_tasks(content))] if tasks.has_tasks(content) else []),
        ("sequences", "The most and the least wanted text", scores.render_sequences(content)),
        ("records", "Where the records went", setup.render_counts(content)),
        ("setup", "What was run", setup.render_setup(content)),
        ("words", "Words", render("words.html")),
    ]
    return render(
        "page.html",
        record=record,
        headline=render_headline(content),
        pair=pair,
        advice=[] if pair is None else advise(record, selection, content.comparisons.get(pair.name), content.truth),
        selection=selection,
        score_unit=None if selection is None else selection.score_unit,
        sections=sections,
    )


def _list_truth(content: ReportContent) -> list[tuple[str, str, Markup]]:
    """What was kept of each kind, or why that is not told of a run that names labels."""
    selection = content.selection
    if content.truth is not None:
        told = truth.render_truth(content.truth)
    elif selection is not None and selection.unit == "document" and content.record.config.get("corpus", {}).get("truth"):
        told = Markup(
            "<p>Labels are held against sequences, and this run keeps whole documents: <code>miniplm inspect RUN --documents</code> shows them one by one.</p>"
        )
    else:
        return []
    return [("truth", "What was kept of each kind", told)]


def render_headline(content: ReportContent) -> Markup:
    """What was kept, and what training on it was worth on held-out text, also where that is nothing or less."""
    selection, pair = content.selection, students.choose_pair(content.record)
    candidates = 0 if selection is None else sum(domain.num_candidate_tokens for domain in selection.domains.values())
    told: dict[str, Any] = {
        "run_name": content.record.run_name,
        "selection": selection,
        "num_candidate_tokens": candidates,
        "pair": pair,
        "baseline_loss": None,
    }
    if pair is None:
        return render("headline.html", **told)
    comparison = content.comparisons[pair.name].overall
    in_nats = comparison is None or comparison.nats_per_token is not None
    own = pair.evaluation.overall
    told["text"] = "held-out text" if MeasuredText.of(pair.evaluation).elsewhere is None else "held-out text from elsewhere"
    told["unit"], told["loss"] = ("nats a token", own.nats_per_token) if in_nats else ("bits a byte", own.bits_per_byte)
    baseline = pair.baseline
    if baseline is not None and baseline.evaluation is not None and comparison is not None:
        other = baseline.evaluation.overall
        difference = comparison.bits_per_byte if comparison.nats_per_token is None else comparison.nats_per_token
        told["baseline_loss"] = other.nats_per_token if in_nats else other.bits_per_byte
        told["verdict"] = (
            "no different from"
            if round(difference, 3) == 0
            else f"{format_nats(abs(difference))} {'lower (better)' if difference < 0 else 'higher (worse)'} than"
        )
        own_tokens, other_tokens = pair.student.num_tokens, baseline.num_tokens
        is_as_long = abs(own_tokens - other_tokens) <= 0.01 * max(own_tokens, 1)
        told["size"] = (
            "of the same size" if is_as_long else f"({format_count(other_tokens)} tokens against {format_count(own_tokens)})"
        )
    return render("headline.html", **told)

"""The report page: what a person reads to know what a run kept, what that was worth, and how it was made."""

from __future__ import annotations

from miniplm import layout
from miniplm.report import scaling, scores, setup, students, tasks
from miniplm.report.content import ReportContent, gather_content
from miniplm.report.markup import escape, explain, format_count, format_name, format_nats, format_seconds, format_share, format_time
from miniplm.report.stylesheet import STYLESHEET
from miniplm.run_record import StageRecord, load_run
from miniplm.storage import Storage

_WORDS = {
    "document": "One source text.",
    "token": "One piece of text as the models read it: a word or a part of one.",
    "sequence": "Documents of one domain, joined and cut to the length that the models read. What is scored, kept or dropped.",
    "domain": "The kind of text, as the corpus labels it.",
    "candidate, reference, heldout": "The three splits of the documents: those to choose from, those the reference model learns from, "
    "and those that only measure the students. A document is in one of them only.",
    "teacher": "A large pre-trained model.",
    "reference": "A small model; where it was trained in the run, it has read nothing but the reference split.",
    "NLL": "Negative log-likelihood in nats a token: how surprised a model is by a text, on average by each of its tokens. "
    "Lower is better; 0 is certainty. One nat is 1.44 bits.",
    "difference score (r)": "NLL under the reference minus NLL under the teacher. High: hard text that the larger model has come to "
    "know, worth learning. Near 0: easy or common text. Below 0: noise, on which the larger model does worse.",
    "threshold": "The lowest difference score that was kept.",
    "bits a byte": "Held-out loss for each byte of text instead of each token, so that models with other tokenizers compare.",
    "FLOPs": "Floating-point operations, the unit of compute. Training costs 6 for each parameter and token, and 2 more for each parameter "
    "of a teacher that runs along. What is spent once for all students, scoring and generated text, is not counted.",
    "compute saving": "How many times a student's training FLOPs the baseline needs to come to the same held-out loss, by the law "
    "fitted to its checkpoints. Above 1 the student is the cheaper way to that loss.",
    "data saving": "The same in tokens of training instead of FLOPs.",
    "standard error": "How far a measured mean would typically lie from the true one with another draw of documents of the same kind; "
    "95 of 100 draws lie within twice of it. It says nothing of another training with another seed.",
    "baseline": "A student of the method pretrain: trained on sequences drawn at random instead of the selected ones.",
}


def write_report(storage: Storage, run_name: str) -> str:
    """Writes `report.html` of a run, one page that needs nothing else, and gives its URL.

    Shows what the run has so far; the same state of the storage gives the same bytes. Raises `RunError` where
    there is no such run, and as the inspection does where its artifacts are damaged.
    """
    content = gather_content(storage, load_run(storage, run_name))
    storage.write_bytes(layout.run_report(run_name), render_page(content).encode())
    return storage.url(layout.run_report(run_name))


def render_page(content: ReportContent) -> str:
    """The whole page as HTML."""
    record = content.record
    times = f"started {format_time(record.started_at)}" + (
        f", finished {format_time(record.finished_at)}" if record.finished_at else ""
    )
    sections = [
        ("pipeline", "Pipeline", _render_pipeline(record.stages)),
        ("scores", "Difference scores", scores.render_distribution(content)),
        ("domains", "What was kept of each domain", scores.render_domains(content)),
        ("students", "Students", students.render_students(content)),
        *([("scaling", "Loss by training compute", scaling.render_scaling(content))] if scaling.has_curves(content) else []),
        *([("tasks", "Zero-shot tasks", tasks.render_tasks(content))] if tasks.has_tasks(content) else []),
        ("sequences", "The most and the least wanted text", scores.render_sequences(content)),
        ("records", "Where the records went", setup.render_counts(content)),
        ("setup", "What was run", setup.render_setup(content)),
        ("words", "Words", "<dl class='words'>" + "".join(f"<dt>{w}</dt><dd>{m}</dd>" for w, m in _WORDS.items()) + "</dl>"),
    ]
    body = "\n".join(f'<section id="{key}"><h2>{title}</h2>\n{html}\n</section>' for key, title, html in sections)
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(record.run_name)} · MiniPLM report</title>
<style>
{STYLESHEET}
</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">MiniPLM report · run {format_name(record.run_name)} · {times}</p>
<h1 id="headline">{render_headline(content)}</h1>
{_render_caveat(content)}
{_render_tiles(content)}
<nav aria-label="Sections">{links}</nav>
</header>
{body}
<footer>Made by MiniPLM {escape(record.versions.get("miniplm", ""))}. All figures are of this run alone.
Method: Difference Sampling, arXiv 2410.17215.</footer>
</main>
</body>
</html>
"""


def render_headline(content: ReportContent) -> str:
    """What was kept, and what training on it was worth on held-out text, also where that is nothing or less."""
    selection = content.selection
    if selection is None:
        return f"Run {format_name(content.record.run_name)} has not selected anything yet."
    num_candidate_tokens = sum(domain.num_candidate_tokens for domain in selection.domains.values())
    share = format_share(selection.num_selected_tokens, num_candidate_tokens)
    kept = f"Kept <strong>{share}</strong> of {format_count(num_candidate_tokens)} candidate tokens"
    pair = students.choose_pair(content.record)
    if pair is None:
        return f"{kept}."
    student, baseline, comparison = pair.student, pair.baseline, content.comparisons[pair.name].overall
    in_nats = comparison is None or comparison.nats_per_token is not None
    own = pair.evaluation.overall
    unit, reached_loss = ("nats a token", own.nats_per_token) if in_nats else ("bits a byte", own.bits_per_byte)
    loss = f"<strong>{format_nats(reached_loss)}&nbsp;{unit}</strong>"
    taught = "" if student.method == "miniplm" else " with the teacher running along"
    reached = f"{kept}; the student trained on them{taught} ({format_name(pair.name)}) reaches {loss} on held-out text"
    if baseline is None or baseline.evaluation is None or comparison is None:
        return f"{reached}."
    other = baseline.evaluation.overall
    baseline_loss = other.nats_per_token if in_nats else other.bits_per_byte
    difference = comparison.bits_per_byte if comparison.nats_per_token is None else comparison.nats_per_token
    verdict = "no different from" if round(difference, 3) == 0 else f"{format_nats(abs(difference))} "
    if round(difference, 3):
        verdict += "lower (better) than" if difference < 0 else "higher (worse) than"
    same_size = abs(student.num_tokens - baseline.num_tokens) <= 0.01 * max(student.num_tokens, 1)
    size = (
        "of the same size"
        if same_size
        else f"({format_count(baseline.num_tokens)} tokens against {format_count(student.num_tokens)})"
    )
    return f"{reached}, {verdict} {format_nats(baseline_loss)} for random data {size}."


def _render_caveat(content: ReportContent) -> str:
    pair = students.choose_pair(content.record)
    if pair is None or pair.baseline is None:
        return ""
    other = "" if pair.student.architecture == pair.baseline.architecture else " The two have different architectures."
    return (
        "<p class='note'>One training run of each student. Another seed gives other losses, so a small difference may be chance; "
        f"nothing here tests whether it is.{other}</p>"
    )


def _render_tiles(content: ReportContent) -> str:
    tiles: list[tuple[str, str]] = []
    selection, record = content.selection, content.record
    if selection is not None:
        tiles.append(
            (
                f"{format_count(selection.num_selected)} of {format_count(selection.num_candidates)}",
                f"candidate sequences kept, a selection ratio of {selection.ratio:g}{' of each domain' if selection.within == 'domain' else ''}",
            )
        )
        if selection.threshold is not None:
            unit = scores.score_unit(selection)
            tiles.append(
                (f"r ≥ {format_nats(selection.threshold)}", f"{unit}: the difference score from which sequences were kept")
            )
        tiles.append(
            (
                format_share(selection.num_negative, selection.num_candidates),
                "of the candidate sequences have r below 0: the teacher does worse on them than the small reference",
            )
        )
    if record.stages:
        busy = sum(stage.seconds for stage in record.stages if not stage.reused)
        tiles.append((format_seconds(busy), "of work in this run; what was found finished is not counted"))
    return "<div class='tiles'>" + "".join(f"<div class='tile'><b>{b}</b><span>{s}</span></div>" for b, s in tiles) + "</div>"


def _render_pipeline(stages: tuple[StageRecord, ...]) -> str:
    if not stages:
        return (
            "<p>No stage is on record: <code>miniplm run</code> records the stages that it does, commands for one stage do not.</p>"
        )
    items = "\n".join(_render_stage(stage) for stage in stages)
    return (
        f"<ol class='pipeline'>{items}</ol>\n<p class='note'>Wall-clock time of each stage, and how much it went through in a second. "
        "Reused: its result was at the storage root already, made by an earlier run from the same inputs.</p>"
    )


def _render_stage(stage: StageRecord) -> str:
    amount = f"{format_count(stage.num_units)} {escape(stage.unit)}"
    name = escape(stage.name.replace("_", " "))
    if stage.reused:
        badge = explain("reused", "found finished at the storage root; nothing was computed")
        return f"<li class='stage reused'><b>{name}</b><span class='time'><span class='badge'>{badge}</span></span><small>{amount}</small></li>"
    rate = stage.units_per_second
    speed = f"<small>{_format_rate(rate)} a second</small>" if rate is not None else ""
    return f"<li class='stage'><b>{name}</b><span class='time'>{format_seconds(stage.seconds)}</span><small>{amount}</small>{speed}</li>"


def _format_rate(rate: float) -> str:
    return format_count(rate) if rate >= 100 else f"{rate:.3g}"

"""The sections about where the records went and about what was run, with everything needed to run it again."""

from __future__ import annotations

from typing import Any

import yaml

from miniplm.artifacts import CorpusManifest, ModelEntry
from miniplm.corpus.taken_files import list_files_read_again, list_files_without_documents
from miniplm.errors import list_offenders
from miniplm.layout import SPLITS, model_folder
from miniplm.report.content import ReportContent
from miniplm.report.markup import (
    MISSING,
    escape,
    explain,
    format_bytes,
    format_code,
    format_count,
    format_name,
    format_size,
    make_table,
)

_USES = {
    "candidate": "scored; the selection is made of these",
    "reference": "trains the reference model",
    "heldout": "measures the students",
}


def render_counts(content: ReportContent) -> str:
    """Documents by split and rejected records by reason, and whether they add up to the records read."""
    corpus = content.corpus
    if corpus is None:
        return "<p>The corpus is not prepared yet.</p>"
    counts = {split: corpus.split_counts(split) for split in ("candidate", "reference", "heldout")}
    head = ["Split", "Use", "Documents", explain("Text", "UTF-8 bytes of the documents"), "Tokens", "Sequences"]
    rows = [
        [
            split,
            _USES[split],
            format_count(count.num_documents),
            format_bytes(count.num_bytes),
            format_count(count.num_tokens),
            format_count(count.num_sequences),
        ]
        for split, count in counts.items()
    ]
    rows.append(
        [
            "<b>All</b>",
            "",
            format_count(sum(count.num_documents for count in counts.values())),
            format_bytes(sum(count.num_bytes for count in counts.values())),
            format_count(sum(count.num_tokens for count in counts.values())),
            format_count(sum(count.num_sequences for count in counts.values())),
        ]
    )
    return (
        _render_sum(corpus)
        + make_table(head, rows, num_text_columns=2)
        + _render_rejected(corpus)
        + _render_files(corpus)
        + _render_domain_counts(corpus)
    )


def _render_sum(corpus: CorpusManifest) -> str:
    num_documents = sum(corpus.split_counts(split).num_documents for split in ("candidate", "reference", "heldout"))
    num_rejected = sum(corpus.rejected.values())
    difference = corpus.num_records - num_documents - num_rejected
    check = (
        "✓ nothing is missing"
        if not difference
        else f"⚠ this does not add up: {format_count(difference)} records are unaccounted for"
    )
    return (
        f"<p>{format_count(corpus.num_records)} records read from {format_count(len(corpus.sources))} files = "
        f"{format_count(num_documents)} documents + {format_count(num_rejected)} rejected. {check}.</p>"
    )


def _render_rejected(corpus: CorpusManifest) -> str:
    rejected = {reason: number for reason, number in corpus.rejected.items() if number}
    if not rejected:
        return "<p class='note'>No record was rejected.</p>"
    rows = [
        [escape(reason), format_count(number)] for reason, number in sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    ]
    table = make_table(["Reason", "Rejected records"], rows)
    where = "corpus" if corpus.parent is None else "corpus that read it (this one or one that it extends)"
    return f"<h3>Rejected</h3>\n{table}\n<p class='note'>Each is listed with its file, line and reason in the <code>quarantine</code> folder of the {where}.</p>"


def _render_files(corpus: CorpusManifest) -> str:
    """Files that gave nothing or were left out, where there are any."""
    rows = [
        [escape(reason), escape(list_offenders(files)), format_count(len(files))]
        for reason, files in (
            ("no document: empty, or all records rejected", list_files_without_documents(corpus)),
            ("read more than once: several sources name them, or there are copies", list_files_read_again(corpus)),
        )
        if files
    ]
    rows += [
        [
            f"left out of {escape(entry.source)}: {escape(entry.reason)}",
            escape(list_offenders(entry.names, entry.num_files)),
            format_count(entry.num_files),
        ]
        for entry in corpus.left_out
    ]
    return f"<h3>Files to look at</h3>\n{make_table(['What', 'Which', 'Files'], rows, num_text_columns=2)}" if rows else ""


def _render_domain_counts(corpus: CorpusManifest) -> str:
    domains = sorted({domain for counts in corpus.domains.values() for domain in counts})
    head = ["Domain", *(f"{split}<br><small>{unit}</small>" for split in SPLITS for unit in ("documents", "tokens"))]
    rows = []
    for domain in domains:
        cells = [format_name(domain)]
        for split in ("candidate", "reference", "heldout"):
            count = corpus.domains.get(split, {}).get(domain)
            cells += [format_count(count.num_documents), format_count(count.num_tokens)] if count is not None else ["0", "0"]
        rows.append(cells)
    return f"<details class='box'><summary>By domain and split</summary>{make_table(head, rows)}</details>"


def render_setup(content: ReportContent) -> str:
    """Models, ids, seeds, versions and the configuration."""
    record = content.record
    models = [
        [
            role,
            format_code(_describe_source(model)),
            format_size(model.num_parameters),
            escape(model.dtype),
            format_code(model.model_id),
        ]
        for role, model in (("teacher", record.teacher), ("reference", record.reference))
        if model is not None
    ]
    head = ["Model", "Read from", "Parameters", explain("Precision", "of weights and activations while scoring"), "Id"]
    tables = make_table(head, models, "The two models that scored", num_text_columns=2) if models else ""
    tables += make_table(["What", "Value"], [[name, value] for name, value in _list_facts(content)], "Ids, settings and seeds", 2)
    versions = make_table(
        ["Package", "Version"], [[escape(name), escape(value)] for name, value in sorted(record.versions.items())], "", 2
    )
    config = escape(yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True, width=100))
    return f"""{tables}
<details class="box"><summary>Versions</summary>{versions}</details>
<details class="box"><summary>The whole configuration</summary><pre>{config}</pre></details>
<p class="note">Ids are made from what went in, so equal ids mean equal work; the storage root keeps each of these under its id.</p>"""


def _list_facts(content: ReportContent) -> list[tuple[str, str]]:
    record, corpus, selection = content.record, content.corpus, content.selection
    facts: list[tuple[str, str]] = [("run", format_code(record.run_name))]
    if corpus is not None:
        facts += [
            ("corpus", format_code(corpus.corpus_id)),
            *([("extends", f"corpus {format_code(corpus.parent)}")] if corpus.parent else []),
            (
                "tokenizer",
                f"{format_code(corpus.tokenizer.name)}, {format_count(corpus.tokenizer.vocab_size)} tokens, documents end with "
                f"{format_code(corpus.tokenizer.eos_token)}",
            ),
            ("sequence length", f"{format_count(corpus.sequence_length)} targets, so at most one token more in a sequence"),
        ]
    if selection is not None:
        kind = "mean: nats a token" if selection.score == "mean" else "sum: nats a sequence"
        of_each = " of each domain" if selection.within == "domain" else ""
        facts += [("selection", f"{format_code(selection.selection_id)}, ratio {selection.ratio:g}{of_each}, score {kind}")]
    facts += [
        (f"student {format_name(name)}", f"training {format_code(student.training_id)}")
        for name, student in record.students.items()
    ]
    facts.append(("seeds", ", ".join(f"{escape(name)} {escape(seed)}" for name, seed in _find_seeds(record.config)) or MISSING))
    return facts


def _find_seeds(config: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every `seed` of a configuration with its dotted path."""
    if isinstance(config, dict):
        seeds = [(path or "run", config["seed"])] if "seed" in config else []
        return seeds + [seed for key, value in config.items() for seed in _find_seeds(value, f"{path}.{key}".lstrip("."))]
    if isinstance(config, (list, tuple)):
        return [
            seed
            for index, value in enumerate(config)
            for seed in _find_seeds(value, f"{path}.{value.get('name', index) if isinstance(value, dict) else index}")
        ]
    return []


def _describe_source(model: ModelEntry) -> str:
    revision = f" at {model.revision}" if model.revision is not None else ""
    return model_folder(model.model_id) if model.stored else f"{model.source}{revision}"

"""The sections about where the records went and about what was run, with everything needed to run it again."""

from __future__ import annotations

import json
from functools import reduce
from typing import Any

import yaml
from markupsafe import Markup

from miniplm.corpus.assembly import add_counts
from miniplm.corpus.taken_files import list_files_read_again, list_files_without_documents
from miniplm.errors import list_offenders
from miniplm.layout import SPLITS, model_folder
from miniplm.records.manifests import CorpusManifest, DomainCounts, ModelEntry
from miniplm.report.content import ReportContent
from miniplm.report.markup import (
    MISSING,
    fill,
    format_bytes,
    format_code,
    format_count,
    format_name,
    format_size,
    render,
)

_USES = {
    "candidate": "scored; the selection is made of these",
    "reference": "trains the reference model",
    "heldout": "measures the students",
}


def render_counts(content: ReportContent) -> Markup:
    """Documents by split and rejected records by reason, and whether they add up to the records read."""
    corpus = content.corpus
    if corpus is None:
        return Markup("<p>The corpus is not prepared yet.</p>")
    counts = {split: corpus.split_counts(split) for split in SPLITS}
    all_splits = reduce(add_counts, counts.values())
    num_rejected = sum(corpus.rejected.values())
    return render(
        "counts.html",
        corpus=corpus,
        all=all_splits,
        num_rejected=num_rejected,
        num_missing=corpus.num_records - all_splits.num_documents - num_rejected,
        split_rows=[
            *([split, _USES[split], *_count_cells(count)] for split, count in counts.items()),
            [Markup("<b>All</b>"), "", *_count_cells(all_splits)],
        ],
        rejected=[
            [reason, format_count(number)]
            for reason, number in sorted(corpus.rejected.items(), key=lambda item: (-item[1], item[0]))
            if number
        ],
        file_rows=_list_files(corpus),
        domain_head=[
            "Domain",
            *(fill("{}<br><small>{}</small>", split, unit) for split in SPLITS for unit in ("documents", "tokens")),
        ],
        domain_rows=_list_domains(corpus),
    )


def _count_cells(counts: DomainCounts) -> list[str]:
    return [
        format_count(counts.num_documents),
        format_bytes(counts.num_bytes),
        format_count(counts.num_tokens),
        format_count(counts.num_sequences),
    ]


def _list_files(corpus: CorpusManifest) -> list[list[str]]:
    """Files that gave nothing or were left out, where there are any."""
    rows = [
        [reason, list_offenders(files), format_count(len(files))]
        for reason, files in (
            ("no document: empty, or all records rejected", list_files_without_documents(corpus)),
            ("read more than once: several sources name them, or there are copies", list_files_read_again(corpus)),
        )
        if files
    ]
    return rows + [
        [
            f"left out of {entry.source}: {entry.reason}",
            list_offenders(entry.names, entry.num_files),
            format_count(entry.num_files),
        ]
        for entry in corpus.left_out
    ]


def _list_domains(corpus: CorpusManifest) -> list[list[str]]:
    none = DomainCounts()
    rows = []
    for domain in sorted({domain for counts in corpus.domains.values() for domain in counts}):
        counts = [corpus.domains[split].get(domain, none) if split in corpus.domains else none for split in SPLITS]
        rows.append([format_name(domain), *(format_count(n) for count in counts for n in (count.num_documents, count.num_tokens))])
    return rows


def render_setup(content: ReportContent) -> Markup:
    """Models, ids, seeds, versions and the configuration."""
    record = content.record
    return render(
        "setup.html",
        models=[
            [
                role,
                format_code(_describe_source(model)),
                format_size(model.num_parameters),
                model.dtype,
                format_code(model.model_id),
            ]
            for role, model in (("teacher", record.teacher), ("reference", record.reference), ("proxy", record.proxy))
            if model is not None
        ],
        facts=_list_facts(content),
        versions=sorted(record.versions.items()),
        config=yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True, width=100),
    )


def _list_facts(content: ReportContent) -> list[tuple[str, str]]:
    record, corpus, selection = content.record, content.corpus, content.selection
    facts: list[tuple[str, str]] = [("run", format_code(record.run_name))]
    if corpus is not None:
        facts.append(("corpus", format_code(corpus.corpus_id)))
        if corpus.parent:
            facts.append(("extends", fill("corpus {}", format_code(corpus.parent))))
        name, eos = format_code(corpus.tokenizer.name), format_code(corpus.tokenizer.eos_token)
        size = format_count(corpus.tokenizer.vocab_size)
        facts.append(("tokenizer", fill("{}, {} tokens, documents end with {}", name, size, eos)))
        length = format_count(corpus.sequence_length)
        facts.append(("sequence length", f"{length} targets, so at most one token more in a sequence"))
    if selection is not None:
        kind = {"mean": "mean: nats a token", "sum": "sum: nats a sequence"}.get(selection.score, selection.score)
        facts.append(("selection", fill("{}, {}", format_code(selection.selection_id), f"{selection.title}, score {kind}")))
        facts += [
            (fill("selection.{}", name), format_code(value if isinstance(value, str) else json.dumps(value)))
            for name, value in selection.rule.items()
        ]
        if selection.left_out:
            counted = ", ".join(f"{format_count(count)} {reason}" for reason, count in selection.left_out.items())
            facts.append(("left out before ranking", counted))
    facts += [
        (fill("student {}", format_name(name)), fill("training {}", format_code(student.training_id)))
        for name, student in record.students.items()
    ]
    facts.append(("seeds", ", ".join(f"{name} {seed}" for name, seed in _find_seeds(record.config)) or MISSING))
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

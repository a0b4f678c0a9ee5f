"""A finished run on a storage root, made without models: real text of this Python, made-up scores, no network."""

from __future__ import annotations

import inspect
import json
import pydoc
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from miniplm import layout
from miniplm.config.run import SelectionConfig
from miniplm.records.manifests import (
    CorpusManifest,
    DomainLoss,
    Evaluation,
    ModelEntry,
    SourceEntry,
    TokenizerEntry,
)
from miniplm.records.run import RunRecord, StageRecord, StudentRecord, save_run
from miniplm.records.selections import SelectionManifest
from miniplm.selection.ranking import select_sequences
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import vocabulary_digest
from scripts.demo_corpus import EOS, train_tokenizer
from tests.miniplm.made_corpora import make_corpus, write_scores

CORPUS_ID = "corpus-1"
TEACHER = ModelEntry(
    model_id="teacher-1",
    source="HuggingFaceTB/SmolLM2-135M",
    dtype="float32",
    weights_digest="sha256:t",
    num_parameters=134_515_008,
)
REFERENCE = ModelEntry(
    model_id="reference-1", source="qwen-tiny", stored=True, dtype="float32", weights_digest="sha256:r", num_parameters=9_440_000
)
VERSIONS = {"miniplm": "0.1.0", "torch": "2.13.0", "python": "3.11.7"}

# (mean, spread) of the difference scores of a domain's sequences.
Shape = tuple[float, float]


@dataclass
class RunPlan:
    """What to make: texts by domain, how many sequences, and how each domain's scores lie."""

    texts: dict[str, str] = field(default_factory=lambda: python_texts())
    shapes: dict[str, Shape] = field(default_factory=dict)
    num_sequences: int = 60
    num_per_shard: int = 25
    sequence_length: int = 32
    ratio: float = 0.5
    score: str = "mean"
    rule: dict[str, Any] = field(default_factory=dict)
    students: tuple[str, ...] = ("miniplm", "pretrain")
    evaluated: bool = True
    rejected: dict[str, int] = field(default_factory=lambda: {"empty document": 3, "text is not a string": 1})
    num_steps: int = 60
    seed: int = 0


def python_texts() -> dict[str, str]:
    """Five kinds of text that every Python brings: code, reference prose, docstrings, a licence, tables of names."""
    import argparse
    import asyncio.base_events
    import json.decoder
    import statistics
    import textwrap
    import unicodedata
    from pydoc_data.topics import topics

    names = "\n".join(f"{i:04X};{unicodedata.name(chr(i))};{unicodedata.category(chr(i))}" for i in range(0x21, 0x7F))
    greek = "\n".join(f"{i:04X};{unicodedata.name(chr(i), '-')};{chr(i)}" for i in range(0x391, 0x3CA))
    documented = [statistics, textwrap, argparse.ArgumentParser, json.decoder, asyncio.base_events]
    return {
        "standard-library": inspect.getsource(textwrap) + inspect.getsource(json.decoder),
        "language reference": "\n".join(topics[key] for key in sorted(topics)[:20]),
        "documentation": "\n".join(pydoc.plain(pydoc.render_doc(thing)) for thing in documented)[:40_000],
        "licence": _licence_text(),
        "unicode tables": names + "\n" + greek,
    }


def _licence_text() -> str:
    import site

    printer: Any = site.builtins.license  # type: ignore[attr-defined]
    printer._Printer__setup()
    return "\n".join(printer._Printer__lines)


def make_run(
    root: Path,
    run_name: str = "demo",
    plan: RunPlan | None = None,
    nll: Callable[[str, random.Random], tuple[float, float]] | None = None,
) -> tuple[Storage, RunRecord]:
    """Writes a whole run below `root`: corpus, scores, selection, students, record.

    `nll` gives (teacher NLL, reference NLL) of a sequence of a domain; by default they are drawn after `plan.shapes`.
    """
    plan = plan or RunPlan()
    storage = Storage(str(root))
    draw = random.Random(plan.seed)
    corpus = write_corpus(storage, plan, draw)
    write_both_scores(storage, corpus, nll or (lambda domain, source: _draw_nll(plan, domain, source)), draw)
    rule = {"ratio": plan.ratio, "score": plan.score, **plan.rule}
    selection = select_sequences(storage, corpus, TEACHER.model_id, REFERENCE.model_id, SelectionConfig.model_validate(rule))
    record = RunRecord(
        run_name=run_name,
        config={
            "name": run_name,
            "corpus": {"seed": 7},
            "selection": {"seed": 11, **rule},
            "students": [{"name": name, "training": {"seed": 3, "learning_rate": 0.0006}} for name in plan.students],
        },
        corpus_id=corpus.corpus_id,
        teacher=TEACHER,
        reference=REFERENCE,
        selection_id=selection.selection_id,
        students={name: write_student(storage, run_name, name, plan, selection, index) for index, name in enumerate(plan.students)},
        stages=(
            StageRecord(name="prepare", seconds=1.4, reused=False, num_units=corpus.num_records, unit="documents"),
            StageRecord(name="train reference", seconds=63.0, reused=True, num_units=9_600, unit="tokens"),
            StageRecord(name="score teacher", seconds=201.3, reused=False, num_units=96_313, unit="tokens"),
            StageRecord(name="score reference", seconds=12.2, reused=False, num_units=96_313, unit="tokens"),
            StageRecord(name="select", seconds=0.2, reused=False, num_units=plan.num_sequences, unit="sequences"),
            StageRecord(name="train students", seconds=75.0, reused=False, num_units=96_000, unit="tokens"),
            StageRecord(name="evaluate", seconds=8.0, reused=False, num_units=2_100, unit="tokens"),
        ),
        versions=VERSIONS,
        started_at="2026-11-02T09:00:00+00:00",
        finished_at="2026-11-02T09:05:12+00:00",
    )
    save_run(storage, record)
    return storage, record


def write_corpus(storage: Storage, plan: RunPlan, draw: random.Random) -> CorpusManifest:
    """Sequences of the three splits in shards; a tenth each is reference and heldout, dealt out evenly to the domains."""
    folder = Path(storage.path(layout.corpus_tokenizer(CORPUS_ID)))
    folder.mkdir(parents=True)
    train_tokenizer(list(plan.texts.values()), folder, vocab_size=1500)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    ids = {domain: tokenizer(text)["input_ids"] for domain, text in plan.texts.items()}
    domains = list(plan.texts)
    shards: dict[str, list[list[list[int]]]] = {}
    num_documents = 0
    extra = max(1, plan.num_sequences // 10)
    for split, num_sequences in (("candidate", plan.num_sequences), ("reference", extra), ("heldout", extra)):
        sequences = []
        for _ in range(num_sequences):
            text = ids[domains[num_documents % len(domains)]]
            start = draw.randrange(max(1, len(text) - plan.sequence_length))
            sequences.append(text[start : start + plan.sequence_length + 1 - draw.randrange(8)])
            num_documents += 1
        shards[split] = [sequences[start : start + plan.num_per_shard] for start in range(0, num_sequences, plan.num_per_shard)]
    num_records = num_documents + sum(plan.rejected.values())
    first = num_records // 2
    # Small row groups, so that reading one of several is what the tests see.
    made = make_corpus(storage, shards, CORPUS_ID, domains=domains, sequence_length=plan.sequence_length, row_group_size=10)
    facts = {
        "tokenizer": TokenizerEntry(
            name="byte-level BPE", digest=vocabulary_digest(tokenizer), vocab_size=len(tokenizer), eos_token=EOS, eos_token_id=0
        ),
        "sources": (
            SourceEntry(path="samples/a.jsonl", digest="sha256:a", num_bytes=1, num_records=first, first_document_id=0),
            SourceEntry(
                path="samples/b.parquet", digest="sha256:b", num_bytes=1, num_records=num_records - first, first_document_id=first
            ),
        ),
        "num_records": num_records,
        "rejected": plan.rejected,
        "versions": VERSIONS,
    }
    corpus = made.model_copy(update=facts)
    storage.write_json(layout.corpus_manifest(CORPUS_ID), corpus.as_json())
    return corpus


def write_both_scores(
    storage: Storage, corpus: CorpusManifest, nll: Callable[[str, random.Random], tuple[float, float]], draw: random.Random
) -> None:
    for shard in corpus.split_shards("candidate"):
        rows = pq.read_table(storage.path(layout.corpus_shard(CORPUS_ID, "candidate", shard.shard_index))).to_pylist()
        pairs = [nll(row["domain"], draw) for row in rows]
        num_scored = [row["num_tokens"] - 1 for row in rows]
        for position, model in enumerate((TEACHER, REFERENCE)):
            sums = [pair[position] * number for pair, number in zip(pairs, num_scored, strict=True)]
            write_scores(storage, shard, model.model_id, sums, num_scored, versions=VERSIONS)


def _draw_nll(plan: RunPlan, domain: str, draw: random.Random) -> tuple[float, float]:
    shapes = [(0.55, 0.25), (0.9, 0.4), (0.7, 0.3), (0.15, 0.2), (-0.05, 0.35), (0.4, 0.2)]
    mean, spread = plan.shapes.get(domain, shapes[sorted(plan.texts).index(domain) % len(shapes)])
    teacher = max(0.05, draw.gauss(3.2, 0.5))
    return teacher, max(0.0, teacher + draw.gauss(mean, spread))


def write_student(
    storage: Storage, run_name: str, name: str, plan: RunPlan, selection: SelectionManifest, index: int
) -> StudentRecord:
    folder = layout.student_folder(run_name, name)
    noise = np.random.default_rng(index)
    steps = np.arange(1, plan.num_steps + 1)
    losses = 4.6 + 2.7 * np.exp(-steps / (plan.num_steps / 5)) + 0.06 * index + noise.normal(0, 0.12, len(steps))
    rows = [
        {"step": int(step), "loss": float(loss), "learning_rate": 6e-4, "gradient_norm": 1.0, "num_tokens": 800, "seconds": 0.3}
        for step, loss in zip(steps, losses, strict=True)
    ]
    storage.write_bytes(f"{folder}/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    evaluation = None
    if plan.evaluated:
        domains = {
            domain: DomainLoss(
                nats_per_token=4.4 + 0.21 * position + (0.035 if position % 2 else -0.021) * (1 - index),
                bits_per_byte=1.9 + 0.05 * position,
                num_scored_tokens=400 + position,
                num_sequences=2,
            )
            for position, domain in enumerate(sorted(plan.texts))
        }
        overall = DomainLoss(nats_per_token=4.812 + 0.034 * index, bits_per_byte=1.95, num_scored_tokens=2_000, num_sequences=10)
        evaluation = Evaluation(corpus_id=CORPUS_ID, weights_digest="sha256:w", overall=overall, domains=domains, seconds=4.0)
    return StudentRecord(
        training_id=f"training-{index}",
        method="pretrain" if name.startswith("pretrain") else "miniplm",
        architecture="qwen-tiny",
        num_parameters=6_300_000,
        num_steps=plan.num_steps,
        num_tokens=selection.num_selected_tokens,
        final_loss=float(losses[-1]),
        folder=folder,
        evaluation=evaluation,
    )

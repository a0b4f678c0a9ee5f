"""A corpus of made-up words with a selection by chance, of any size: what the benchmark of exports exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from miniplm.config.run import CorpusConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import read_shard
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.selection.cut import SELECTION_SCHEMA
from miniplm.selection.kept import publish_kept
from miniplm.storage.root import Storage
from scripts.demo_corpus import train_tokenizer

_DOMAINS = ("web", "code", "books")
_VOCAB_SIZE = 4000
# Of a byte-level tokenizer of 4,000 tokens trained on these words, a word and its space are that many.
_TOKENS_A_WORD = 1.4


def make_selected_corpus(folder: Path, num_tokens: int) -> tuple[Storage, CorpusManifest, SelectionManifest]:
    """About so many tokens in documents of 10 to 3,000 words, and of their sequences, of 256 targets, a random half."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(8000)])
    shares = 1 / np.arange(1, len(words) + 1)
    left, source = num_tokens / _TOKENS_A_WORD, folder / "source.jsonl"
    sample: list[str] = []
    with open(source, "w", encoding="utf-8") as file:
        while left > 0:
            drawn = rng.choice(words, int(np.exp(rng.uniform(np.log(10), np.log(3000)))), p=shares / shares.sum()).tolist()
            text = ". ".join(" ".join(drawn[start : start + 12]) for start in range(0, len(drawn), 12))
            file.write(json.dumps({"text": text, "domain": str(rng.choice(_DOMAINS))}) + "\n")
            left -= len(drawn)
            if len(sample) < 300:
                sample.append(text)
    train_tokenizer(sample, folder / "tokenizer", _VOCAB_SIZE)
    storage = Storage(str(folder / "data"))
    config = CorpusConfig.model_validate(
        {
            "sources": [{"path": str(source), "domain": "domain"}],
            "tokenizer": str(folder / "tokenizer"),
            "sequence_length": 256,
            "sequences_per_shard": 8192,
            "splits": {"reference": 0, "heldout": 0},
        }
    )
    corpus = prepare_corpus(storage, config)
    return storage, corpus, _select_half(storage, corpus, rng)


def _select_half(storage: Storage, corpus: CorpusManifest, rng: np.random.Generator) -> SelectionManifest:
    entries = []
    for shard in corpus.split_shards("candidate"):
        rows = np.flatnonzero(rng.random(shard.num_sequences) < 0.5)
        num_tokens = read_shard(storage, shard, ["num_tokens"])["num_tokens"].to_numpy()[rows]
        nll = rng.normal(3, 0.5, (2, len(rows)))
        columns = {
            "sequence_id": shard.first_sequence_id + rows,
            "teacher_nll": nll[0],
            "reference_nll": nll[1],
            "difference_score": nll[1] - nll[0],
        }
        table = pa.table(columns, schema=SELECTION_SCHEMA)
        entries.append(publish_kept(storage, "half", shard, table, table, num_tokens))
    num_selected = sum(entry.num_sequences for entry in entries)
    return SelectionManifest(
        selection_id="half", corpus_id=corpus.corpus_id, teacher_id="none", reference_id="none", ratio=0.5, score="mean",
        num_candidates=sum(shard.num_sequences for shard in corpus.split_shards("candidate")), num_selected=num_selected,
        num_selected_tokens=sum(entry.num_tokens for entry in entries), num_negative=0, threshold=None, domains={},
        shards=tuple(entries),
    )  # fmt: skip

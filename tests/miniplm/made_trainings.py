"""Small corpora with a tokenizer and plans to train on them, for tests of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from miniplm import layout
from miniplm.config.run import TrainingConfig
from miniplm.corpus.reader import read_shard
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.selection.kept import publish_kept
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer
from miniplm.training.recipe import TrainingPlan, plan_training
from tests.miniplm.made_corpora import describe_selection, make_corpus

VOCAB_SIZE = 64
EOS = 0


def save_tokenizer(folder: Path, vocab_size: int = VOCAB_SIZE) -> None:
    vocabulary = {"<eos>": EOS} | {f"w{index}": index for index in range(1, vocab_size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)


def make_sequences(num: int, seed: int = 0, shortest: int = 5, longest: int = 12) -> list[list[int]]:
    """Sequences with a pattern that can be learnt, and an EOS in the middle of some."""
    generator = np.random.default_rng(seed)
    sequences = []
    for _ in range(num):
        start, length = int(generator.integers(1, 20)), int(generator.integers(shortest, longest + 1))
        sequence = [1 + (start + 3 * index) % (VOCAB_SIZE - 1) for index in range(length)]
        if generator.random() < 0.5:
            sequence[int(generator.integers(1, length))] = EOS
        sequences.append(sequence)
    return sequences


def make_training_corpus(
    storage: Storage, candidate: Sequence[int] = (7, 5, 9), reference: Sequence[int] = (10,), heldout: Sequence[int] = ()
) -> CorpusManifest:
    """A corpus whose shards have so many sequences, with its tokenizer at its place (a local root)."""
    corpus = make_corpus(
        storage,
        {
            "candidate": [make_sequences(num, seed=index) for index, num in enumerate(candidate)],
            "reference": [make_sequences(num, seed=100 + index) for index, num in enumerate(reference)],
            "heldout": [make_sequences(num, seed=200 + index) for index, num in enumerate(heldout)],
        },
        vocab_size=VOCAB_SIZE,
        eos_token_id=EOS,
        sequence_length=16,
    )
    folder = Path(storage.path(layout.corpus_tokenizer(corpus.corpus_id)))
    save_tokenizer(folder)
    corpus = corpus.model_copy(update={"tokenizer": load_tokenizer(str(folder)).entry})
    storage.write_json(layout.corpus_manifest(corpus.corpus_id), corpus.as_json())
    return corpus


def make_selection(
    storage: Storage, corpus: CorpusManifest, rows: Sequence[Sequence[int]], selection_id: str = "s"
) -> SelectionManifest:
    """A selection of these rows of each candidate shard."""
    entries = []
    for shard, chosen in zip(corpus.split_shards("candidate"), rows, strict=True):
        taken = read_shard(storage, shard, ["sequence_id", "num_tokens"]).take(pa.array(chosen, pa.int64()))
        kept = taken.select(["sequence_id"])
        entries.append(publish_kept(storage, selection_id, shard, kept, kept, taken["num_tokens"].to_numpy()))
    num_candidates = corpus.split_counts("candidate").num_sequences
    return describe_selection(selection_id, corpus.corpus_id, entries, num_candidates=num_candidates)


def make_plan(
    corpus: CorpusManifest, method: str = "reference", selection: SelectionManifest | None = None, **training: Any
) -> TrainingPlan:
    settings = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "checkpoint_every_steps": 2, **training}
    if "epochs" in settings:
        del settings["steps"]
    return plan_training(corpus, method, "qwen-tiny", TrainingConfig(**settings), selection=selection, device="cpu")

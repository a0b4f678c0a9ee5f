"""What a training benchmark trains on: random sequences in shards on disk, and the plan by which MiniPLM trains on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.scoring_inputs import (
    VOCAB_SIZE,
    make_random_sequences,
    make_word_tokenizer,
    write_corpus,
)
from miniplm import layout
from miniplm.config.run import TrainingConfig
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer
from miniplm.training.recipe import TrainingPlan, plan_training

# Preset and vocabulary of each size; the vocabulary of the published students, and a small one for a trial on a CPU.
SIZES = {"tiny": ("qwen-tiny", 4096)} | {name: (name, VOCAB_SIZE) for name in ("qwen-104m", "qwen-200m", "qwen-500m")}
_NUM_SHARDS = 4


@dataclass(frozen=True)
class TrainingInputs:
    """A corpus of random sequences, of which every one is trained on at most once."""

    storage: Storage
    corpus: CorpusManifest
    architecture: str
    vocab_size: int
    device: torch.device

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.corpus.shards)

    @property
    def num_sequences(self) -> int:
        return sum(shard.num_sequences for shard in self.corpus.shards)

    def read_sequences(self) -> list[list[int]]:
        """All sequences as lists of ids, in memory: what the other sides are given."""
        return [
            row.tolist() for shard in self.corpus.shards for row in read_token_ids(read_shard(self.storage, shard, ["token_ids"]))
        ]

    def plan(self, config: TrainingConfig) -> TrainingPlan:
        """MiniPLM's training on all of the corpus."""
        selection = SelectionManifest(
            selection_id="benchmark", corpus_id=self.corpus.corpus_id, teacher_id="none", reference_id="none", ratio=1.0, score="mean",
            num_candidates=self.num_sequences, num_selected=self.num_sequences, num_selected_tokens=self.num_tokens,
            num_negative=0, threshold=None, domains={}, shards=(),
        )  # fmt: skip
        return plan_training(
            self.corpus,
            "pretrain",
            self.architecture,
            config,
            vocab_size=self.vocab_size,
            selection=selection,
            device=str(self.device),
        )


def make_training_inputs(folder: Path, size: str, num_sequences: int, length: int, device: torch.device) -> TrainingInputs:
    """Random sequences of about `length` targets for one of `SIZES`, written as a corpus below a folder."""
    architecture, vocab_size = SIZES[size]
    storage = Storage(str(folder))
    tokenizer_folder = Path(storage.path(layout.corpus_tokenizer("benchmark")))
    make_word_tokenizer(vocab_size).save_pretrained(str(tokenizer_folder))
    entry = load_tokenizer(str(tokenizer_folder)).entry
    corpus = write_corpus(storage, make_random_sequences(num_sequences, length, vocab_size), _NUM_SHARDS, entry, length)
    storage.write_json(layout.corpus_manifest(corpus.corpus_id), corpus.as_json())
    return TrainingInputs(storage, corpus, architecture, vocab_size, device)

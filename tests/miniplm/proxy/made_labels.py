"""A corpus whose teacher and reference NLLs follow from its tokens, so that a proxy has something to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miniplm.config.proxy import ProxyConfig
from miniplm.corpus.reader import read_shard, read_token_ids
from miniplm.proxy.fitting import fit_proxy
from miniplm.proxy.labels import draw_labels
from miniplm.proxy.prediction import open_proxy, predict_shard
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.proxies import ProxyManifest
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import make_corpus, write_scores

VOCAB_SIZE = 100


def make_entry(model_id: str) -> ModelEntry:
    return ModelEntry(model_id=model_id, source=model_id, dtype="float32", weights_digest=model_id, num_parameters=1000)


TEACHER, REFERENCE = make_entry("teacher"), make_entry("reference")


def draw_sequences(num: int, seed: int = 0) -> list[list[int]]:
    """Sequences of 20 to 29 tokens; each prefers some tokens, as a topic does."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(num):
        centre = rng.integers(1, VOCAB_SIZE)
        tokens = (centre + rng.geometric(0.15, rng.integers(20, 30)) - 1) % (VOCAB_SIZE - 1) + 1
        sequences.append(tokens.tolist())
    return sequences


def difference_of(tokens: Sequence[int], noise: float = 0.0) -> float:
    """The true difference score of a sequence: a mean over its tokens, which n-grams tell, and noise by its content."""
    own = np.sin(np.asarray(tokens) / 8.0).mean()
    return float(own + noise * np.random.default_rng(list(tokens)).normal())


def score(storage: Storage, corpus: CorpusManifest, entry: ModelEntry, noise: float = 0.0, informative: bool = True) -> None:
    """Score files of a model over the candidates: the reference's NLL is 3 + noise of its own, the teacher's less by the difference."""
    for shard in corpus.split_shards("candidate"):
        sequences = read_token_ids(read_shard(storage, shard))
        sums, counts = [], []
        for tokens in sequences:
            count = len(tokens) - 1
            reference = 3 + 0.2 * np.random.default_rng([7, *tokens.tolist()]).normal()
            difference = difference_of(tokens, noise) if informative else np.random.default_rng([9, *tokens.tolist()]).normal()
            sums.append((reference if entry == REFERENCE else reference - difference) * count)
            counts.append(count)
        write_scores(storage, shard, entry.model_id, sums, counts)


@dataclass(frozen=True)
class MadeProxy:
    """A corpus with its labels and its proxy."""

    storage: Storage
    corpus: CorpusManifest
    labels: CorpusManifest
    config: ProxyConfig
    manifest: ProxyManifest

    def predict(self) -> None:
        """Score files of the proxy over all candidates."""
        scorer = open_proxy(self.storage, self.manifest)
        for shard in self.corpus.split_shards("candidate"):
            predict_shard(self.storage, self.corpus, shard, self.manifest.entry, scorer)


def make_proxy(storage: Storage, config: ProxyConfig, num: int = 600, per_shard: int = 100, **how: Any) -> MadeProxy:
    sequences = draw_sequences(num)
    corpus = make_corpus(storage, {"candidate": [sequences[start : start + per_shard] for start in range(0, num, per_shard)]})
    labels = draw_labels(storage, corpus, config)
    score(storage, labels, TEACHER, **how)
    score(storage, corpus, REFERENCE, **how)
    return MadeProxy(storage, corpus, labels, config, fit_proxy(storage, corpus, labels, config, TEACHER, REFERENCE))

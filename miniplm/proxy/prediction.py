"""Predicts what the teacher would give of the sequences of a shard, and publishes it as a score file of the proxy's own.

    nll_sum = reference's nll_sum - predicted difference score * num_scored_tokens

so that the difference of both files is the difference score that was predicted. A labelled sequence has the teacher's own NLL.

Shapes: N sequences, T tokens of one, D columns that are scaled, F columns in all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from miniplm import layout
from miniplm.corpus.reader import load_corpus, read_shard, read_token_ids
from miniplm.errors import DamagedFileError, ProxyError, ScoreJoinError
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.proxy.features import Floats, PoolStates, Scale, join_columns, read_columns
from miniplm.proxy.identity import find_proxy
from miniplm.proxy.labels import find_places
from miniplm.records.manifests import CorpusManifest, ModelEntry, ScoreShardManifest, ShardEntry
from miniplm.records.proxies import ProxyManifest
from miniplm.scoring.shards import check_score_shard, parse_scores, publish_shard, read_scores
from miniplm.storage.root import Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from miniplm.models.throughput import Throughput

# Sequences whose features are in memory at once: those of 1,024 tokens have 12 bytes for each of two n-grams a token.
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class PredictedScores:
    """Scores of N sequences, (N,) each, as `SequenceScores`, without those of documents: a proxy knows sequences only."""

    nll_sum: NDArray[np.float64]
    num_scored_tokens: NDArray[np.int32]
    throughput: Throughput


class ProxyScorer:
    """A proxy that is ready to predict any number of shards. `pool` gives the reference's states, for `head`; `notes` say how that runs."""

    def __init__(
        self,
        manifest: ProxyManifest,
        weights: dict[str, NDArray[Any]],
        pool: PoolStates | None = None,
        device: str = "cpu",
        notes: Sequence[str] = (),
    ) -> None:
        """`weights` are the arrays of the proxy's file by name: `weights` (F,), `bias` (1,), `means` and `deviations` (D,)."""
        self.manifest = manifest
        self.device = device
        self.notes = list(notes)
        self._pool = pool
        self._weights = weights["weights"]
        self._bias = float(weights["bias"][0])
        self._scale = Scale(weights["means"], weights["deviations"])

    def describe(self) -> dict[str, str | int | bool]:
        """How scores were predicted, for the record."""
        manifest = self.manifest
        return {
            "proxy": manifest.kind,
            "labels": manifest.labels_id,
            "num_labels": manifest.num_labels,
            "teacher": manifest.teacher.model_id,
        }

    def predict(self, sequences: Sequence[NDArray[Any]], reference_nll: Floats) -> Floats:
        """The difference score (N,), nats a scored token, of sequences (T,) with these NLLs (N,) under the reference."""
        ngrams, columns = read_columns(sequences, reference_nll, self._pool)
        features = join_columns(ngrams, self._scale.apply(columns))
        return np.asarray(features @ self._weights) + self._bias


def open_proxy(
    storage: Storage, manifest: ProxyManifest, pool: PoolStates | None = None, device: str = "cpu", notes: Sequence[str] = ()
) -> ProxyScorer:
    """A proxy with its weights. Raises `DamagedFileError` where these are not what its manifest says."""
    content, is_held = storage.read_checked(layout.proxy_weights(manifest.proxy_id), manifest.weights_digest)
    if not is_held:
        raise DamagedFileError(
            f"{storage.url(layout.proxy_weights(manifest.proxy_id))} is not what its manifest says; delete it and run again"
        )
    return ProxyScorer(manifest, load(content), pool, device, notes)


def load_proxy(storage: Storage, proxy_id: str) -> ProxyManifest:
    """A fitted proxy. Raises `ProxyError` where it is not there."""
    manifest = find_proxy(storage, proxy_id)
    if manifest is None:
        raise ProxyError(
            f"proxy {proxy_id} is not at {storage.root}, or damaged; run `miniplm score CONFIG --model proxy`, which fits it again"
        )
    return manifest


def predict_shard(
    storage: Storage,
    corpus: CorpusManifest,
    shard: ShardEntry,
    entry: ModelEntry,
    scorer: ProxyScorer,
    on_progress: ProgressCallback = ignore_progress,
    worker: str = "",
    start_seconds: float | None = None,
) -> ScoreShardManifest:
    """Predicts a candidate shard and publishes it as `score_shard` does, without scores of documents.

    Raises `ScoreJoinError` where the shard has no verified scores of the reference, or its labels none of the teacher.
    """
    from miniplm.models.throughput import Throughput

    started = time.perf_counter()
    manifest, name = scorer.manifest, layout.shard_name(shard.shard_index)
    table = read_shard(storage, shard, columns=["sequence_id", "token_ids"])
    reference = _read_scores(storage, shard, manifest.reference.model_id, "reference")
    num_scored, reference_sum = (reference[column].to_numpy() for column in ("num_scored_tokens", "nll_sum"))
    reference_nll = reference_sum / np.maximum(num_scored, 1)
    sequences = read_token_ids(table)
    difference, done_tokens = np.zeros(len(sequences)), 0
    for first in range(0, len(sequences), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        difference[rows] = scorer.predict(sequences[rows], reference_nll[rows])
        done_tokens += sum(map(len, sequences[rows]))
        on_progress(Progress(f"score {entry.model_id} {name}", done_tokens, shard.num_tokens, "tokens"))
    predicted_sum = reference_sum - difference * num_scored
    rows_of_labels, labels_sum = _read_labels(storage, corpus, shard, manifest)
    predicted_sum[rows_of_labels] = labels_sum
    throughput = Throughput(shard.num_tokens, time.perf_counter() - started, None, None, None)
    return publish_shard(
        storage,
        shard,
        entry,
        table,
        PredictedScores(predicted_sum, num_scored, throughput),
        None,
        device=scorer.device,
        engine=scorer.describe(),
        worker=worker,
        start_seconds=start_seconds,
    )


def _read_scores(storage: Storage, shard: ShardEntry, model_id: str, role: str) -> pa.Table:
    state = check_score_shard(storage, shard, model_id)
    if state.manifest is None:
        reason = f": {state.reason}" if state.reason else ""
        raise ScoreJoinError(
            f"{shard.title} has no verified scores of the {role} {model_id}{reason}; run `miniplm score CONFIG --model {role}`"
        )
    return parse_scores(read_scores(storage, shard, state.manifest)).sort_by("sequence_id")


def _read_labels(
    storage: Storage, corpus: CorpusManifest, shard: ShardEntry, manifest: ProxyManifest
) -> tuple[NDArray[np.int64], Floats]:
    """Which rows of a shard the teacher scored (num_labels,), and its NLL sums of them (num_labels,)."""
    places = find_places(corpus, shard, manifest.share, manifest.seed)
    if not len(places.rows):
        return places.rows, np.zeros(0)
    labels = load_corpus(storage, manifest.labels_id)
    for other in labels.split_shards("candidate"):
        first = places.first_label_id - other.first_sequence_id
        if 0 <= first < other.num_sequences:
            table = _read_scores(storage, other, manifest.teacher.model_id, "teacher")
            return places.rows, table["nll_sum"].to_numpy()[first : first + len(places.rows)]
    raise ProxyError(
        f"labels {manifest.labels_id} do not hold those of {shard.title}; delete the folder corpora/{manifest.labels_id} and run again"
    )

"""A scored corpus of any size, in the layout of a real one but for its tokens, of which each sequence has one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.corpora import describe_corpus, name_tokenizer
from miniplm.corpus.shards import make_schema, publish_shard
from miniplm.models.throughput import Throughput
from miniplm.proxy.prediction import PredictedScores
from miniplm.records.manifests import CorpusManifest, ModelEntry, ShardEntry
from miniplm.scoring.shards import publish_shard as publish_scores
from miniplm.storage.root import Storage

TEACHER, REFERENCE = "teacher", "reference"
# 64 M tokens in sequences of 1,024 targets, as a shard has by default.
SHARD_SEQUENCES = 65_360
_LENGTH = 1025
_DOMAINS = np.array([f"domain-{number:02d}" for number in range(20)])
_SHARES = (1 / np.arange(1, 21)) / (1 / np.arange(1, 21)).sum()


def write_scored_corpus(storage: Storage, num_sequences: int, shard_sequences: int = SHARD_SEQUENCES) -> CorpusManifest:
    """Writes corpus shards and the scores of two models: 20 domains of unequal size, of which each has another mean difference."""
    starts = range(0, num_sequences, shard_sequences)
    # A thread waits for the disk most of the time.
    with ThreadPoolExecutor(16) as pool:
        shards = pool.map(
            lambda start: _write_shard(storage, start, min(shard_sequences, num_sequences - start), shard_sequences), starts
        )
        return describe_corpus("synthetic", name_tokenizer(50_000), _LENGTH, tuple(shards))


def _write_shard(storage: Storage, start: int, num_sequences: int, shard_sequences: int) -> ShardEntry:
    index = start // shard_sequences
    rng = np.random.default_rng(index)
    domains = rng.choice(len(_DOMAINS), num_sequences, p=_SHARES)
    ids = np.arange(start, start + num_sequences)
    ends = pa.array(np.arange(num_sequences + 1, dtype=np.int32))
    columns = [
        pa.array(ids),
        pa.array(_DOMAINS[domains], pa.string()).dictionary_encode(),
        pa.ListArray.from_arrays(ends, pa.array(ids)),
        pa.array(np.full(num_sequences, _LENGTH, dtype=np.int32)),
        pa.ListArray.from_arrays(ends, pa.array(np.ones(num_sequences, dtype=np.uint16))),
    ]
    table = pa.Table.from_arrays(columns, schema=make_schema(50_000))
    entry = publish_shard(storage, "synthetic", "candidate", index, start, table)
    num_scored = (_LENGTH - 1 - rng.integers(0, 4, num_sequences) * (rng.random(num_sequences) < 0.3)).astype(np.int32)
    # Sums of float32 means, as models give them.
    reference = np.float32(rng.normal(3.0, 0.5, num_sequences))
    teacher = np.float32(reference - rng.normal(0.2, 0.3, num_sequences) - 0.01 * domains)
    for model_id, nll in ((TEACHER, teacher), (REFERENCE, reference)):
        write_scores(storage, entry, model_id, num_scored, nll.astype(np.float64) * num_scored)
    return entry


def write_scores(
    storage: Storage, shard: ShardEntry, model_id: str, num_scored: NDArray[np.int32], nll_sum: NDArray[np.float64]
) -> None:
    """Publishes numbers of scored tokens and sums of NLLs, (num_sequences,) each, as the scores of a model that there is none of."""
    model = ModelEntry(model_id=model_id, source="none", dtype="float32", weights_digest="sha256:none", num_parameters=0)
    ids = pa.table({"sequence_id": np.arange(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)})
    scores = PredictedScores(nll_sum, num_scored, Throughput(shard.num_tokens, 1.0, None, None, None))
    publish_scores(storage, shard, model, ids, scores, None, device="none", engine={})

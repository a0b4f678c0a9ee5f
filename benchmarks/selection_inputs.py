"""A scored corpus of any size, in the layout of a real one but for its tokens, of which each sequence has one.

`coarse` makes one that fits on a smaller disk, 7 bytes a sequence instead of 42: NLLs are in steps of 1/256 nat and their files compressed. That is
harder to select of, as thousands of sequences lie at the threshold together, and other work to read.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.corpora import describe_corpus, name_tokenizer
from miniplm import layout
from miniplm.corpus.shards import make_schema, publish_shard
from miniplm.models.throughput import Throughput
from miniplm.proxy.prediction import PredictedScores
from miniplm.records.manifests import CorpusManifest, ModelEntry, ScoreShardManifest, ShardEntry
from miniplm.scoring.shards import publish_shard as publish_scores
from miniplm.storage.root import Storage, digest_file

TEACHER, REFERENCE = "teacher", "reference"
# 64 M tokens in sequences of 1,024 targets, as a shard has by default.
SHARD_SEQUENCES = 65_360
_LENGTH = 1025
# Steps of a nat, where NLLs are coarse.
_STEPS = 256
_DOMAINS = np.array([f"domain-{number:02d}" for number in range(20)])
_SHARES = (1 / np.arange(1, 21)) / (1 / np.arange(1, 21)).sum()


def write_scored_corpus(
    storage: Storage, num_sequences: int, shard_sequences: int = SHARD_SEQUENCES, coarse: bool = False
) -> CorpusManifest:
    """Writes corpus shards and the scores of two models: 20 domains of unequal size, of which each has another mean difference.

    Shards that are there are left as they are, so what was stopped goes on.
    """
    starts = range(0, num_sequences, shard_sequences)
    # A thread waits for the disk most of the time.
    with ThreadPoolExecutor(16) as pool:
        shards = pool.map(
            lambda start: _write_shard(storage, start, min(shard_sequences, num_sequences - start), shard_sequences, coarse), starts
        )
        return describe_corpus("synthetic", name_tokenizer(50_000), _LENGTH, tuple(shards))


def _write_shard(storage: Storage, start: int, num_sequences: int, shard_sequences: int, coarse: bool) -> ShardEntry:
    index = start // shard_sequences
    if (there := _find_shard(storage, start, index)) is not None:
        return there
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
        means = np.round(nll * _STEPS) / _STEPS if coarse else nll
        write_scores(storage, entry, model_id, num_scored, means.astype(np.float64) * num_scored)
        if coarse:
            _compress_scores(storage, entry, model_id)
    return entry


def _find_shard(storage: Storage, start: int, index: int) -> ShardEntry | None:
    """The entry of a shard that is there, of which the reference's manifest is written last."""
    try:
        written = ScoreShardManifest.model_validate(storage.read_json(layout.score_shard_manifest("synthetic", REFERENCE, index)))
    except FileNotFoundError:
        return None
    return ShardEntry(
        corpus_id="synthetic",
        split="candidate",
        shard_index=index,
        digest=written.shard_digest,
        num_bytes=storage.size_bytes(layout.corpus_shard("synthetic", "candidate", index)),
        num_sequences=written.num_sequences,
        num_tokens=written.num_tokens,
        first_sequence_id=start,
    )


def write_scores(
    storage: Storage, shard: ShardEntry, model_id: str, num_scored: NDArray[np.int32], nll_sum: NDArray[np.float64]
) -> None:
    """Publishes numbers of scored tokens and sums of NLLs, (num_sequences,) each, as the scores of a model that there is none of."""
    model = ModelEntry(model_id=model_id, source="none", dtype="float32", weights_digest="sha256:none", num_parameters=0)
    ids = pa.table({"sequence_id": np.arange(shard.first_sequence_id, shard.first_sequence_id + shard.num_sequences)})
    scores = PredictedScores(nll_sum, num_scored, Throughput(shard.num_tokens, 1.0, None, None, None))
    publish_scores(storage, shard, model, ids, scores, None, device="none", engine={})


def _compress_scores(storage: Storage, shard: ShardEntry, model_id: str) -> None:
    """Writes the score file of a model again, compressed, which the product's are not."""
    scores, manifest = (
        name("synthetic", model_id, shard.shard_index) for name in (layout.score_shard, layout.score_shard_manifest)
    )
    table = pq.read_table(pa.BufferReader(storage.read_bytes(scores)))
    with storage.publish(scores) as path:
        few, rows = ["num_scored_tokens", "nll_sum"], {"sequence_id": "DELTA_BINARY_PACKED"}
        pq.write_table(table, path, compression="zstd", use_dictionary=few, column_encoding=rows)
        facts = {"digest": digest_file(path), "num_bytes": path.stat().st_size}
    storage.write_json(manifest, storage.read_json(manifest) | facts)

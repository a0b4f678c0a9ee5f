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

from miniplm import layout
from miniplm.corpus.shards import ROW_GROUP_SEQUENCES, make_schema
from miniplm.records.manifests import CorpusManifest, ScoreShardManifest, ShardEntry, TokenizerEntry
from miniplm.scoring.shards import SCORE_SCHEMA
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
        tokenizer = TokenizerEntry(name="none", digest="sha256:none", vocab_size=50_000, eos_token="<eos>", eos_token_id=0)
        return CorpusManifest(
            corpus_id="synthetic",
            tokenizer=tokenizer,
            sequence_length=_LENGTH,
            sources=(),
            num_records=num_sequences,
            rejected={},
            domains={"candidate": {}},
            shards=tuple(shards),
            versions={},
        )


def _write_shard(storage: Storage, start: int, num_sequences: int, shard_sequences: int, coarse: bool) -> ShardEntry:
    index = start // shard_sequences
    if (there := _find_shard(storage, start, index)) is not None:
        return there
    rng = np.random.default_rng(index)
    domains = rng.choice(len(_DOMAINS), num_sequences, p=_SHARES)
    schema = make_schema(50_000)
    with storage.publish(layout.corpus_shard("synthetic", "candidate", index)) as path:
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["domain"]) as writer:
            for first in range(0, num_sequences, ROW_GROUP_SEQUENCES):
                here = domains[first : first + ROW_GROUP_SEQUENCES]
                ids = np.arange(start + first, start + first + len(here))
                ends = pa.array(np.arange(len(here) + 1, dtype=np.int32))
                columns = [
                    pa.array(ids),
                    pa.array(_DOMAINS[here], pa.string()).dictionary_encode(),
                    pa.ListArray.from_arrays(ends, pa.array(ids)),
                    pa.array(np.full(len(here), _LENGTH, dtype=np.int32)),
                    pa.ListArray.from_arrays(ends, pa.array(np.ones(len(here), dtype=np.uint16))),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=ROW_GROUP_SEQUENCES)
        entry = ShardEntry(
            corpus_id="synthetic",
            split="candidate",
            shard_index=index,
            digest=digest_file(path),
            num_bytes=path.stat().st_size,
            num_sequences=num_sequences,
            num_tokens=num_sequences * _LENGTH,
            first_sequence_id=start,
        )
    num_scored = (_LENGTH - 1 - rng.integers(0, 4, num_sequences) * (rng.random(num_sequences) < 0.3)).astype(np.int32)
    # Sums of float32 means, as models give them.
    reference = np.float32(rng.normal(3.0, 0.5, num_sequences))
    teacher = np.float32(reference - rng.normal(0.2, 0.3, num_sequences) - 0.01 * domains)
    for model_id, nll in ((TEACHER, teacher), (REFERENCE, reference)):
        means = np.round(nll * _STEPS) / _STEPS if coarse else nll
        _write_scores(storage, entry, model_id, num_scored, means.astype(np.float64) * num_scored, coarse)
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


def _write_scores(
    storage: Storage,
    entry: ShardEntry,
    model_id: str,
    num_scored: NDArray[np.int32],
    nll_sum: NDArray[np.float64],
    coarse: bool,
) -> None:
    """Both columns are (num_sequences,)."""
    ids = np.arange(entry.first_sequence_id, entry.first_sequence_id + entry.num_sequences)
    table = pa.Table.from_arrays([pa.array(ids), pa.array(num_scored), pa.array(nll_sum)], schema=SCORE_SCHEMA)
    with storage.publish(layout.score_shard("synthetic", model_id, entry.shard_index)) as path:
        if coarse:
            few, rows = ["num_scored_tokens", "nll_sum"], {"sequence_id": "DELTA_BINARY_PACKED"}
            pq.write_table(table, path, compression="zstd", use_dictionary=few, column_encoding=rows)
        else:
            pq.write_table(table, path, compression="none", use_dictionary=False)
        digest, num_bytes = digest_file(path), path.stat().st_size
    manifest = ScoreShardManifest(
        corpus_id="synthetic",
        model_id=model_id,
        shard_index=entry.shard_index,
        shard_digest=entry.digest,
        digest=digest,
        num_bytes=num_bytes,
        num_sequences=entry.num_sequences,
        num_tokens=entry.num_tokens,
        num_scored_tokens=int(num_scored.sum()),
        nll_sum=float(nll_sum.sum()),
        seconds=1.0,
        device="none",
        dtype="float32",
        versions={},
    )
    storage.write_json(layout.score_shard_manifest("synthetic", model_id, entry.shard_index), manifest.as_json())

"""Corpora and score files made by hand, for tests of what comes after preparation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.records.manifests import CorpusManifest, DomainCounts, ScoreShardManifest, ShardEntry, TokenizerEntry
from miniplm.scoring.shards import SCORE_SCHEMA
from miniplm.storage.root import Storage, digest_file


def make_corpus(
    storage: Storage,
    shards: Mapping[str, Sequence[Sequence[Sequence[int]]]],
    corpus_id: str = "made",
    vocab_size: int = 100,
    eos_token_id: int = 0,
    domains: Sequence[str] = ("a", "b"),
    sequence_length: int = 64,
    document_ids: Mapping[int, Sequence[int]] | None = None,
) -> CorpusManifest:
    """Writes a corpus: `shards[split][shard][sequence]` are token ids; domains go round by sequence id.

    A sequence is one document with the sequence's id, unless `document_ids` has others for that id.
    """
    entries = []
    counts: dict[str, dict[str, DomainCounts]] = {split: {} for split in layout.SPLITS}
    next_id = 0
    for split, split_shards in shards.items():
        for index, sequences in enumerate(split_shards):
            ids = list(range(next_id, next_id + len(sequences)))
            names = [domains[sequence_id % len(domains)] for sequence_id in ids]
            table = pa.table(
                {
                    "sequence_id": pa.array(ids, pa.int64()),
                    "domain": pa.array(names).dictionary_encode(),
                    "document_ids": pa.array([(document_ids or {}).get(one, [one]) for one in ids], pa.list_(pa.int64())),
                    "num_tokens": pa.array([len(sequence) for sequence in sequences], pa.int32()),
                    "token_ids": pa.array([list(map(int, sequence)) for sequence in sequences], pa.list_(pa.uint16())),
                }
            )
            with storage.publish(layout.corpus_shard(corpus_id, split, index)) as path:
                pq.write_table(table, path)
                digest, num_bytes = digest_file(path), path.stat().st_size
            entries.append(
                ShardEntry(
                    corpus_id=corpus_id,
                    split=split,
                    shard_index=index,
                    digest=digest,
                    num_bytes=num_bytes,
                    num_sequences=len(sequences),
                    num_tokens=sum(map(len, sequences)),
                    first_sequence_id=next_id,
                )
            )
            for name, sequence in zip(names, sequences, strict=True):
                old = counts[split].get(name, DomainCounts())
                counts[split][name] = DomainCounts(
                    num_documents=old.num_documents + 1,
                    num_bytes=old.num_bytes + 3 * len(sequence),
                    num_tokens=old.num_tokens + len(sequence),
                    num_sequences=old.num_sequences + 1,
                )
            next_id += len(sequences)
    manifest = CorpusManifest(
        corpus_id=corpus_id,
        tokenizer=TokenizerEntry(
            name="made", digest="sha256:made", vocab_size=vocab_size, eos_token="<eos>", eos_token_id=eos_token_id
        ),
        sequence_length=sequence_length,
        sources=(),
        num_records=next_id,
        rejected={},
        domains=counts,
        shards=tuple(entries),
        versions={},
    )
    storage.write_json(layout.corpus_manifest(corpus_id), manifest.as_json())
    return manifest


def write_scores(
    storage: Storage,
    shard: ShardEntry,
    model_id: str,
    nll_sum: Sequence[float],
    num_scored_tokens: Sequence[int],
    sequence_ids: Sequence[int] | None = None,
) -> None:
    """Writes a score shard and a manifest that agrees with it."""
    if sequence_ids is None:
        sequence_ids = range(shard.first_sequence_id, shard.first_sequence_id + len(nll_sum))
    table = pa.Table.from_arrays(
        [pa.array(sequence_ids, pa.int64()), pa.array(num_scored_tokens, pa.int32()), pa.array(nll_sum, pa.float64())],
        schema=SCORE_SCHEMA,
    )
    with storage.publish(layout.score_shard(shard.corpus_id, model_id, shard.shard_index)) as path:
        pq.write_table(table, path)
        digest, num_bytes = digest_file(path), path.stat().st_size
    manifest = ScoreShardManifest(
        corpus_id=shard.corpus_id,
        model_id=model_id,
        shard_index=shard.shard_index,
        shard_digest=shard.digest,
        digest=digest,
        num_bytes=num_bytes,
        num_sequences=len(nll_sum),
        num_tokens=shard.num_tokens,
        num_scored_tokens=int(np.sum(num_scored_tokens)),
        nll_sum=0.0,
        seconds=1.0,
        device="cpu",
        dtype="float32",
        versions={},
    )
    storage.write_json(layout.score_shard_manifest(shard.corpus_id, model_id, shard.shard_index), manifest.as_json())

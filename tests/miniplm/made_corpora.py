"""Corpora and score files made by hand, for tests of what comes after preparation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from miniplm import layout
from miniplm.corpus.shards import ROW_GROUP_SEQUENCES, publish_shard
from miniplm.records.manifests import CorpusManifest, DomainCounts, ScoreShardManifest, ShardEntry, TokenizerEntry
from miniplm.records.selections import SelectionManifest, SelectionShardEntry
from miniplm.scoring.shards import SCORE_SCHEMA
from miniplm.storage.root import Storage
from miniplm.storage.tables import publish_table


def make_corpus(
    storage: Storage,
    shards: Mapping[str, Sequence[Sequence[Sequence[int]]]],
    corpus_id: str = "made",
    vocab_size: int = 100,
    eos_token_id: int = 0,
    domains: Sequence[str] = ("a", "b"),
    sequence_length: int = 64,
    document_ids: Mapping[int, Sequence[int]] | None = None,
    row_group_size: int = ROW_GROUP_SEQUENCES,
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
            entries.append(publish_shard(storage, corpus_id, split, index, next_id, table, row_group_size))
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
    versions: Mapping[str, str] | None = None,
) -> None:
    """Writes a score shard and a manifest that agrees with it."""
    if sequence_ids is None:
        sequence_ids = range(shard.first_sequence_id, shard.first_sequence_id + len(nll_sum))
    table = pa.Table.from_arrays(
        [pa.array(sequence_ids, pa.int64()), pa.array(num_scored_tokens, pa.int32()), pa.array(nll_sum, pa.float64())],
        schema=SCORE_SCHEMA,
    )
    digest, num_bytes = publish_table(storage, layout.score_shard(shard.corpus_id, model_id, shard.shard_index), table)
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
        versions=dict(versions or {}),
    )
    storage.write_json(layout.score_shard_manifest(shard.corpus_id, model_id, shard.shard_index), manifest.as_json())


def describe_selection(
    selection_id: str, corpus_id: str, shards: Sequence[SelectionShardEntry] = (), **facts: Any
) -> SelectionManifest:
    """The manifest of a selection of which these shards were published, with these `facts`."""
    content: dict[str, Any] = {
        "teacher_id": "t",
        "reference_id": "r",
        "ratio": 0.5,
        "score": "mean",
        "num_candidates": 20,
        "num_selected": sum(shard.num_sequences for shard in shards),
        "num_selected_tokens": sum(shard.num_tokens for shard in shards),
        "num_negative": 0,
        "threshold": 0.0,
        "domains": {},
    }
    return SelectionManifest(selection_id=selection_id, corpus_id=corpus_id, shards=tuple(shards), **content | facts)

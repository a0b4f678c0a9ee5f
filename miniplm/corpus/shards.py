"""A shard of sequences as a Parquet file: its schema, and the shard that is being filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from miniplm import layout
from miniplm.corpus.packing import PackedSequence
from miniplm.records.manifests import DomainCounts, ShardEntry, Split
from miniplm.storage.root import Storage
from miniplm.storage.tables import publish_table

# Fixed, so that the same sequences give the same bytes.
ROW_GROUP_SEQUENCES = 4096
_LARGEST_UINT16_VOCABULARY = 1 << 16


def make_schema(vocab_size: int) -> pa.Schema:
    """The columns of a shard; token ids are uint16 where the vocabulary allows it."""
    token_type = pa.uint16() if vocab_size <= _LARGEST_UINT16_VOCABULARY else pa.uint32()
    return pa.schema(
        [
            pa.field("sequence_id", pa.int64(), nullable=False),
            pa.field("domain", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            pa.field("document_ids", pa.list_(pa.int64()), nullable=False),
            pa.field("num_tokens", pa.int32(), nullable=False),
            pa.field("token_ids", pa.list_(token_type), nullable=False),
        ]
    )


def publish_shard(
    storage: Storage,
    corpus_id: str,
    split: Split,
    shard_index: int,
    first_sequence_id: int,
    table: pa.Table,
    row_group_size: int = ROW_GROUP_SEQUENCES,
) -> ShardEntry:
    """Publishes a table of sequences as a shard, of which `first_sequence_id` is the first."""
    relative = layout.corpus_shard(corpus_id, split, shard_index)
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["domain"], "row_group_size": row_group_size}
    digest, num_bytes = publish_table(storage, relative, table, **options)
    return ShardEntry(
        corpus_id=corpus_id,
        split=split,
        shard_index=shard_index,
        digest=digest,
        num_bytes=num_bytes,
        num_sequences=len(table),
        num_tokens=int(table["num_tokens"].to_numpy().sum()),
        first_sequence_id=first_sequence_id,
    )


class OpenShard:
    """The sequences of a shard that is not full yet, in memory: 2 or 4 bytes a token."""

    def __init__(self, vocab_size: int) -> None:
        self._schema = make_schema(vocab_size)
        self._dtype = self._schema.field("token_ids").type.value_type.to_pandas_dtype()
        self._domains: list[str] = []
        self._document_ids: list[NDArray[np.int64]] = []
        self._token_ids: list[NDArray[Any]] = []

    def __len__(self) -> int:
        return len(self._token_ids)

    @property
    def num_tokens(self) -> int:
        return sum(len(token_ids) for token_ids in self._token_ids)

    def append(self, domain: str, sequence: PackedSequence) -> None:
        self._domains.append(domain)
        self._document_ids.append(np.array(sequence.document_ids, dtype=np.int64))
        self._token_ids.append(sequence.token_ids.astype(self._dtype))

    def count_domains(self) -> dict[str, DomainCounts]:
        """Sequences and tokens of each domain."""
        counts: dict[str, list[int]] = {}
        for domain, token_ids in zip(self._domains, self._token_ids, strict=True):
            count = counts.setdefault(domain, [0, 0])
            count[0] += 1
            count[1] += len(token_ids)
        return {domain: DomainCounts(num_sequences=count[0], num_tokens=count[1]) for domain, count in counts.items()}

    def write(self, path: Path, first_sequence_id: int) -> None:
        """Writes the file; its sequences get the ids from `first_sequence_id` on, in order."""
        # A dictionary pays for values that repeat, as domains do; token ids have as many as the vocabulary.
        with pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=["domain"]) as writer:
            for start in range(0, len(self), ROW_GROUP_SEQUENCES):
                stop = min(start + ROW_GROUP_SEQUENCES, len(self))
                writer.write_table(self._make_table(start, stop, first_sequence_id), row_group_size=ROW_GROUP_SEQUENCES)

    def _make_table(self, start: int, stop: int, first_sequence_id: int) -> pa.Table:
        token_ids = self._token_ids[start:stop]
        columns = [
            pa.array(np.arange(first_sequence_id + start, first_sequence_id + stop, dtype=np.int64)),
            pa.array(self._domains[start:stop], pa.string()).dictionary_encode(),
            _make_lists(self._document_ids[start:stop]),
            pa.array(np.array([len(ids) for ids in token_ids], dtype=np.int32)),
            _make_lists(token_ids),
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)


def _make_lists(rows: list[NDArray[Any]]) -> pa.ListArray:
    """A list a row, each (num_values,). Offsets are int32: a row group has at most 2**31 values, as a shard is bounded (`config.fields`)."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, np.concatenate(rows))

"""What a selection kept of one candidate shard: its file, read and published."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.errors import CorpusError
from miniplm.records.manifests import ShardEntry
from miniplm.records.selections import SelectionShardEntry
from miniplm.selection.candidates import Integers
from miniplm.storage.root import Storage, digest_stream
from miniplm.storage.tables import publish_table


def read_selection_shard(storage: Storage, selection_id: str, shard_index: int, digest: str, number: int = 1) -> pa.Table:
    """The rows of a selection's file: kept sequences, or the kept documents that begin in the shard or before and end in it or later.

    Of a pass after the first, where a budget repeats them, those that are used at least so often.
    Raises `CorpusError` where the file is missing, or not the one of that digest.
    """
    relative = layout.selection_shard(selection_id, shard_index)
    try:
        content = storage.read_bytes(relative)
    except FileNotFoundError:
        content = b""
    if digest_stream(pa.BufferReader(content)) != digest:
        raise CorpusError(
            f"{storage.url(relative)} is missing or not what its manifest says; make it again with `miniplm select CONFIG`"
        )
    table = pq.read_table(pa.BufferReader(content))
    if number == 1:
        return table
    return (
        table.filter(pc.greater_equal(table["repetitions"], number)) if "repetitions" in table.schema.names else table.slice(0, 0)
    )


def publish_kept(
    storage: Storage, selection_id: str, shard: ShardEntry, table: pa.Table, counted: pa.Table, num_tokens: Integers
) -> SelectionShardEntry:
    """Publishes what is kept of a shard; its entry tells of the rows that are `counted`, of `num_tokens` (num_counted,).

    More than half of what it costs is the dictionary that PyArrow tries for each column, of which no column of distinct numbers needs one;
    without it selections would have other bytes than they have had so far.
    """
    digest, num_bytes = publish_table(storage, layout.selection_shard(selection_id, shard.shard_index), table, compression="zstd")
    uses = {}
    if "repetitions" in counted.schema.names:  # rows that are used more than once
        repetitions = counted["repetitions"].to_numpy().astype(np.int64)
        uses = {"num_uses": int(repetitions.sum()), "num_used_tokens": int((repetitions * num_tokens).sum())}
    return SelectionShardEntry(
        shard_index=shard.shard_index,
        corpus_id=shard.corpus_id,
        digest=digest,
        num_bytes=num_bytes,
        num_sequences=len(num_tokens),
        num_tokens=int(num_tokens.sum()),
        **uses,
    )

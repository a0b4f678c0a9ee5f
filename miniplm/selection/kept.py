"""What a selection kept of one candidate shard, as its file says."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miniplm import layout
from miniplm.errors import CorpusError
from miniplm.storage.root import Storage, digest_stream


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

"""Tables as Parquet files: published, and read where they are whole."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from miniplm.errors import CorpusError
from miniplm.storage.root import Storage, digest_stream


def publish_table(storage: Storage, relative: str, table: pa.Table, **options: Any) -> tuple[str, int]:
    """Publishes a table, written with these options of `pyarrow.parquet.write_table`; gives digest and size of its file, which is in memory once."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    content = sink.getvalue()
    storage.write_bytes(relative, content)
    return digest_stream(pa.BufferReader(content)), content.size


def read_table(storage: Storage, relative: str, digest: str, what_follows: str) -> pa.Table:
    """The rows of a file of this digest. Raises `CorpusError` where it is missing or damaged; it says what a run without it does."""
    try:
        content, is_whole = storage.read_checked(relative, digest)
    except FileNotFoundError:
        content, is_whole = b"", False
    if not is_whole:
        raise CorpusError(f"{storage.url(relative)} is missing or damaged; delete it and run again: {what_follows}")
    return pq.read_table(pa.BufferReader(content))

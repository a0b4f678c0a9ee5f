"""DuckDB over the files of a storage root."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from miniplm.cores import count_cores
from miniplm.errors import StorageError, StorageUnavailableError
from miniplm.storage.root import Storage

# Requests to a store at a time; a thread waits for the answer most of the time.
_REMOTE_THREADS = 16


def count_threads(storage: Storage) -> int:
    """How many shards are worked on at a time: as many as this process may use cores, more where it waits for a store."""
    if not storage.is_local:
        return _REMOTE_THREADS
    return count_cores()


@contextmanager
def connect(storage: Storage) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB that reads files at the storage root; what does not fit in memory spills to a temporary folder.

    Raises what a remote root raises, which DuckDB makes an error of its own.
    """
    with (
        tempfile.TemporaryDirectory(prefix="miniplm-duckdb-") as spill,
        duckdb.connect(config={"temp_directory": spill}) as connection,
    ):
        if not storage.is_local:
            connection.register_filesystem(storage.open_snapshot())
            connection.execute(f"SET threads = {_REMOTE_THREADS}")
        try:
            yield connection
        except duckdb.Error as error:
            raise_store_error(error)
            raise


_STORE_ERRORS = {kind.__name__: kind for kind in (StorageError, StorageUnavailableError)}


def raise_store_error(error: duckdb.Error) -> None:
    """Raises the error of a remote root that DuckDB met while it read: all that is left of it is a line of the message."""
    told = re.search(rf"^({'|'.join(_STORE_ERRORS)}): (.+)$", str(error), re.MULTILINE)
    if told:
        raise _STORE_ERRORS[told[1]](told[2]) from error

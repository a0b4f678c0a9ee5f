"""Files at the storage root as DuckDB reads them: the only place where a Parquet file is named in SQL."""

from __future__ import annotations

import glob
from collections.abc import Iterable

from miniplm.storage.root import Storage


def scan_parquet(storage: Storage, relatives: Iterable[str]) -> str:
    """The table of some Parquet files, for `FROM`: their own columns and no others.

    DuckDB would take a folder `domain=mixed` of the storage root for a column, which hides the file's, and `[`, `*` and `?` in a
    folder's name for a pattern.
    """
    files = ", ".join("'" + glob.escape(storage.url(relative)).replace("'", "''") + "'" for relative in relatives)
    return f"read_parquet([{files}], hive_partitioning = false)"

"""What the bytes of source files are, each file read once for it: digests and compressions are kept at the storage root by the file's identity."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from miniplm import layout
from miniplm.errors import DamagedFileError
from miniplm.sources.blocks import recognise_file
from miniplm.sources.compression import Compression
from miniplm.sources.files import SourceFile, open_raw
from miniplm.storage import Storage, digest_stream

# A file written to this lately may be written to again within one tick of its time stamp.
_SETTLED_SECONDS = 2.0
_MOST_THREADS = 8
_NONE = "none"


def digest_source_files(storage: Storage, files: Sequence[SourceFile]) -> list[str]:
    """The digest of each file's stored bytes, in order. Raises `SourceError` where one cannot be read."""
    return _look_up(storage, "", files, lambda file: _digest_file(file))


def recognise_source_files(storage: Storage, files: Sequence[SourceFile]) -> list[Compression | None]:
    """How each file is compressed, by its first bytes, in order. Raises `SourceError` where one cannot be read."""
    found = _look_up(storage, " compression", files, lambda file: recognise_file(file) or _NONE)
    return [None if name == _NONE else cast(Compression, name) for name in found]


def _look_up(storage: Storage, fact: str, files: Sequence[SourceFile], look: Callable[[SourceFile], str]) -> list[str]:
    """A fact about each file that is kept at the storage root; files of which it is not kept are looked at, each once."""
    kept = _read_kept(storage)
    unknown = {key: file for file in files if (key := _identify(file) + fact) not in kept}
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        computed = dict(zip(unknown, pool.map(look, unknown.values()), strict=True))
    keepable = {key: computed[key] for key, file in unknown.items() if _is_settled(file)}
    if keepable:
        # Read again: another preparation may have added its own meanwhile. Losing some costs only time.
        storage.write_json(layout.source_digests(), {**_read_kept(storage), **keepable})
    known = {**kept, **computed}
    return [known[_identify(file) + fact] for file in files]


def _read_kept(storage: Storage) -> dict[str, str]:
    if not storage.exists(layout.source_digests()):
        return {}
    try:
        kept = storage.read_json(layout.source_digests())
    except DamagedFileError:
        return {}  # only a memory of what can be read again; written anew
    return kept if isinstance(kept, dict) else {}


def _identify(file: SourceFile) -> str:
    return f"{file.path} size={file.num_bytes} {file.version}"


def _digest_file(file: SourceFile) -> str:
    with open_raw(file) as raw:
        digest = digest_stream(raw)
    file.check_unchanged()
    return digest


def _is_settled(file: SourceFile) -> bool:
    if not file.version:
        return False
    return not file.is_local or time.time() - os.stat(file.filesystem_path).st_mtime > _SETTLED_SECONDS

"""What reading a file has told, kept at the storage root by the file's identity, so that no file is read twice for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from miniplm import layout
from miniplm.errors import DamagedFileError, StorageError
from miniplm.storage.root import Storage, digest_content, digest_file, identify_file

# A file written to this lately may be written to again within one tick of its time stamp; FAT's is the coarsest, with 2 s.
SETTLED_SECONDS = 2.0
_MOST_THREADS = 8


def look_up(storage: Storage, looks: Mapping[str, Callable[[], str]], is_keepable: Callable[[str], bool]) -> dict[str, str]:
    """A fact a key. What is kept at the storage root is not looked at again; the rest is, in threads, and kept where it may be.

    A key is the identity of a file, and which fact of it is told.
    """
    kept = _read_kept(storage)
    unknown = {key: look for key, look in looks.items() if key not in kept}
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        found = dict(zip(unknown, pool.map(lambda look: look(), unknown.values()), strict=True))
    if keepable := {key: fact for key, fact in found.items() if is_keepable(key)}:
        # Read again: another process may have added its own meanwhile. Losing some costs only time, as for who may only look at the root.
        with suppress(StorageError):
            storage.write_json(layout.source_digests(), {**_read_kept(storage), **keepable})
    return {key: kept[key] if key in kept else found[key] for key in looks}


def digest_kept_file(storage: Storage, path: Path) -> str:
    """The digest of a local file, as `digest_file` gives it."""
    key = identify_file(path.absolute())
    return look_up(storage, {key: lambda: digest_file(path)}, lambda _: is_settled(path))[key]


def pass_once(storage: Storage, check: str, paths: Sequence[Path], run: Callable[[], None]) -> None:
    """Runs a check of local files that raises where it fails; not again where the same files have passed it before."""

    def look() -> str:
        run()
        return "passed"

    key = f"{check} {digest_content([identify_file(path.absolute()) for path in paths], length=32)}"
    look_up(storage, {key: look}, lambda _: all(map(is_settled, paths)))


def is_settled(path: Path) -> bool:
    """Whether a local file was not written to just now, when it may be again without another time stamp."""
    return bool(identify_file(path, SETTLED_SECONDS))


def _read_kept(storage: Storage) -> dict[str, str]:
    if not storage.exists(layout.source_digests()):
        return {}
    try:
        kept = storage.read_json(layout.source_digests())
    except DamagedFileError:
        return {}  # only a memory of what can be read again; written anew
    return kept if isinstance(kept, dict) else {}

"""Folders of a store that others read as local files: copied to this machine once, and named by what is in them."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from miniplm.errors import StorageError
from miniplm.storage.root import Storage, digest_content

# A folder, and folders in it: as deep as models and tokenizers go.
_MOST_DEPTH = 2
# By which a store says that a file has changed, the best first; the last two are times.
_TAGS = ("ETag", "etag", "generation", "md5Hash", "mtime", "created")
_log = logging.getLogger("miniplm")


def is_url(name: str) -> bool:
    """Whether the name of a folder is a URL, and no path or id."""
    return "://" in name


def fetch_folder(url: str, wanted: Sequence[str], cache: Path) -> Path:
    """A local folder with those files at `url` whose names match a pattern of `wanted`; of a local URL the folder itself.

    Copies lie below `cache` by the names, sizes and tags of their files: what is changed at the URL is copied anew, what is the same
    at two URLs of one store is not. Of several processes one copies. A process that is killed leaves nothing that is taken for whole.

    Raises `FileNotFoundError` where no such file is there, `StorageError` where the store cannot be read, its files change
    while they are copied, or `cache` cannot be written.
    """
    storage = Storage(url)
    if storage.is_local:
        if not os.path.isdir(storage.root_path):
            raise FileNotFoundError(f"there is no folder {storage.root_path}")
        return Path(storage.root_path)
    files = _list_files(storage, wanted)
    if not files:
        raise FileNotFoundError(f"there is no file at {url} whose name is one of {', '.join(wanted)}")
    # The last part of the URL, since messages name the folder.
    folder = cache / digest_content(files, length=32) / url.rstrip("/").rsplit("/", 1)[-1]
    if not folder.is_dir():
        with _cache_errors(cache), _one_process(folder.parent):
            if not folder.is_dir():
                _copy(storage, url, files, wanted, folder)
    return folder


def _list_files(storage: Storage, wanted: Sequence[str]) -> list[tuple[str, int, str]]:
    """Path below the URL, bytes and tag of each file that is wanted, sorted."""
    found: dict[str, dict[str, Any]] = storage.find_files("", _MOST_DEPTH)
    files = []
    for relative, info in found.items():
        name = relative.rsplit("/", 1)[-1]
        if ".." in relative.split("/") or not any(fnmatch(name, pattern) for pattern in wanted):
            continue
        tag = next((f"{key}={info[key]}" for key in _TAGS if info.get(key)), "")
        files.append((relative, int(info["size"]), tag))
    return sorted(files)


def _copy(storage: Storage, url: str, files: list[tuple[str, int, str]], wanted: Sequence[str], folder: Path) -> None:
    began, partial = time.monotonic(), folder.parent / "partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed, as this one has the lock
    for relative, _, _ in files:
        (partial / relative).parent.mkdir(parents=True, exist_ok=True)
    storage.download("", partial, [relative for relative, _, _ in files])
    if _list_files(storage, wanted) != files:
        raise StorageError(f"the files at {url} changed while they were copied; run the same command again when they are at rest")
    os.rename(partial, folder)
    num_bytes = sum(size for _, size, _ in files)
    _log.info("%s copied to %s: %.1f MB in %.1f s", url, folder, num_bytes / 1e6, time.monotonic() - began)


@contextmanager
def _one_process(folder: Path) -> Iterator[None]:
    """Holds a lock of this machine for the block; whoever else wants it waits."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"a file was deleted while it was copied to {cache} ({error}); run the same command again") from error
    except OSError as error:
        if error.strerror is None:  # a client's, of the connection
            raise
        raise StorageError(
            f"cannot write {error.filename or cache}: {error.strerror}. Models and tokenizers at URLs are copied there; "
            "free some space, or set HF_HOME to another folder"
        ) from error

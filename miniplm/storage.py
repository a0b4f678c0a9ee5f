"""The storage root: one fsspec URL below which every artifact is published whole or not at all.

A file is written under a temporary name and appears under its final name complete: by an atomic rename where
the file system has one (`file`), by one upload of a finished local file elsewhere (`s3`, `gs`, `memory`), where
an object becomes visible only when its upload has ended.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import posixpath
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from miniplm.errors import StorageError

_TEMPORARY_PREFIX = ".tmp-"
_BLOCK_BYTES = 1 << 20


class Storage:
    """Reads and publishes files below a root URL; all paths given to it are relative to the root, with `/`.

    Raises `StorageError` where the root cannot be written (no right, no space) and `FileNotFoundError` where a
    file that is read does not exist.
    """

    def __init__(self, root: str) -> None:
        self.root = root if root.endswith("://") else root.rstrip("/") or root
        filesystem, path = url_to_fs(self.root, **({"default_cache_type": "none"} if root.startswith("s3") else {}))
        self.filesystem = cast(fsspec.AbstractFileSystem, filesystem)
        self.root_path = str(path).rstrip("/")
        self.is_local = isinstance(filesystem, LocalFileSystem)

    def path(self, relative: str) -> str:
        """The path of a file as the root's file system knows it (no protocol)."""
        return posixpath.join(self.root_path, relative) if relative else self.root_path

    def url(self, relative: str) -> str:
        """The full URL of a file; for a local root the plain path."""
        return self.path(relative) if self.is_local else self.filesystem.unstrip_protocol(self.path(relative))

    def exists(self, relative: str) -> bool:
        return bool(self.filesystem.exists(self.path(relative)))

    def size_bytes(self, relative: str) -> int:
        return int(self.filesystem.size(self.path(relative)))

    def list_names(self, relative: str) -> list[str]:
        """Names directly below a folder, sorted; empty where the folder does not exist."""
        try:
            entries = self.filesystem.ls(self.path(relative), detail=False)
        except FileNotFoundError:
            return []
        names = {posixpath.basename(str(entry).rstrip("/")) for entry in entries}
        return sorted(name for name in names if name and not name.startswith(_TEMPORARY_PREFIX))

    def open(self, relative: str) -> IO[bytes]:
        return cast(IO[bytes], self.filesystem.open(self.path(relative), "rb"))

    def read_bytes(self, relative: str) -> bytes:
        return cast(bytes, self.filesystem.cat_file(self.path(relative)))

    def read_json(self, relative: str) -> Any:
        """The parsed file; `StorageError` where it is not JSON."""
        try:
            return json.loads(self.read_bytes(relative))
        except ValueError as error:
            raise StorageError(f"{self.url(relative)} is not valid JSON ({error}); delete it and run again") from error

    def digest(self, relative: str) -> str:
        """`sha256:` and the hex digest of a file's bytes."""
        with self.open(relative) as file:
            return digest_stream(file)

    @contextmanager
    def publish(self, relative: str) -> Iterator[Path]:
        """Gives a local path to write to; when the block ends without an error the file appears whole at `relative`.

        Nothing appears when the block raises or the process dies.
        """
        final = self.path(relative)
        if self.is_local:
            folder = Path(final).parent
            with self._storage_errors(relative):
                folder.mkdir(parents=True, exist_ok=True)
            # The ending keeps it out of patterns such as `*.parquet`.
            temporary = folder / f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}-{posixpath.basename(relative)}.partial"
        else:
            temporary = Path(tempfile.mkdtemp(prefix="miniplm-")) / posixpath.basename(relative)
        try:
            with self._storage_errors(relative):
                yield temporary
                if self.is_local:
                    with open(temporary, "rb+") as file:
                        os.fsync(file.fileno())
                    os.replace(temporary, final)
                else:
                    self.filesystem.put_file(str(temporary), final)
        finally:
            if self.is_local:
                temporary.unlink(missing_ok=True)
            else:
                shutil.rmtree(temporary.parent, ignore_errors=True)

    def write_bytes(self, relative: str, content: bytes) -> None:
        with self.publish(relative) as path:
            path.write_bytes(content)

    def write_json(self, relative: str, content: Any) -> None:
        """Publishes `content` as indented JSON with sorted keys, so that equal contents are equal bytes."""
        self.write_bytes(relative, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())

    def download(self, relative: str, folder: Path) -> Path:
        """A local path that holds the whole folder `relative`: the folder itself where the root is local."""
        if self.is_local:
            return Path(self.path(relative))
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.list_names(relative):
            self.filesystem.get_file(self.path(posixpath.join(relative, name)), str(folder / name))
        return folder

    def delete(self, relative: str) -> None:
        """Deletes a file or a folder; nothing happens where there is none."""
        if self.exists(relative):
            self.filesystem.rm(self.path(relative), recursive=True)

    def delete_temporary_files(self, relative: str, older_than_seconds: float = 0.0) -> int:
        """Deletes what dead processes left behind below a folder and says how many files that were.

        Where other processes may be at work there, only what is older than any file takes to be written.
        """
        if not self.is_local or not os.path.isdir(self.path(relative)):
            return 0
        num_deleted = 0
        for leftover in Path(self.path(relative)).glob(f"**/{_TEMPORARY_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):  # its writer was alive, and has just published it
                if time.time() - leftover.stat().st_mtime >= older_than_seconds:
                    leftover.unlink()
                    num_deleted += 1
        return num_deleted

    @contextmanager
    def _storage_errors(self, relative: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                raise StorageError(
                    f"cannot write {self.url(relative)}: {error.strerror}. Give the config a `storage` that this user may write to"
                ) from error
            if error.errno in _NO_SPACE:
                raise StorageError(
                    f"cannot write {self.url(relative)}: {error.strerror}. Nothing was published under that name; "
                    "free some space and run the same command again, finished shards are kept"
                ) from error
            raise


_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR})


def digest_stream(file: IO[bytes]) -> str:
    """`sha256:` and the hex digest of what is left to read of an open binary file."""
    sha = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        sha.update(block)
    return f"sha256:{sha.hexdigest()}"


def digest_file(path: Path) -> str:
    """The digest of a local file, as `Storage.digest` gives it."""
    with open(path, "rb") as file:
        return digest_stream(file)


def digest_content(content: Any, length: int = 12) -> str:
    """A short stable hex digest of JSON-like content; the ids of artifacts are made of it."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]

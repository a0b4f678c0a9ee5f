"""The storage root: one fsspec URL below which every artifact is published whole or not at all.

A file is written under a temporary name and appears under its final name complete: by an atomic rename where
the file system has one (`file`), by one upload of a finished local file elsewhere (`s3`, `gs`, `memory`), where
an object becomes visible only when its upload has ended. How S3 is spoken to is in `s3`.
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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from miniplm.errors import DamagedFileError, StorageError, StorageUnavailableError, first_line, is_passing, reading_users_file

_TEMPORARY_PREFIX = ".tmp-"
_BLOCK_BYTES = 1 << 20
# What is read of an object at a time: large beside the time that a request takes to be answered.
STREAM_BYTES = 16 << 20
# Such pieces at a time, of one file: 128 MiB of memory.
_MOST_DOWNLOADS = 8
_SECONDS_OF_A_DAY = 86400.0
_S3_PROTOCOLS = ("s3://", "s3a://")
# A file that was written to within one tick of its clock may be written to again without another time: 10 ms where it is coarse.
_TICK_SECONDS = 0.05
# The files that this process has verified, by identity and digest.
_verified: set[tuple[str, str]] = set()


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it. S3's bears faults and caches no listing; credentials are found by botocore.

    Raises `StorageError` for a protocol that nobody knows, or whose package or driver is not installed.
    """
    if "://" not in url:  # a path, whatever else is in it: fsspec would take `a::b` for two file systems
        filesystem = LocalFileSystem()
        return filesystem, str(filesystem._strip_protocol(url))
    if not url.startswith(_S3_PROTOCOLS):
        next_step = "correct what stands before `://`, or install the package that is named"
        with reading_users_file(url, "is in no store that this machine can open", next_step, StorageError):
            filesystem, path = url_to_fs(url)
        return filesystem, str(path)
    from miniplm.storage.s3 import PatientS3FileSystem

    path = str(PatientS3FileSystem._strip_protocol(url))
    if not path:
        raise StorageError(f"{url} names no bucket; give s3://bucket/prefix")
    return PatientS3FileSystem(), path


class Storage:
    """Reads and publishes files below a root URL; all paths given to it are relative to the root, with `/`.

    Raises `StorageError` where the root cannot be used (no right, no space, no bucket, wrong credentials),
    `StorageUnavailableError` where it may be usable later, and `FileNotFoundError` where a file that is read does not exist.
    """

    def __init__(self, root: str) -> None:
        self.root = root if root.endswith("://") else root.rstrip("/") or root
        self.filesystem, path = open_filesystem(self.root)
        self.root_path = path.rstrip("/")
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        try:
            self.root_path.encode("utf-8")
        except UnicodeEncodeError:
            shown = os.fsencode(self.root_path).decode("utf-8", "backslashreplace")
            raise StorageError(
                f"storage {shown} has a name that is not UTF-8, which neither DuckDB nor PyArrow can open; "
                "give `storage` a folder whose whole path is UTF-8"
            ) from None
        if "\\" in self.root_path and has_magic(self.root_path):
            raise StorageError(
                f"storage {self.root_path} has a backslash and one of `[`, `*` and `?` in its path; DuckDB, which takes names with these "
                "for patterns, takes the backslash for a slash then. Give `storage` a folder with either of the two"
            )

    def open_snapshot(self) -> fsspec.AbstractFileSystem:
        """The root's file system for a reader of many files that no longer change while it reads."""
        if not self.root.startswith(_S3_PROTOCOLS):
            return self.filesystem
        from miniplm.storage.s3 import SnapshotS3FileSystem

        return SnapshotS3FileSystem()

    def path(self, relative: str) -> str:
        """The path of a file as the root's file system knows it (no protocol)."""
        return posixpath.join(self.root_path, relative) if relative else self.root_path

    def url(self, relative: str) -> str:
        """The full URL of a file; for a local root the plain path."""
        return self.path(relative) if self.is_local else self.filesystem.unstrip_protocol(self.path(relative))

    def exists(self, relative: str) -> bool:
        with self._remote_errors("read", relative):
            return bool(self.filesystem.exists(self.path(relative)))

    def size_bytes(self, relative: str) -> int:
        with self._remote_errors("read", relative):
            return int(self.filesystem.size(self.path(relative)))

    def list_names(self, relative: str) -> list[str]:
        """Names directly below a folder, sorted; empty where the folder does not exist."""
        try:
            with self._remote_errors("list", relative):
                entries = self.filesystem.ls(self.path(relative), detail=False)
        except (FileNotFoundError, NotADirectoryError):  # a file in the place of a folder above
            return []
        # An object store may hold a placeholder for the folder itself.
        paths = {str(entry).rstrip("/") for entry in entries} - {self.path(relative)}
        names = {posixpath.basename(path) for path in paths}
        return sorted(name for name in names if name and not name.startswith(_TEMPORARY_PREFIX))

    def find_files(self, relative: str, most_depth: int) -> dict[str, dict[str, Any]]:
        """The files below a folder, as deep as `most_depth`, by their path in it, each with what its store tells of it (`size`, ...)."""
        top = self.path(relative)
        with self._remote_errors("list", relative):
            found = self.filesystem.find(top, maxdepth=most_depth, detail=True)
        return {str(path)[len(top) :].lstrip("/"): info for path, info in found.items() if str(path).startswith(f"{top}/")}

    def open(self, relative: str) -> IO[bytes]:
        with self._remote_errors("read", relative):
            return cast(IO[bytes], self.filesystem.open(self.path(relative), "rb"))

    def read_bytes(self, relative: str) -> bytes:
        with self._remote_errors("read", relative):
            return cast(bytes, self.filesystem.cat_file(self.path(relative)))

    def read_json(self, relative: str) -> Any:
        """The parsed file; `DamagedFileError` where it is not JSON."""
        try:
            return json.loads(self.read_bytes(relative))
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(f"{self.url(relative)} is not valid JSON ({error}); delete it and run again") from error

    def digest(self, relative: str) -> str:
        """`sha256:` and the hex digest of a file's bytes."""
        with self._remote_errors("read", relative), open_stream(self.filesystem, self.path(relative)) as file:
            return digest_stream(file)

    def holds(self, relative: str, digest: str) -> bool:
        """Whether there is a file with this digest. Its bytes are read once a process, as long as it is seen to be the same file."""
        try:
            # Before the bytes are read: a file that is replaced meanwhile has another identity the next time.
            identity = self.identify(relative)
            if identity and (identity, digest) in _verified:
                return True
            is_held = self.digest(relative) == digest
        except FileNotFoundError:
            return False
        # A digest that differs may be a fault on the way, and is not remembered.
        if is_held and identity:
            _verified.add((identity, digest))
        return is_held

    def read_checked(self, relative: str, digest: str) -> tuple[bytes, bool]:
        """The bytes of a file and whether they have this digest; those of a local file seen to be the same are hashed once a process."""
        before = self.identify(relative) if self.is_local else ""
        content = self.read_bytes(relative)
        is_same = bool(before) and self.identify(relative) == before
        if is_same and (before, digest) in _verified:
            return content, True
        is_held = f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
        if is_held and is_same:
            _verified.add((before, digest))
        return content, is_held

    def identify(self, relative: str) -> str:
        """What changes when the file does, of a file that was not changed just now; empty where it was, or nothing tells.

        Raises `FileNotFoundError` where there is no such file.
        """
        with self._remote_errors("read", relative):
            if self.is_local:
                return identify_file(self.path(relative), _TICK_SECONDS)
            info = self.filesystem.info(self.path(relative))
        tags = [f"{name}={info[name]}" for name in ("ETag", "etag", "generation") if info.get(name)]
        return f"{self.url(relative)} size={info['size']} {' '.join(tags)}" if tags else ""

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
                    # Before the rename, which may reach the disk first: after a power cut the name would stand for an empty file.
                    # The folder is not synced: a rename that is lost leaves nothing, which is made again.
                    with open(temporary, "rb+") as file:
                        os.fsync(file.fileno())
                    os.replace(temporary, final)
                else:
                    with self._remote_errors("write", relative):
                        self.filesystem.put_file(str(temporary), final)
        finally:
            if self.is_local:
                temporary.unlink(missing_ok=True)
            else:
                shutil.rmtree(temporary.parent, ignore_errors=True)

    def check_writable(self) -> None:
        """Raises `StorageError` where the root cannot be written."""
        probe = f"{_TEMPORARY_PREFIX}probe-{uuid.uuid4().hex}"
        try:
            self.write_bytes(probe, b"")
            self.delete(probe)
        except StorageError:
            raise
        except Exception as error:  # each remote file system has errors of its own, and any of them means this
            raise StorageError(
                f"cannot write {self.url(probe)}: {type(error).__name__}: {error}. Check `storage`, and the credentials in the environment"
            ) from error

    def write_bytes(self, relative: str, content: bytes) -> None:
        with self.publish(relative) as path:
            path.write_bytes(content)

    def write_json(self, relative: str, content: Any) -> None:
        """Publishes `content` as indented JSON with sorted keys, so that equal contents are equal bytes."""
        self.write_bytes(relative, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())

    def download(self, relative: str, folder: Path, names: Iterable[str] | None = None) -> Path:
        """A local path that holds the folder `relative`, of a remote root only the files `names` if given; of a local root itself."""
        if self.is_local:
            return Path(self.path(relative))
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.list_names(relative) if names is None else names:
            self.download_file(posixpath.join(relative, name), folder / name)
        return folder

    def download_file(self, relative: str, target: Path) -> None:
        """Copies a file of a remote root to a local path."""
        path, size = self.path(relative), self.size_bytes(relative)

        def copy(start: int) -> None:
            with self._remote_errors("read", relative):
                content = self.filesystem.cat_file(path, start=start, end=min(size, start + STREAM_BYTES))
            os.pwrite(file.fileno(), content, start)

        with open(target, "wb") as file, ThreadPoolExecutor(_MOST_DOWNLOADS) as pool:
            for _ in pool.map(copy, range(0, size, STREAM_BYTES)):
                pass

    def upload(self, path: Path, relative: str) -> None:
        """Publishes a finished local file, which stays where it is."""
        with self._remote_errors("write", relative):
            self.filesystem.put_file(str(path), self.path(relative))

    def move(self, relative: str, to: str) -> None:
        """Gives a file another name, in the place of what has it: at once on a local root, elsewhere by a copy that appears whole."""
        with self._storage_errors(to), self._remote_errors("write", to):
            if self.is_local:
                os.makedirs(os.path.dirname(self.path(to)), exist_ok=True)
                os.replace(self.path(relative), self.path(to))
            else:
                self.filesystem.cp_file(self.path(relative), self.path(to))
                self.filesystem.rm_file(self.path(relative))

    def delete(self, relative: str) -> None:
        """Deletes a file or a folder; nothing happens where there is none."""
        if self.exists(relative):
            with self._remote_errors("delete", relative), contextlib.suppress(FileNotFoundError):  # another process was faster
                path = self.path(relative)
                if self.is_local or not has_magic(path):
                    self.filesystem.rm(path, recursive=True)
                    return
                # It would be taken for a pattern, which does not match itself.
                for file in self.filesystem.find(path):
                    self.filesystem.rm_file(file)

    def delete_temporary_files(self, relative: str, older_than_seconds: float = 0.0) -> int:
        """Deletes what dead processes left behind below a folder and says how many files that were.

        Where other processes may be at work there, only what is older than any file takes to be written; at a
        remote root, which has no locks, that is always so, and unfinished uploads of a day are what is deleted.
        """
        if abort_old_uploads := getattr(self.filesystem, "abort_old_uploads", None):
            return int(abort_old_uploads(self.path(relative), max(older_than_seconds, _SECONDS_OF_A_DAY)))
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

    @contextmanager
    def _remote_errors(self, action: str, relative: str) -> Iterator[None]:
        """Each remote file system has errors of its own; S3's come as `StorageError` from `s3_errors` already."""
        try:
            yield
        except (StorageError, FileNotFoundError):
            raise
        except Exception as error:
            if self.is_local and isinstance(error, PermissionError):
                raise StorageError(
                    f"cannot {action} {self.url(relative)}: {error.strerror}. Give this user the right to"
                ) from error
            if self.is_local:
                raise
            kind = StorageUnavailableError if is_passing(error) else StorageError
            raise kind(
                f"cannot {action} {self.url(relative)}: {type(error).__name__}: {first_line(error)}. "
                "Check `storage`, and the credentials in the environment"
            ) from error


_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR})


def open_stream(filesystem: fsspec.AbstractFileSystem, path: str) -> IO[bytes]:
    """A file to be read from its start to its end; of a remote one, many blocks at a time are fetched ahead."""
    ahead = {} if isinstance(filesystem, LocalFileSystem) else {"cache_type": "readahead", "block_size": STREAM_BYTES}
    return cast(IO[bytes], filesystem.open(path, "rb", **ahead))


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


def identify_file(path: str | Path, settled_seconds: float = 0.0) -> str:
    """Path, size, times and inode of a local file; empty where it was changed within `settled_seconds`, and may be again unseen."""
    stat = os.stat(path)
    if settled_seconds and time.time() - stat.st_mtime < settled_seconds:
        return ""
    return f"{path} size={stat.st_size} mtime_ns={stat.st_mtime_ns} created={stat.st_ctime_ns} ino={stat.st_dev}:{stat.st_ino}"


def digest_content(content: Any, length: int = 12) -> str:
    """A short stable hex digest of JSON-like content; the ids of artifacts are made of it."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]

"""Finds the files of a source and reads them as decompressed blocks, never a whole file at a time."""

from __future__ import annotations

import bz2
import gzip
import posixpath
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal, cast

import fsspec
import zstandard
from fsspec.implementations.local import LocalFileSystem

from miniplm.config import SourceConfig
from miniplm.errors import DamagedSourceError, SourceError, list_offenders
from miniplm.storage import open_filesystem, open_stream

Compression = Literal["gzip", "zstd", "bzip2"]
BytesCallback = Callable[[int], None]

_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2"}
_BLOCK_BYTES = 1 << 20
# Zstandard gives out all that a block holds at once, so its blocks are small.
_ZSTD_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. `path` is how people name it (a plain path, or a URL); `version` changes with its content.

    `version` is empty where the file system tells nothing that would change with it.
    """

    path: str
    filesystem: fsspec.AbstractFileSystem
    filesystem_path: str
    num_bytes: int
    version: str
    compression: Compression | None

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def check_unchanged(self) -> None:
        """Raises `SourceError` where the file is no longer the one that was found."""
        self.filesystem.invalidate_cache(self.filesystem_path)
        try:
            info = self.filesystem.info(self.filesystem_path)
        except FileNotFoundError:
            raise SourceError(f"{self.path} has gone while it was being read; put it back and run again") from None
        if (int(info["size"]), _read_version(info)) != (self.num_bytes, self.version):
            raise SourceError(f"{self.path} has changed while it was being read; run again when it no longer does")


def find_source_files(source: SourceConfig) -> list[SourceFile]:
    """The files that a source's path names, sorted by path: one file, the matches of a glob, a folder of text files.

    Raises `SourceError` where there are none, or the path is a folder and the format is not `text`.
    """
    filesystem, path = open_filesystem(source.path)
    filesystem.invalidate_cache()
    try:
        infos = _list_infos(filesystem, path, source)
    except PermissionError as error:
        raise SourceError(f"source {source.path} cannot be listed: {error}; give this user the right to read it") from error
    files = [_make_source_file(filesystem, info) for info in infos]
    if not files:
        raise SourceError(f"source {source.path} matches no file ({_describe_place(filesystem, path)})")
    return sorted(files, key=lambda file: file.path)


def locate_source(source: SourceConfig) -> str:
    """The full URL of what a source's path names, wildcards as they are: the same from every working directory."""
    filesystem, path = open_filesystem(source.path)
    return str(filesystem.unstrip_protocol(path))


@contextmanager
def open_raw(file: SourceFile) -> Iterator[IO[bytes]]:
    """The file as it is stored. Raises `SourceError` where it cannot be opened."""
    try:
        opened = open_stream(file.filesystem, file.filesystem_path)
    except FileNotFoundError:
        raise SourceError(f"{file.path} has gone; put it back and run again") from None
    except PermissionError as error:
        raise SourceError(f"{file.path} cannot be read: {error.strerror or error}; give this user the right to read it") from error
    with opened:
        yield opened


def read_blocks(file: SourceFile, on_bytes: BytesCallback) -> Iterator[bytes]:
    """The decompressed content in blocks; `on_bytes` is told of each stored byte that was read.

    Raises `DamagedSourceError` where a compressed file is truncated or damaged.
    """
    with open_raw(file) as raw:
        counted = _CountedFile(raw, on_bytes)
        if file.compression is None:
            yield from iter(lambda: counted.read(_BLOCK_BYTES), b"")
            return
        if file.num_bytes == 0:
            raise DamagedSourceError(f"{file.path} is empty, which no {file.compression} file is; it was cut off: copy it again")
        try:
            if file.compression == "zstd":
                yield from _decompress_zstd(counted)
                return
            reader = gzip.GzipFile(fileobj=cast(Any, counted)) if file.compression == "gzip" else bz2.BZ2File(cast(Any, counted))
            yield from iter(lambda: reader.read(_BLOCK_BYTES), b"")
        except EOFError as error:
            raise DamagedSourceError(
                f"{file.path} is truncated: its {file.compression} data ends in the middle ({error}); copy it again"
            ) from error
        except (zlib.error, zstandard.ZstdError, OSError) as error:
            if isinstance(error, OSError) and (error.errno is not None or type(error) not in (OSError, gzip.BadGzipFile)):
                raise  # reading failed (a time-out, a lost connection), not decompressing
            raise DamagedSourceError(f"{file.path} is damaged or no {file.compression} file ({error}); copy it again") from error


class _CountedFile:
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], on_bytes: BytesCallback) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self._on_bytes(len(block))
        return block


def _decompress_zstd(file: _CountedFile) -> Iterator[bytes]:
    """All frames of a file. The library's own reader takes a truncated file for a complete one, hence this loop."""
    # The largest window there is: archives are often made with `--long`.
    context = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    for block in iter(lambda: file.read(_ZSTD_BLOCK_BYTES), b""):
        while block:
            frame = frame or context.decompressobj()
            yield frame.decompress(block)
            block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("the last frame has no end")


def _list_infos(filesystem: fsspec.AbstractFileSystem, path: str, source: SourceConfig) -> list[dict[str, Any]]:
    if filesystem.isdir(path):
        if source.format != "text":
            ending = "*.parquet" if source.format == "parquet" else "*.jsonl*"
            raise SourceError(f"source {source.path} is a folder; name its files, e.g. path: {source.path.rstrip('/')}/{ending}")
        found = filesystem.find(path, detail=True)
        return _keep_files(filesystem, [info for name, info in found.items() if not _is_hidden(name, path)])
    # A name that happens to hold `[` or `*` is that file before it is a pattern.
    if filesystem.isfile(path):
        return [filesystem.info(path)]
    return _keep_files(filesystem, list(filesystem.glob(path, detail=True).values()))


def _keep_files(filesystem: fsspec.AbstractFileSystem, infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Files and, under their own names, what links lead to; no folders and no devices."""
    followed = []
    for info in infos:
        try:
            # A listing does not follow links, a look at one file does.
            followed.append(filesystem.info(info["name"]) if info["type"] == "other" else info)
        except FileNotFoundError:
            raise SourceError(f"{info['name']} is a link to a file that does not exist; mend or delete it") from None
    return [info for info in followed if info["type"] == "file"]


def _is_hidden(name: str, folder: str) -> bool:
    below = name[len(folder.rstrip("/")) :] if name.startswith(folder.rstrip("/")) else name
    return any(part.startswith(".") for part in below.split("/"))


def _make_source_file(filesystem: fsspec.AbstractFileSystem, info: dict[str, Any]) -> SourceFile:
    name = str(info["name"])
    path = name if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(name))
    compression = _COMPRESSIONS.get(posixpath.splitext(name)[1].lower())
    return SourceFile(path, filesystem, name, int(info["size"]), _read_version(info), compression)


def _read_version(info: dict[str, Any]) -> str:
    """What changes when the file does: the entity tag of an object; times and inode of a file."""
    names = ("ETag", "etag", "generation")
    tags = [f"{name}={info[name]}" for name in names if info.get(name)]
    if tags:
        return " ".join(tags)
    values = ((name, info.get(name)) for name in ("mtime", "created", "ino", "LastModified", "last_modified", "updated"))
    # A listing and a look at one file may give the same time as a number and as a date.
    return " ".join(f"{name}={_as_timestamp(value)}" for name, value in values if value is not None)


def _as_timestamp(value: Any) -> Any:
    return value.timestamp() if isinstance(value, datetime) else value


def _describe_place(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    if not isinstance(filesystem, LocalFileSystem):
        return f"looked for {filesystem.unstrip_protocol(path)}"
    fixed = Path(*_parts_before_wildcard(Path(path)))
    place = f"looked for {path}; the current folder is {Path.cwd()}"
    if not fixed.exists():
        existing = next(parent for parent in fixed.parents if parent.exists())
        return f"{place}; {fixed} does not exist, {existing} does"
    if fixed.is_dir():
        names = sorted(entry.name for entry in fixed.iterdir())
        return f"{place}; {fixed} holds {list_offenders(names[:10], len(names)) if names else 'nothing'}"
    return place


def _parts_before_wildcard(path: Path) -> list[str]:
    parts = []
    for part in path.parts:
        if any(character in part for character in "*?["):
            break
        parts.append(part)
    return parts

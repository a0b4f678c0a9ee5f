"""Finds the files of a source, says what was left out, and opens them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from miniplm import layout
from miniplm.config.run import SourceConfig
from miniplm.errors import SourceError, list_offenders
from miniplm.records.manifests import LeftOut
from miniplm.sources.listing import Listing, has_wildcards, list_folder, list_left_out, list_matches
from miniplm.sources.names import read_name, show_name
from miniplm.storage.root import Storage, open_filesystem, open_stream

# Of the files that are left out for one reason.
MOST_NAMES = 10


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. `path` is how people name it (a plain path, or a URL; see `show_name`); `version` changes with its content.

    `version` is empty where the file system tells nothing that would change with it.
    """

    path: str
    filesystem: fsspec.AbstractFileSystem
    filesystem_path: str
    num_bytes: int
    version: str

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


@dataclass(frozen=True)
class FoundFiles:
    """The files of a source, sorted by name, and what its pattern left out."""

    files: list[SourceFile]
    left_out: list[LeftOut]


def find_source_files(source: SourceConfig) -> list[SourceFile]:
    """The files that a source's path names; raises what `find_source` raises."""
    return find_source(source).files


def find_source(source: SourceConfig, storage: Storage | None = None) -> FoundFiles:
    """What a source's path names: one file, the matches of a pattern, a folder of text files.

    What MiniPLM itself wrote at the `storage` root is left out, unless the path spells the folder there: a pattern over a folder
    that holds the root would else find another corpus each time.
    Raises `SourceError` where there are no files, a folder cannot be listed, or the path is a folder and the format is not `text`.
    """
    filesystem, path = open_filesystem(source.path)
    # Other readers of this process may have listed the folder before a file came to it.
    filesystem.invalidate_cache()
    name = show_name(source.path)
    try:
        listing = _list_infos(filesystem, path, source)
    except PermissionError as error:
        raise SourceError(f"source {name} cannot be listed: {error}; give this user the right to read it") from error
    if storage is not None:
        _leave_out_own_files(listing, filesystem, path, storage)
    left_out = [
        LeftOut(
            source=name,
            reason=reason,
            num_files=len(names),
            names=tuple(show_name(_name_file(filesystem, left)) for left in names[:MOST_NAMES]),
        )
        for reason, names in list_left_out(listing)
    ]
    if not listing.infos:
        raise SourceError(f"source {name} matches no file ({_describe_place(filesystem, path)}{_describe_left_out(left_out)})")
    infos = sorted(listing.infos, key=lambda info: str(info["name"]))
    return FoundFiles([_make_source_file(filesystem, info) for info in infos], left_out)


def find_file(path: str) -> SourceFile:
    """The file that is told as `path` (`SourceFile.path`). Raises `FileNotFoundError`, or `PermissionError` where it cannot be looked at."""
    filesystem, name = open_filesystem(read_name(path))
    return _make_source_file(filesystem, {**filesystem.info(name), "name": name})


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


def _list_infos(filesystem: fsspec.AbstractFileSystem, path: str, source: SourceConfig) -> Listing:
    if filesystem.isdir(path):
        if source.format != "text":
            ending = "*.parquet" if source.format == "parquet" else "*.jsonl*"
            name = show_name(source.path)
            raise SourceError(f"source {name} is a folder; name its files, e.g. path: {name.rstrip('/')}/{ending}")
        return list_folder(filesystem, path)
    # A name that happens to hold `[` is that file before it is a pattern; one with `*` or `?` is among those that it matches. Of a web
    # address the `?` is none: what follows it is a question to the server.
    wildcards = "*" if path.startswith(("http://", "https://")) else "*?"
    if not any(character in path for character in wildcards) and filesystem.isfile(path):
        return Listing([filesystem.info(path)])
    return list_matches(filesystem, path)


def _leave_out_own_files(listing: Listing, filesystem: fsspec.AbstractFileSystem, pattern: str, storage: Storage) -> None:
    if type(filesystem) is not type(storage.filesystem):  # the same path there is another file
        return
    folders = [f"{storage.path(folder)}/" for folder in layout.FOLDERS]
    own = tuple(folder for folder in folders if not pattern.startswith(folder))
    for info in listing.infos:
        if str(info["name"]).startswith(own):
            listing.leave_out("written by MiniPLM", str(info["name"]))
    listing.infos = [info for info in listing.infos if not str(info["name"]).startswith(own)]


def _name_file(filesystem: fsspec.AbstractFileSystem, name: str) -> str:
    return name if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(name))


def _make_source_file(filesystem: fsspec.AbstractFileSystem, info: dict[str, Any]) -> SourceFile:
    name = str(info["name"])
    shown = show_name(_name_file(filesystem, name))
    if info.get("size") is None:  # the listing of a web server tells names alone
        info = filesystem.info(name)
    if info.get("size") is None:
        raise SourceError(
            f"{shown}: its server does not say how long it is, so that a copy that was cut off could not be told from a whole one; "
            "download it, and name the copy"
        )
    return SourceFile(shown, filesystem, name, int(info["size"]), _read_version(info))


def _describe_left_out(left_out: list[LeftOut]) -> str:
    return "".join(f"; left out, {entry.reason}: {list_offenders(entry.names, entry.num_files)}" for entry in left_out)


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
        return f"looked for {show_name(str(filesystem.unstrip_protocol(path)))}"
    fixed = Path(*_parts_before_wildcard(Path(path)))
    place = f"looked for {show_name(path)}; the current folder is {show_name(str(Path.cwd()))}"
    if "{" in path:
        place += "; `{a,b}` is no pattern here, give a source for each"
    if not fixed.exists():
        existing = next(parent for parent in fixed.parents if parent.exists())
        return f"{place}; {show_name(str(fixed))} does not exist, {show_name(str(existing))} does"
    if fixed.is_dir():
        names = sorted(show_name(entry.name) for entry in fixed.iterdir())
        return f"{place}; {show_name(str(fixed))} holds {list_offenders(names[:10], len(names)) if names else 'nothing'}"
    return place


def _parts_before_wildcard(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if has_wildcards(part) and not Path(*parts, part).is_dir():
            break
        parts.append(part)
    return parts

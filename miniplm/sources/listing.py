"""Which files a pattern names: the wildcards of a shell, folders behind links once, and all that is left out, with its reason."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from miniplm.errors import SourceError
from miniplm.records.manifests import LeftOutReason
from miniplm.sources.names import show_name

_WILDCARDS = re.compile(r"[*?[]")


@dataclass
class Listing:
    """The files that a pattern names, as the file system describes each, and the names that it leaves out, by reason."""

    infos: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[LeftOutReason, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: LeftOutReason, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)


def has_wildcards(name: str) -> bool:
    return _WILDCARDS.search(name) is not None


def list_folder(filesystem: fsspec.AbstractFileSystem, folder: str) -> Listing:
    """All files below a folder but for hidden ones."""
    return _list_below(filesystem, folder, ("**",))


def list_matches(filesystem: fsspec.AbstractFileSystem, pattern: str) -> Listing:
    """The files that a pattern names.

    `*`, `?` and `[..]` stand for a name or a part of it, `**` for any number of folders; none of them for a dot at the start
    of a name. A folder whose name is `[1]` is that folder before it is a pattern. Folders behind links are
    listed as others are; a file that is found through more than one folder is taken once. Raises `SourceError` where a
    folder cannot be listed, or a link that the pattern names leads nowhere.
    """
    parts = pattern.split("/")
    for part in parts:
        if "**" in part and part != "**":
            raise SourceError(
                f"{show_name(pattern)}: `**` stands for whole folders, alone between slashes; {part!r} is neither this nor `*`"
            )
    first = next((index for index, part in enumerate(parts) if has_wildcards(part)), len(parts) - 1)
    # The last part names files, never a folder alone.
    while (
        first < len(parts) - 1 and not _compile(parts[first]).match(parts[first]) and filesystem.isdir("/".join(parts[: first + 1]))
    ):
        first += 1
        while first < len(parts) - 1 and not has_wildcards(parts[first]):
            first += 1
    return _list_below(filesystem, "/".join(parts[:first]), tuple(parts[first:]))


def _list_below(filesystem: fsspec.AbstractFileSystem, folder: str, parts: tuple[str, ...]) -> Listing:
    if isinstance(filesystem, LocalFileSystem):
        return _LocalWalk(filesystem, parts).run(folder or "/")
    return _list_remote(filesystem, folder, parts)


def _list_remote(filesystem: fsspec.AbstractFileSystem, folder: str, parts: tuple[str, ...]) -> Listing:
    """Of a store, which has no links and lists what begins alike in one go."""
    listing = Listing()
    depth = None if "**" in parts else len(parts)
    found = filesystem.find(folder, maxdepth=depth, withdirs=True, detail=True)
    for name, info in sorted(found.items()):
        if name.rstrip("/") == folder.rstrip("/"):
            continue  # the folder itself
        names = name[len(folder) :].strip("/").split("/")
        if info["type"] == "directory":
            if _matches(names, parts, True) and not _leads_on(names, parts, True):
                listing.leave_out("a folder", name)
        elif _matches(names, parts, True):
            if info["type"] == "other":  # as stores reached by SFTP show a link: a look at one file follows it
                info = filesystem.info(name)
            if info["type"] == "file":
                listing.infos.append(info)
            else:
                listing.leave_out("no regular file", name)
        elif _matches(names, parts, False):
            listing.leave_out("hidden", name)
    return listing


@dataclass(frozen=True)
class _Found:
    path: str
    folder: tuple[int, int]
    behind_link: bool


class _LocalWalk:
    """A walk over local folders; folders are known by device and inode, so a link back to one above ends there."""

    def __init__(self, filesystem: LocalFileSystem, parts: tuple[str, ...]) -> None:
        self._filesystem = filesystem
        self._parts = parts
        self._listing = Listing()
        self._found: dict[tuple[tuple[int, int], str], list[_Found]] = {}

    def run(self, folder: str) -> Listing:
        if os.path.isdir(folder):
            self._walk(folder, (), (), False)
        for (_, _), copies in sorted(self._found.items(), key=lambda item: item[1][0].path):
            # The one that no link leads to, if there is one: its name does not change when a link is added.
            taken, *again = sorted(copies, key=lambda found: (found.behind_link, found.path))
            try:
                self._listing.infos.append(self._filesystem.info(taken.path))
            except FileNotFoundError:
                raise SourceError(f"{show_name(taken.path)} has gone while it was being looked for; run again") from None
            for found in again:
                self._listing.leave_out("found already", found.path)
        return self._listing

    def _walk(self, folder: str, names: tuple[str, ...], above: tuple[tuple[int, int], ...], behind_link: bool) -> None:
        is_hidden = bool(names) and not _leads_on(names, self._parts, True)
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                if not is_hidden:
                    self._listing.leave_out("a link to a folder above it", folder)
                return
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if is_hidden:
                self._listing.leave_out("hidden", folder)
                return
            raise SourceError(
                f"the folder {show_name(folder)} cannot be listed: {error.strerror or error}; give this user the right to read it, "
                "or a pattern that does not lead there"
            ) from error
        for entry in entries:
            self._take(entry, identity, (*names, entry.name), (*above, identity), behind_link)

    def _take(
        self,
        entry: os.DirEntry[str],
        folder: tuple[int, int],
        names: tuple[str, ...],
        above: tuple[tuple[int, int], ...],
        behind_link: bool,
    ) -> None:
        is_link, mode = entry.is_symlink(), _read_mode(entry)
        is_named, leads_on = _matches(names, self._parts, True), _leads_on(names, self._parts, True)
        if mode is None and is_link:
            if is_named:
                raise SourceError(f"{show_name(entry.path)} is a link to a file that does not exist; mend or delete it")
            if leads_on:
                self._listing.leave_out("a link that leads nowhere", entry.path)
        elif mode is not None and stat.S_ISDIR(mode):
            if leads_on or (_leads_on(names, self._parts, False) and not is_link):
                self._walk(entry.path, names, above, behind_link or is_link)
            elif is_named:
                self._listing.leave_out("a folder", entry.path)
        elif is_named:
            if mode is not None and stat.S_ISREG(mode):
                self._found.setdefault((folder, entry.name), []).append(_Found(entry.path, folder, behind_link))
            else:
                self._listing.leave_out("no regular file", entry.path)
        elif _matches(names, self._parts, False):
            self._listing.leave_out("hidden", entry.path)


def _read_mode(entry: os.DirEntry[str]) -> int | None:
    """What an entry, or what a link leads to, is; None where it leads nowhere or in a circle."""
    try:
        return entry.stat().st_mode
    except OSError:
        return None


def _matches(names: Sequence[str], parts: Sequence[str], as_shell: bool) -> bool:
    """Whether names below a folder, the last one a file's, are what the parts of a pattern stand for.

    `as_shell`: no wildcard stands for a dot at the start of a name.
    """
    if not parts:
        return not names
    if parts[0] != "**":
        return bool(names) and _is_named(names[0], parts[0], as_shell) and _matches(names[1:], parts[1:], as_shell)
    if len(parts) == 1:
        return bool(names) and not (as_shell and any(name.startswith(".") for name in names))
    if _matches(names, parts[1:], as_shell):
        return True
    return len(names) > 1 and not (as_shell and names[0].startswith(".")) and _matches(names[1:], parts, as_shell)


def _leads_on(names: Sequence[str], parts: Sequence[str], as_shell: bool) -> bool:
    """Whether something below the folder of these names can match."""
    if not names or not parts:
        return bool(parts)
    if parts[0] != "**":
        return _is_named(names[0], parts[0], as_shell) and _leads_on(names[1:], parts[1:], as_shell)
    if len(parts) > 1 and _leads_on(names, parts[1:], as_shell):
        return True
    return not (as_shell and names[0].startswith(".")) and _leads_on(names[1:], parts, as_shell)


def _is_named(name: str, part: str, as_shell: bool) -> bool:
    if name == part:
        return True
    if as_shell and name.startswith(".") and not part.startswith("."):
        return False
    return _compile(part).match(name) is not None


@lru_cache(maxsize=256)
def _compile(part: str) -> re.Pattern[str]:
    return re.compile(translate(part))


def list_left_out(listing: Listing) -> Iterator[tuple[LeftOutReason, list[str]]]:
    """Reasons in the order of the alphabet, each with its names, sorted."""
    for reason in sorted(listing.left_out):
        yield reason, sorted(listing.left_out[reason])

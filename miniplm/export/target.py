"""The folder that an export goes to: all is made aside in it, and moved to its place once every file was read back.

TARGET/.miniplm-export/plan.json, parts/part-N.json, files/...    while it is made; gone at the end
TARGET/<files of the format>, then manifest.json                  a finished export, and nothing else
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from miniplm.errors import ConfigError, DamagedFileError, StoppedError, StorageError, list_offenders
from miniplm.export.parts import ExportPlan
from miniplm.export.records import MANIFEST, ExportedPart, ExportManifest
from miniplm.records.stored import check_all, find_record
from miniplm.storage.claims import claim_remote
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage

STAGING = ".miniplm-export"
_PLAN = f"{STAGING}/plan.json"
_CLAIM = f"{STAGING}/claim.json"
_CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})


class ExportTarget:
    """A target by its URL. Raises `ConfigError` where the URL is a file, lies below one, or cannot be looked at."""

    def __init__(self, url: str) -> None:
        self.storage = Storage(url)
        if self.storage.filesystem.isfile(self.storage.root_path):
            raise ConfigError(f"the export's target {url} is a file; give a folder that is new or empty")
        if self.storage.is_local:
            try:
                above = next(folder for folder in Path(self.storage.path("x")).parents if folder.exists())
            except OSError as error:  # a folder above may not be looked into, or a name is too long
                raise self._cannot_be_made(error) from error
            if not above.is_dir():
                raise ConfigError(
                    f"the export's target {url} lies below {above}, which is a file; give a folder that is new or empty"
                )

    def _cannot_be_made(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"the export's target {self.url} cannot be made: {error.strerror}; give a folder that this user may write to"
        )

    @property
    def url(self) -> str:
        return self.storage.root

    def find_manifest(self, export_id: str) -> ExportManifest | None:
        """The manifest of this very export, where it is finished. Raises `DamagedFileError` where a file is gone or has another size."""
        manifest = find_record(self.storage, MANIFEST, ExportManifest)
        if manifest is None or manifest.export_id != export_id:
            return None
        sizes = dict(check_all(self.storage, self._measure, [file.name for file in manifest.files]))
        for file in manifest.files:
            if sizes[file.name] != file.num_bytes:
                raise DamagedFileError(
                    f"the export at {self.url} is damaged: {file.name} is "
                    f"{'gone' if sizes[file.name] is None else f'{sizes[file.name]:,} bytes long'}, its manifest says {file.num_bytes:,} bytes. "
                    "Delete the folder and export again"
                )
        return manifest

    def _measure(self, name: str) -> tuple[str, int | None]:
        try:
            return name, self.storage.size_bytes(name)
        except FileNotFoundError:
            return name, None

    def check_usable(self) -> None:
        """Raises `ConfigError` where the target holds files that are no export's: so much is known before there is a selection."""
        names = self.storage.list_names("")
        if names and MANIFEST not in names and STAGING not in names:
            raise self._refuse(names)

    def check_free(self, export_id: str, resume: bool) -> None:
        """Raises `ConfigError` unless the target is empty or, with `resume`, has this very export unfinished."""
        names = self.storage.list_names("")
        plan = self.find_plan()
        if not names or (names == [STAGING] and plan is None):
            return
        if plan is None or MANIFEST in names:
            raise self._refuse(names)
        if plan.export_id != export_id:
            raise ConfigError(
                f"the export's target {self.url} holds an unfinished export of another selection or with other settings "
                f"({plan.export_id}, this is {export_id}). Go on with that one, give another folder, or delete it"
            )
        if not resume:
            raise ConfigError(
                f"the export's target {self.url} holds this export, unfinished. Give --resume to go on with it: finished files are kept"
            )

    def _refuse(self, names: Sequence[str]) -> ConfigError:
        shown = list_offenders(names, most=5)
        return ConfigError(
            f"the export's target {self.url} is not empty: it holds {shown}. Nothing there is overwritten; give a new folder, or delete it"
        )

    def find_plan(self) -> ExportPlan | None:
        """How the export that is being made here is cut; None where none is."""
        return find_record(self.storage, _PLAN, ExportPlan)

    def save_plan(self, plan: ExportPlan) -> None:
        self.storage.write_json(_PLAN, plan.as_json())

    def find_part(self, export_id: str, part_index: int, by_size: bool = False) -> ExportedPart | None:
        """A part that is made: its record, and its files as that says, aside or in their place already; `by_size`: without reading them."""
        part = find_record(self.storage, _part_record(part_index), ExportedPart)
        if part is None or part.export_id != export_id:
            return None
        if by_size:
            is_there = all(self._measure(self.locate(file.name))[1] == file.num_bytes for file in part.files)
        else:
            is_there = all(self.storage.holds(self.locate(file.name), file.digest) for file in part.files)
        return part if is_there else None

    def list_parts(self) -> list[int]:
        """The parts that have a record, by its name alone: cheap enough to look every two seconds."""
        names = self.storage.list_names(f"{STAGING}/parts")
        return [int(name.removeprefix("part-").removesuffix(".json")) for name in names if name.endswith(".json")]

    def require_open(self, export_id: str) -> None:
        """Raises `StoppedError` where the export is not under way any more: a process that was taken for dead puts nothing beside the finished files."""
        plan = self.find_plan()
        if plan is None or plan.export_id != export_id:
            raise StoppedError(
                f"the export to {self.url} was finished or given up by others meanwhile; nothing of this file is kept"
            )

    def save_part(self, part: ExportedPart) -> None:
        self.storage.write_json(_part_record(part.part_index), part.as_json())

    def put(self, name: str, path: Path) -> None:
        """Publishes a finished local file aside."""
        relative = _aside(name)
        if self.storage.is_local:
            final = Path(self.storage.path(relative))
            final.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(path, final)
        else:
            self.storage.upload(path, relative)

    def locate(self, name: str) -> str:
        """Where a file lies now: aside, or in its place once it was moved."""
        return _aside(name) if self.storage.exists(_aside(name)) else name

    def open_folder(self) -> str | None:
        """Where local files are made that are to be put aside: on the target's own disk, where it has one."""
        if not self.storage.is_local:
            return None
        folder = self.storage.path(f"{STAGING}/work")
        os.makedirs(folder, exist_ok=True)
        return folder

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Says of a full disk, or of a folder that may not be written, which file could not be written, and what is kept."""
        try:
            yield
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            raise StorageError(
                f"cannot write {name} of the export to {self.url}: {error.strerror}. Nothing is published; finished files are kept "
                "aside: when there is room, the same command with --resume goes on"
            ) from error

    def clear_work(self) -> None:
        """Deletes what a killed process has left half made."""
        self.storage.delete(f"{STAGING}/work")

    def forget_part(self, part_index: int) -> None:
        self.storage.delete(_part_record(part_index))

    def publish(self, parts: Sequence[ExportedPart], others: dict[str, bytes], manifest: ExportManifest) -> None:
        """Moves all files to their places, then writes the other ones and, last, the manifest."""
        for part in parts:
            for file in part.files:
                if self.storage.exists(_aside(file.name)):
                    self.storage.move(_aside(file.name), file.name)
        for name, content in others.items():
            self.storage.write_bytes(name, content)
        self.storage.write_json(MANIFEST, manifest.as_json())
        self.storage.delete(STAGING)

    @contextmanager
    def claim(self) -> Iterator[None]:
        """One export at a time to one target. Raises `BusyError` where another process is at work there, `ConfigError` where it may not be written."""
        what = f"an export to {self.url}"
        if self.storage.is_local:
            try:
                os.makedirs(self.storage.path(STAGING), exist_ok=True)
            except OSError as error:
                raise self._cannot_be_made(error) from error
            with exclusive(Storage(self.storage.path(STAGING)), "export", what):
                yield
            return
        with claim_remote(self.storage, _CLAIM, what):
            yield


def _aside(name: str) -> str:
    return f"{STAGING}/files/{name}"


def _part_record(part_index: int) -> str:
    return f"{STAGING}/parts/part-{part_index:05d}.json"

"""Exact order statistics of values by group, in memory that hardly grows with them.

Values go to sorted runs in a scratch file, of which every 64th stays in memory. A rank lies between two of these; the few
values of each run between the two are read back, and settle it. So nothing is sorted whole, nothing is assumed of the
distribution, and ties cost nothing. Memory: an eighth of a byte a value, thrice that while a rank is looked for, and 128 MiB
of values that are in no run yet.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.errors import StorageError

_RUN_VALUES = 1 << 16
_SAMPLE_STEP = 64
_MOST_WAITING_VALUES = 1 << 24

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]


class ScratchFile:
    """Arrays in a temporary file: appended by any thread, read back by their place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._lock = threading.Lock()
        self._end = 0

    def __enter__(self) -> ScratchFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def append(self, values: NDArray[Any]) -> StoredArray:
        """Writes values (num_values,) at the end; gives their place."""
        content = memoryview(np.ascontiguousarray(values).view(np.uint8).data)
        with self._lock:
            place = self._end
            self._end += len(content)
        written = 0
        try:
            while written < len(content):
                written += os.pwrite(self._descriptor, content[written:], place + written)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}. A selection needs some 11 bytes a candidate there, and 40 more where the "
                "storage root is remote; free some space, or give TMPDIR a folder that has it"
            ) from error
        return StoredArray(self, place, len(values), values.dtype)

    def read(self, place: int, num_bytes: int) -> bytes:
        content = os.pread(self._descriptor, num_bytes, place)
        while len(content) < num_bytes:  # one call reads 2 GiB at most
            content += os.pread(self._descriptor, num_bytes - len(content), place + len(content))
        return content


@dataclass(frozen=True)
class StoredArray:
    """A one-dimensional array in a scratch file."""

    file: ScratchFile
    place: int
    length: int
    dtype: np.dtype[Any]

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Its elements from `start` to before `stop`, (num_elements,), as a slice gives them."""
        start, stop, _ = slice(start, stop).indices(self.length)
        size = self.dtype.itemsize
        return np.frombuffer(self.file.read(self.place + start * size, max(0, stop - start) * size), self.dtype)


@dataclass(frozen=True)
class _Run:
    values: StoredArray
    samples: Floats  # every 64th value, from the least on
    largest: float


class GroupedRuns:
    """Values by group. `add` may be called from several threads; after `finish`, ranks are asked for."""

    def __init__(
        self, scratch: ScratchFile, run_values: int = _RUN_VALUES, most_waiting_values: int = _MOST_WAITING_VALUES
    ) -> None:
        self._scratch = scratch
        self._run_values, self._most_waiting = run_values, most_waiting_values
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Floats]] = {}
        self._num_waiting: dict[int, int] = {}
        self._runs: dict[int, list[_Run]] = {}

    def add(self, groups: Integers, values: Floats) -> None:
        """Values with the number of their group, (num_values,) each; none is NaN."""
        if not len(values):
            return
        order = np.argsort(groups, kind="stable")
        sorted_groups, sorted_values = groups[order], values[order]
        starts = np.concatenate([[0], np.flatnonzero(sorted_groups[1:] != sorted_groups[:-1]) + 1])
        pieces = zip(sorted_groups[starts].tolist(), np.split(sorted_values, starts[1:]), strict=True)
        for group, piece in self._take_full(pieces):
            self._make_run(group, piece)

    def finish(self) -> None:
        for group, pieces in self._waiting.items():
            self._make_run(group, pieces)
        self._waiting, self._num_waiting = {}, {}

    def _take_full(self, pieces: Iterable[tuple[int, Floats]]) -> list[tuple[int, list[Floats]]]:
        """Keeps pieces (num_values,) of groups; gives those of the groups that now fill a run, or of all where too many wait."""
        full = []
        with self._lock:
            for group, piece in pieces:
                self._waiting.setdefault(group, []).append(piece)
                self._num_waiting[group] = self._num_waiting.get(group, 0) + len(piece)
                if self._num_waiting[group] >= self._run_values:
                    full.append(group)
            if sum(self._num_waiting.values()) > self._most_waiting:
                full = list(self._waiting)
            taken = [(group, self._waiting.pop(group)) for group in full]
            for group in full:
                del self._num_waiting[group]
        return taken

    def _make_run(self, group: int, pieces: list[Floats]) -> None:
        """Sorts pieces (num_values,) of a group together and puts them aside."""
        values = np.concatenate(pieces)
        values.sort()
        run = _Run(self._scratch.append(values), values[::_SAMPLE_STEP].copy(), float(values[-1]))
        with self._lock:
            self._runs.setdefault(group, []).append(run)

    def count_at_most(self, groups: Iterable[int], value: float) -> int:
        """How many values of the groups are at most `value`."""
        total = 0
        for run in self._list_runs(groups):
            num_samples = int(np.searchsorted(run.samples, value, "right"))
            start = max(0, num_samples - 1) * _SAMPLE_STEP
            block = run.values.read(start, num_samples * _SAMPLE_STEP)
            total += start + int(np.searchsorted(block, value, "right"))
        return total

    def find(self, groups: Iterable[int], ranks: Sequence[int]) -> list[float]:
        """The values at `ranks`, from 0 (the least) on, of all values of the groups together."""
        runs = self._list_runs(groups)
        samples = np.sort(np.concatenate([run.samples for run in runs]))
        return [self._find(runs, samples, rank) for rank in ranks]

    def _find(self, runs: list[_Run], samples: Floats, rank: int) -> float:
        """Of samples (num_samples,): a value with j samples below it has at most 64 j values below it, and at least that less 63 a run."""
        low = samples[rank // _SAMPLE_STEP]
        place = -(-(rank + 1 + (_SAMPLE_STEP - 1) * len(runs)) // _SAMPLE_STEP) - 1
        high = samples[place] if place < len(samples) else max(run.largest for run in runs)
        if low == high:
            return float(low)
        num_low, between = 0, []
        for run in runs:
            first, last = np.searchsorted(run.samples, low, "right"), np.searchsorted(run.samples, high, "left")
            start = max(0, int(first) - 1) * _SAMPLE_STEP
            block = run.values.read(start, int(last) * _SAMPLE_STEP)
            above_low, below_high = np.searchsorted(block, low, "right"), np.searchsorted(block, high, "left")
            num_low += start + int(above_low)
            between.append(block[above_low:below_high])
        if rank < num_low:
            return float(low)
        values = np.concatenate(between)
        place = rank - num_low
        return float(np.partition(values, place)[place]) if place < len(values) else float(high)

    def _list_runs(self, groups: Iterable[int]) -> list[_Run]:
        return [run for group in groups for run in self._runs.get(group, ())]

"""Exact order statistics of values by group, in memory that hardly grows with them.

Values go to sorted runs in a scratch file, of which every 64th stays in memory. A rank lies between two of these; the few
values of each run between the two are read back, and settle it. So nothing is sorted whole, nothing is assumed of the
distribution, and ties cost nothing. Memory: an eighth of a byte a value, thrice that while a rank is looked for, and 128 MiB
of values that are in no run yet.
Where values have weights, such as the tokens of a sequence, sums of these are found in the same way, at twice the memory.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Sequence
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
    """Arrays in a temporary file: appended by any thread, read back by their place. It has no name, so who is killed leaves nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(path)
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
    weights: StoredArray | None = None
    weights_before: NDArray[np.int64] | None = None  # of all values before each sample, and of all: one more than samples


# Values of a group, and their weights where these are given: (num_values,) each.
_Piece = tuple[Floats, Integers | None]


class GroupedRuns:
    """Values by group. `add` may be called from several threads; after `finish`, ranks are asked for."""

    def __init__(
        self, scratch: ScratchFile, run_values: int = _RUN_VALUES, most_waiting_values: int = _MOST_WAITING_VALUES
    ) -> None:
        self._scratch = scratch
        self._run_values, self._most_waiting = run_values, most_waiting_values
        self._lock = threading.Lock()
        self._waiting: dict[int, list[_Piece]] = {}
        self._num_waiting: dict[int, int] = {}
        self._runs: dict[int, list[_Run]] = {}

    def add(self, groups: Integers, values: Floats, weights: Integers | None = None) -> None:
        """Values with the number of their group, and with their weight or all without, (num_values,) each; none is NaN."""
        if not len(values):
            return
        order = np.argsort(groups, kind="stable")
        sorted_groups, sorted_values = groups[order], values[order]
        starts = np.concatenate([[0], np.flatnonzero(sorted_groups[1:] != sorted_groups[:-1]) + 1])
        parts = np.split(sorted_values, starts[1:])
        weight_parts = [None] * len(parts) if weights is None else np.split(weights[order], starts[1:])
        pieces = zip(sorted_groups[starts].tolist(), zip(parts, weight_parts, strict=True), strict=True)
        for group, piece in self._take_full(pieces):
            self._make_run(group, piece)

    def finish(self) -> None:
        for group, pieces in self._waiting.items():
            self._make_run(group, pieces)
        self._waiting, self._num_waiting = {}, {}

    def _take_full(self, pieces: Iterable[tuple[int, _Piece]]) -> list[tuple[int, list[_Piece]]]:
        """Keeps pieces of groups; gives those of the groups that now fill a run, or of all where too many wait."""
        full = []
        with self._lock:
            for group, piece in pieces:
                self._waiting.setdefault(group, []).append(piece)
                self._num_waiting[group] = self._num_waiting.get(group, 0) + len(piece[0])
                if self._num_waiting[group] >= self._run_values:
                    full.append(group)
            if sum(self._num_waiting.values()) > self._most_waiting:
                full = list(self._waiting)
            taken = [(group, self._waiting.pop(group)) for group in full]
            for group in full:
                del self._num_waiting[group]
        return taken

    def _make_run(self, group: int, pieces: list[_Piece]) -> None:
        """Sorts pieces of a group together and puts them aside."""
        values = np.concatenate([piece for piece, _ in pieces])
        weights = [weights for _, weights in pieces if weights is not None]
        if weights:
            order = np.argsort(values, kind="stable")
            values, sorted_weights = values[order], np.concatenate(weights)[order]
            reached = np.concatenate([[0], np.cumsum(sorted_weights, dtype=np.int64)])
            before = np.append(reached[:-1:_SAMPLE_STEP], reached[-1])
            stored, stored_weights = self._scratch.append(values), self._scratch.append(sorted_weights)
            run = _Run(stored, values[::_SAMPLE_STEP].copy(), float(values[-1]), stored_weights, before)
        else:
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

    def weigh_at_least(self, groups: Iterable[int], value: float) -> int:
        """The weights of the values of the groups that are at least `value`, together."""
        total = 0
        for run in self._list_runs(groups):
            assert run.weights is not None
            assert run.weights_before is not None
            block = max(0, int(np.searchsorted(run.samples, value, "left")) - 1)
            start, stop = block * _SAMPLE_STEP, (block + 1) * _SAMPLE_STEP
            num_below = int(np.searchsorted(run.values.read(start, stop), value, "left"))
            below = run.weights_before[block] + run.weights.read(start, start + num_below).sum(dtype=np.int64)
            total += int(run.weights_before[-1] - below)
        return total

    def find_overflow(self, groups: Iterable[int], weigh: Callable[[float], int], budget: int) -> float | None:
        """The largest value of the groups at which `weigh`, which never falls as values do, is over `budget`; None where it never is.

        `weigh` tells what a cut at a value holds, e.g. `weigh_at_least`, and changes at values of the groups alone.
        """
        runs = self._list_runs(groups)
        if not runs:
            return None
        low, high = _as_order(min(float(run.samples[0]) for run in runs)), _as_order(max(run.largest for run in runs))
        if weigh(_from_order(low)) <= budget:
            return None
        # `low` is over the budget; what lies above `high` is not. Halved 64 times at most, as a float64 has 64 bits.
        while low < high:
            middle = low + (high - low + 1) // 2
            low, high = (middle, high) if weigh(_from_order(middle)) > budget else (low, middle - 1)
        return _from_order(low)

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


def _as_order(value: float) -> int:
    """A whole number that orders as the value does, one more for the next float64."""
    bits = int(np.float64(value + 0.0).view(np.int64))  # + 0.0: of the two zeros one
    return bits if bits >= 0 else -(bits & 0x7FFFFFFFFFFFFFFF)


def _from_order(number: int) -> float:
    bits = number if number >= 0 else -number | (1 << 63)
    return float(np.uint64(bits).view(np.float64))

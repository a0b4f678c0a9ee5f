"""Flat files of token ids, one document after the other, each with its EOS: datatrove's `.ds`, and OLMo's `.npy`, which is no NumPy file.

Both read a loss mask from a file of its own: a byte a token, 1 where it is a target.
"""

from __future__ import annotations

import csv
import gzip
import io
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.export.formats.base import FileFacts, Format, PartWriter, mark_targets
from miniplm.export.rows import Row


class FlatWriter(PartWriter):
    """The ids to one file, their loss mask to another where one is asked for; what else there is is written when all lengths are known."""

    def __init__(self, path: Path, facts: FileFacts, mask: Path | None = None) -> None:
        self.facts = facts
        self._dtype = np.dtype(facts.dtype).newbyteorder("<")
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._mask = open(mask, "wb") if mask is not None else None  # noqa: SIM115 - closed by close()
        self.lengths: list[int] = []

    def add(self, row: Row) -> None:
        assert row.token_ids is not None
        self._file.write(row.token_ids.astype(self._dtype).tobytes())
        if self._mask is not None:
            self._mask.write(mark_targets(row.token_ids, self.facts.eos_token_id).tobytes())
        self.lengths.append(len(row.token_ids))

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each row ends, in tokens: (num_rows,)."""
        return np.cumsum(np.array(self.lengths, dtype=np.int64))

    def close(self) -> None:
        self._file.close()
        if self._mask is not None:
            self._mask.close()
        self.write_index()

    @abstractmethod
    def write_index(self) -> None: ...


def read_flat(path: Path, ends: Sequence[int], dtype: str) -> Iterator[NDArray[Any]]:
    """Rows (num_tokens,) of a flat file, a memory map of it; a file of another length than the last end gives one row more, or a shorter one."""
    size = path.stat().st_size
    ids = np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r") if size else np.empty(0, dtype)
    for start, end in pairwise([0, *ends]):
        yield ids[start:end]
    if len(ids) > (ends[-1] if len(ends) else 0):
        yield ids[ends[-1] if len(ends) else 0 :]


def read_masked(rows: Iterator[NDArray[Any]], path: Path, eos_token_id: int) -> Iterator[NDArray[Any]]:
    """Rows (num_tokens,) each; none from the first on whose loss mask is not its own."""
    mask: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    start = 0
    for row in rows:
        own = mask[start : start + len(row)]
        if not np.array_equal(own, np.append(False, row[:-1] != eos_token_id)):
            return
        start += len(row)
        yield row
    if start != len(mask):
        yield np.empty(0, np.uint16)


class DatatroveFormat(Format):
    """`.ds`: ids; `.ds.index`: where documents end, uint64; `.ds.metadata`: tokenizer and bytes a token, number of tokens; `.ds.loss`: the mask."""

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        name = f"part-{part_index:05d}.ds"
        return name, f"{name}.index", f"{name}.metadata"

    def list_masks(self, part_index: int) -> tuple[str, ...]:
        return (f"part-{part_index:05d}.ds.loss",)

    def open(self, paths: Sequence[Path], facts: FileFacts) -> PartWriter:
        return _DatatroveWriter(paths, facts)

    def read(self, paths: Sequence[Path], facts: FileFacts) -> Iterator[NDArray[Any]]:  # (num_tokens,) each
        rows = read_flat(paths[0], np.fromfile(paths[1], "<u8").astype(np.int64).tolist(), facts.dtype)
        return read_masked(rows, paths[3], facts.eos_token_id) if facts.with_mask else rows


class _DatatroveWriter(FlatWriter):
    def __init__(self, paths: Sequence[Path], facts: FileFacts) -> None:
        super().__init__(paths[0], facts, paths[3] if facts.with_mask else None)
        self._index, self._metadata = paths[1:3]

    def write_index(self) -> None:
        self._index.write_bytes(self.ends.astype("<u8").tobytes())
        num_tokens = int(sum(self.lengths))
        token_size = np.dtype(self.facts.dtype).itemsize
        self._metadata.write_text(
            f"{self.facts.tokenizer_name}|{token_size}\n{num_tokens}\n{_say_tokens(num_tokens)}", encoding="utf-8"
        )


def _say_tokens(num_tokens: int) -> str:
    """`1.2 MT`, as datatrove writes it for people."""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if num_tokens >= size:
            return f"{num_tokens / size:.2f} {letter}T"
    return f"{num_tokens} T"


class OlmoFormat(Format):
    """`.npy`: ids and nothing else, as dolma writes and OLMo-core reads them; `.csv.gz`: start, end, id, source and record of each document;
    `labels_mask-N.npy`: the mask, under a name that a pattern for the ids does not match."""

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        return f"part-{part_index:05d}.npy", f"part-{part_index:05d}.csv.gz"

    def list_masks(self, part_index: int) -> tuple[str, ...]:
        return (f"labels_mask-{part_index:05d}.npy",)

    def open(self, paths: Sequence[Path], facts: FileFacts) -> PartWriter:
        return _OlmoWriter(paths, facts)

    def read(self, paths: Sequence[Path], facts: FileFacts) -> Iterator[NDArray[Any]]:  # (num_tokens,) each
        with gzip.open(paths[1], "rt", encoding="utf-8", newline="") as file:
            ends = [int(row[1]) for row in csv.reader(file)]
        rows = read_flat(paths[0], ends, facts.dtype)
        return read_masked(rows, paths[2], facts.eos_token_id) if facts.with_mask else rows


class _OlmoWriter(FlatWriter):
    def __init__(self, paths: Sequence[Path], facts: FileFacts) -> None:
        super().__init__(paths[0], facts, paths[2] if facts.with_mask else None)
        self._raw = open(paths[1], "wb")  # noqa: SIM115 - closed by write_index()
        # Without a time or a name in it, so that the same rows are the same bytes.
        self._gzip = gzip.GzipFile(filename="", mode="wb", fileobj=self._raw, mtime=0)
        self._text = io.TextIOWrapper(self._gzip, encoding="utf-8", newline="")
        self._csv = csv.writer(self._text, lineterminator="\n")
        self._start = 0

    def add(self, row: Row) -> None:
        super().add(row)
        end = self._start + self.lengths[-1]
        self._csv.writerow([self._start, end, row.facts["id"], row.facts["source"] or "", row.facts["record"] or 0])
        self._start = end

    def write_index(self) -> None:
        self._text.close()
        self._raw.close()

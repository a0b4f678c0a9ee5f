"""Flat files of token ids, one document after the other, each with its EOS: datatrove's `.ds`, and OLMo's `.npy`, which is no NumPy file."""

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

from miniplm.export.formats.base import FileFacts, Format, PartWriter
from miniplm.export.rows import Row


class FlatWriter(PartWriter):
    """The ids to one file; what else there is is written when all lengths are known."""

    def __init__(self, path: Path, facts: FileFacts) -> None:
        self.facts = facts
        self._dtype = np.dtype(facts.dtype).newbyteorder("<")
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self.lengths: list[int] = []

    def add(self, row: Row) -> None:
        assert row.token_ids is not None
        self._file.write(row.token_ids.astype(self._dtype).tobytes())
        self.lengths.append(len(row.token_ids))

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each row ends, in tokens."""
        return np.cumsum(np.array(self.lengths, dtype=np.int64))

    def close(self) -> None:
        self._file.close()
        self.write_index()

    @abstractmethod
    def write_index(self) -> None: ...


def read_flat(path: Path, ends: Sequence[int], dtype: str) -> Iterator[NDArray[Any]]:
    """Rows of a flat file, a memory map of it; a file of another length than the last end gives one row more, or a shorter one."""
    size = path.stat().st_size
    ids = np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r") if size else np.empty(0, dtype)
    for start, end in pairwise([0, *ends]):
        yield ids[start:end]
    if len(ids) > (ends[-1] if len(ends) else 0):
        yield ids[ends[-1] if len(ends) else 0 :]


class DatatroveFormat(Format):
    """`.ds`: ids; `.ds.index`: where documents end, uint64; `.ds.metadata`: tokenizer and bytes a token, number of tokens."""

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        name = f"part-{part_index:05d}.ds"
        return name, f"{name}.index", f"{name}.metadata"

    def open(self, paths: Sequence[Path], facts: FileFacts) -> PartWriter:
        return _DatatroveWriter(paths, facts)

    def read(self, paths: Sequence[Path], facts: FileFacts) -> Iterator[NDArray[Any]]:
        return read_flat(paths[0], np.fromfile(paths[1], "<u8").astype(np.int64).tolist(), facts.dtype)


class _DatatroveWriter(FlatWriter):
    def __init__(self, paths: Sequence[Path], facts: FileFacts) -> None:
        super().__init__(paths[0], facts)
        self._index, self._metadata = paths[1:]

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
    """`.npy`: ids and nothing else, as dolma writes and OLMo-core reads them; `.csv.gz`: start, end, id, source and record of each document."""

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        return f"part-{part_index:05d}.npy", f"part-{part_index:05d}.csv.gz"

    def open(self, paths: Sequence[Path], facts: FileFacts) -> PartWriter:
        return _OlmoWriter(paths, facts)

    def read(self, paths: Sequence[Path], facts: FileFacts) -> Iterator[NDArray[Any]]:
        with gzip.open(paths[1], "rt", encoding="utf-8", newline="") as file:
            ends = [int(row[1]) for row in csv.reader(file)]
        return read_flat(paths[0], ends, facts.dtype)


class _OlmoWriter(FlatWriter):
    def __init__(self, paths: Sequence[Path], facts: FileFacts) -> None:
        super().__init__(paths[0], facts)
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

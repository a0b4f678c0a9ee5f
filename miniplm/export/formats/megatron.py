"""Megatron's indexed dataset: `.bin` has the ids, `.idx` where each document is. Read by Megatron-LM, NeMo and Model-Optimizer.

.idx: "MMIDIDX\\0\\0", version 1 (uint64), code of the dtype (uint8), number of sequences and of documents + 1 (uint64 each), then of
every sequence its length (int32) and the byte where it begins (int64), and of every document its first sequence, and the end (int64).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.export.formats.base import FileFacts, Format, PartWriter
from miniplm.export.formats.tokens import FlatWriter, read_flat

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES = {"uint16": 8, "int32": 4}


class MegatronFormat(Format):
    """Each document is a sequence of its own, which ends with EOS, as `preprocess_data.py --append-eod` makes it."""

    dtypes = ("uint16", "int32")

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        return f"part-{part_index:05d}.bin", f"part-{part_index:05d}.idx"

    def open(self, paths: Sequence[Path], facts: FileFacts) -> PartWriter:
        return _MegatronWriter(paths, facts)

    def read(self, paths: Sequence[Path], facts: FileFacts) -> Iterator[NDArray[Any]]:
        content = paths[1].read_bytes()
        magic, version, code, num_sequences, _ = _HEADER.unpack_from(content)
        if (magic, version, code) != (_MAGIC, 1, _CODES[facts.dtype]):
            return
        lengths = np.frombuffer(content, "<i4", num_sequences, _HEADER.size)
        yield from read_flat(paths[0], np.cumsum(lengths, dtype=np.int64).tolist(), facts.dtype)


class _MegatronWriter(FlatWriter):
    def __init__(self, paths: Sequence[Path], facts: FileFacts) -> None:
        super().__init__(paths[0], facts)
        self._index = paths[1]

    def write_index(self) -> None:
        num_rows = len(self.lengths)
        pointers = np.concatenate([np.zeros(1, np.int64), self.ends])[:num_rows] * np.dtype(self.facts.dtype).itemsize
        with open(self._index, "wb") as file:
            file.write(_HEADER.pack(_MAGIC, 1, _CODES[self.facts.dtype], num_rows, num_rows + 1))
            file.write(np.array(self.lengths, dtype="<i4").tobytes())
            file.write(pointers.astype("<i8").tobytes())
            file.write(np.arange(num_rows + 1, dtype="<i8").tobytes())

"""JSON Lines: one document a line, plain or as zstd; what datatrove, NeMo Curator and everything else reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import zstandard

from miniplm.export.formats.base import FileFacts, Format, PartWriter
from miniplm.export.rows import Row

_LEVEL = 3


class JsonlFormat(Format):
    holds_text = True

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        return (f"part-{part_index:05d}.jsonl{'.zst' if compression == 'zstd' else ''}",)

    def open(self, paths: Sequence[Path], facts: FileFacts) -> PartWriter:
        return _JsonlWriter(paths[0], facts.compression)

    def read(self, paths: Sequence[Path], facts: FileFacts) -> Iterator[str]:
        with open(paths[0], "rb") as raw:
            file: Any = zstandard.ZstdDecompressor().stream_reader(raw) if facts.compression == "zstd" else raw
            for line in _split_lines(file):
                yield json.loads(line)["text"]


class _JsonlWriter(PartWriter):
    def __init__(self, path: Path, compression: str) -> None:
        self._raw = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._file: IO[bytes] = self._raw
        if compression == "zstd":
            self._file = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).stream_writer(self._raw, closefd=False)

    def add(self, row: Row) -> None:
        self._file.write(json.dumps({"text": row.text, **row.facts}, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        try:
            if self._file is not self._raw:
                self._file.close()
        finally:
            self._raw.close()


def _split_lines(file: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while block := file.read(1 << 20):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest

"""Sources and what is read from them, for their tests."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from miniplm.config.run import SourceConfig
from miniplm.sources.documents import Document, Rejection
from miniplm.sources.files import find_source_files
from miniplm.sources.reading import read_source_records

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
}


def make_source(path: object, **settings: Any) -> SourceConfig:
    return SourceConfig.model_validate({"path": str(path), "domain_name": "d", **settings})


def read_source(source: SourceConfig, num_skipped: int = 0) -> list[Document | Rejection]:
    (file,) = find_source_files(source)
    return list(read_source_records(file, source, 100, num_skipped, lambda num_bytes: None))


def read_lines(tmp_path: Path, *lines: bytes, **settings: Any) -> list[Document | Rejection]:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    return read_source(make_source(path, **settings))

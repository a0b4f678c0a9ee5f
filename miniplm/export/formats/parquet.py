"""Parquet with one document a row: plain, as a folder for `datasets.load_dataset` with its card, and as nanochat's shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from miniplm.export.formats.base import FileFacts, Format, PartWriter
from miniplm.export.formats.card import make_card
from miniplm.export.records import ExportedPart, ExportManifest
from miniplm.export.rows import Row

SCHEMA = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("document_id", pa.int64(), nullable=False),
        pa.field("sequence_ids", pa.list_(pa.int64()), nullable=False),
        pa.field("teacher_nll", pa.float64(), nullable=False),
        pa.field("reference_nll", pa.float64(), nullable=False),
        pa.field("difference_score", pa.float64(), nullable=False),
        pa.field("is_whole", pa.bool_(), nullable=False),
        pa.field("token_start", pa.int64(), nullable=False),
        pa.field("token_end", pa.int64(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("record", pa.int64()),
    ]
)
# nanochat's processes take row groups in turn, so that a file has to have many; 1,024 documents are its own.
GROUP_ROWS = 1024
# What a row group holds in memory at most, unless one document is longer.
_GROUP_BYTES = 64 << 20


class ParquetFormat(Format):
    holds_text = True
    schema = SCHEMA
    options: dict[str, Any] = {"compression": "zstd"}  # noqa: RUF012 - a constant

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        return (f"part-{part_index:05d}.parquet",)

    def open(self, paths: Sequence[Path], facts: FileFacts) -> PartWriter:
        return _ParquetWriter(paths[0], self.schema, self.options)

    def read(self, paths: Sequence[Path], facts: FileFacts) -> Iterator[str]:
        with open(paths[0], "rb") as file, pq.ParquetFile(file) as table:
            for group in range(table.num_row_groups):
                yield from table.read_row_group(group, columns=["text"])["text"].to_pylist()


class HubFormat(ParquetFormat):
    """The files' names say how many there are, as on the hub; the card names them, so that nothing else in the folder is taken for data."""

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        return (f"data/train-{part_index:05d}-of-{num_parts:05d}.parquet",)

    def finish(self, parts: Sequence[ExportedPart], facts: FileFacts, manifest: ExportManifest) -> dict[str, bytes]:
        return {"README.md": make_card(manifest).encode()}


class NanochatFormat(ParquetFormat):
    """nanochat's own writer: a column `text`, groups of 1,024 documents, zstd level 3, no dictionary, no statistics."""

    schema = pa.schema([pa.field("text", pa.string())])
    options = {"compression": "zstd", "compression_level": 3, "use_dictionary": False, "write_statistics": False}  # noqa: RUF012

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        return (f"shard_{part_index:05d}.parquet",)


class _ParquetWriter(PartWriter):
    def __init__(self, path: Path, schema: pa.Schema, options: dict[str, Any]) -> None:
        self._schema = schema
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._writer = pq.ParquetWriter(self._file, schema, **options)
        self._rows: list[dict[str, Any]] = []
        self._num_bytes = 0

    def add(self, row: Row) -> None:
        self._rows.append({"text": row.text, **row.facts})
        self._num_bytes += len(row.text)
        if len(self._rows) >= GROUP_ROWS or self._num_bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        try:
            self._flush()
            self._writer.close()
        finally:
            self._file.close()

    def _flush(self) -> None:
        if self._rows:
            rows = [{name: row[name] for name in self._schema.names} for row in self._rows]
            self._writer.write_table(pa.Table.from_pylist(rows, self._schema), row_group_size=GROUP_ROWS)
            self._rows, self._num_bytes = [], 0

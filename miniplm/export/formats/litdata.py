"""LitData's chunks for its TokensLoader, which litgpt reads: a row is a document, and blocks go over their borders.

chunk-0-N.bin: number of rows (uint32), where each begins and the last ends (uint32), their token ids.
index.json: all chunks, each with its rows, bytes and tokens, and the dtype of the ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.errors import ConfigError
from miniplm.export.formats.base import FileFacts, Format, PartWriter
from miniplm.export.records import ExportedPart, ExportManifest
from miniplm.export.rows import Row

# Offsets in a chunk are uint32.
_MOST_BYTES = 2**32 - 1
# Its numbers for dtypes: litgpt writes tensors of int32; of uint16 it reads arrays, not tensors, in all versions.
_DATA_FORMATS = {"uint16": "no_header_numpy:5", "int32": "no_header_tensor:16"}
# One item that is no tuple and no mapping.
_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'


class LitDataFormat(Format):
    dtypes = ("uint16", "int32")

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        return (f"chunk-0-{part_index}.bin",)

    def open(self, paths: Sequence[Path], facts: FileFacts) -> PartWriter:
        return _ChunkWriter(paths[0], facts.dtype)

    def read(self, paths: Sequence[Path], facts: FileFacts) -> Iterator[NDArray[Any]]:
        content = np.memmap(paths[0], dtype=np.uint8, mode="r")
        num_rows = int(content[:4].view("<u4")[0])
        bounds = content[4 : 8 + 4 * num_rows].view("<u4").tolist()
        for start, stop in pairwise(bounds):
            yield content[start:stop].view(np.dtype(facts.dtype).newbyteorder("<"))
        if bounds[-1] != len(content):
            yield np.empty(0, facts.dtype)

    def finish(self, parts: Sequence[ExportedPart], facts: FileFacts, manifest: ExportManifest) -> dict[str, bytes]:
        chunks = [
            {
                "chunk_bytes": part.files[0].num_bytes,
                "chunk_size": part.num_rows,
                "dim": part.num_tokens,
                "filename": part.files[0].name,
            }
            for part in parts
        ]
        config = {
            "chunk_bytes": max(part.files[0].num_bytes for part in parts),
            "chunk_size": None,
            "compression": None,
            "data_format": [_DATA_FORMATS[facts.dtype]],
            "data_spec": _LEAF,
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        # The last names the folder of its cache: another export is another one.
        content = {"chunks": chunks, "config": config, "updated_at": manifest.export_id}
        return {"index.json": json.dumps(content, sort_keys=True).encode()}


class _ChunkWriter(PartWriter):
    def __init__(self, path: Path, dtype: str) -> None:
        self._path, self._dtype = path, np.dtype(dtype).newbyteorder("<")
        self._rows: list[bytes] = []
        self._num_bytes = 8

    def add(self, row: Row) -> None:
        assert row.token_ids is not None
        self._rows.append(row.token_ids.astype(self._dtype).tobytes())
        self._num_bytes += len(self._rows[-1]) + 4
        if self._num_bytes > _MOST_BYTES:
            raise ConfigError("a chunk of litdata holds less than 4 GiB; give a smaller shard_tokens (--shard-tokens)")

    def close(self) -> None:
        bounds = np.cumsum([0, *map(len, self._rows)], dtype=np.int64) + 4 + 4 * (len(self._rows) + 1)
        with open(self._path, "wb") as file:
            file.write(np.array([len(self._rows)], "<u4").tobytes() + bounds.astype("<u4").tobytes())
            file.writelines(self._rows)

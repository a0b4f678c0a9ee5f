"""Mosaic's streaming shards: a row is a packed sequence, its `tokens` an array of int32 as LLM Foundry writes them.
`loss_mask`, where it is asked for, is 0 where nothing before a token could predict it.

shard.NNNNN.mds: number of samples (uint32), where each begins and the last ends (uint32), the columns as JSON, the samples.
A sample: the sizes of those columns that have none of their own (uint32 each), then the columns by name.
index.json: all shards.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.errors import ConfigError
from miniplm.export.formats.base import FileFacts, Format, PartWriter, mark_targets
from miniplm.export.records import ExportedPart, ExportManifest
from miniplm.export.rows import Row
from miniplm.export.shards import SCORES

# Offsets in a shard are uint32.
_MOST_BYTES = 2**32 - 1
# An array's encoding begins with the number of its dimensions and the code of the type that its length is written in.
_LENGTH_TYPES = ((np.uint8, 2**8), (np.uint16, 2**16), (np.uint32, 2**32))
_NUM_TYPES = 4


class MdsFormat(Format):
    dtypes = ("int32", "int32")

    def list_files(self, part_index: int, num_parts: int, compression: str) -> tuple[str, ...]:
        return (f"shard.{part_index:05d}.mds",)

    def open(self, paths: Sequence[Path], facts: FileFacts) -> PartWriter:
        return _MdsWriter(paths[0], _list_columns(facts), facts.eos_token_id)

    def read(self, paths: Sequence[Path], facts: FileFacts) -> Iterator[NDArray[Any]]:  # (num_tokens,) each
        content = np.memmap(paths[0], dtype=np.uint8, mode="r")
        num_samples = int(content[:4].view("<u4")[0])
        bounds = content[4 : 8 + 4 * num_samples].view("<u4").tolist()
        names = sorted(name for name, (_, size) in _list_columns(facts).items() if size is None)
        fixed = {name: size for name, (_, size) in _list_columns(facts).items() if size is not None}
        for start, stop in itertools.pairwise(bounds):
            sizes = dict(zip(names, content[start : start + 4 * len(names)].view("<u4").tolist(), strict=True)) | fixed
            place = start + 4 * len(names) + sum(sizes[name] for name in sizes if name < "tokens")
            token_ids = _decode_array(content[place : place + sizes["tokens"]].tobytes(), "<i4")
            if facts.with_mask:
                at = start + 4 * len(names) + sum(sizes[name] for name in sizes if name < "loss_mask")
                mask = _decode_array(content[at : at + sizes["loss_mask"]].tobytes(), np.uint8)
                starts = np.append(0, np.flatnonzero(token_ids[:-1] == facts.eos_token_id) + 1)
                if len(mask) != len(token_ids) or not np.array_equal(np.flatnonzero(mask != 1), starts) or mask[starts].any():
                    return
            yield token_ids
            if place + sum(sizes[name] for name in sizes if name >= "tokens") != stop:
                return

    def finish(self, parts: Sequence[ExportedPart], facts: FileFacts, manifest: ExportManifest) -> dict[str, bytes]:
        columns = _list_columns(facts)
        shards = [
            {
                "column_encodings": [columns[name][0] for name in sorted(columns)],
                "column_names": sorted(columns),
                "column_sizes": [columns[name][1] for name in sorted(columns)],
                "compression": None,
                "format": "mds",
                "hashes": [],
                "raw_data": {"basename": part.files[0].name, "bytes": part.files[0].num_bytes, "hashes": {}},
                "samples": part.num_rows,
                "size_limit": None,
                "version": 2,
                "zip_data": None,
            }
            for part in parts
        ]
        return {"index.json": json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode()}


def _list_columns(facts: FileFacts) -> dict[str, tuple[str, int | None]]:
    """Each column's encoding and fixed size."""
    columns: dict[str, tuple[str, int | None]] = {"tokens": (f"ndarray:{facts.dtype}", None), "domain": ("str", None)}
    if facts.with_mask:
        columns["loss_mask"] = ("ndarray:uint8", None)
    if facts.with_scores:
        columns |= {"sequence_id": ("int64", 8)} | dict.fromkeys(SCORES, ("float64", 8))
    return columns


def _encode_array(values: NDArray[Any], dtype: Any) -> bytes:  # (num_tokens,)
    for code, (kind, limit) in enumerate(_LENGTH_TYPES):
        if len(values) < limit:
            # The number of dimensions and the type of the length share a byte.
            return bytes([1 * _NUM_TYPES + code]) + np.array([len(values)], kind).tobytes() + values.astype(dtype).tobytes()
    raise AssertionError("a sequence is shorter than 2**32 tokens")


def _decode_array(content: bytes, dtype: Any) -> NDArray[Any]:  # (num_tokens,)
    kind, _ = _LENGTH_TYPES[content[0] % _NUM_TYPES]
    start = 1 + np.dtype(kind).itemsize
    return np.frombuffer(content, dtype, offset=start)


class _MdsWriter(PartWriter):
    def __init__(self, path: Path, columns: dict[str, tuple[str, int | None]], eos_token_id: int) -> None:
        self._path, self._columns, self._eos_token_id = path, columns, eos_token_id
        self._samples: list[bytes] = []
        self._num_bytes = 0

    def add(self, row: Row) -> None:
        assert row.token_ids is not None
        values: dict[str, bytes] = {"tokens": _encode_array(row.token_ids, "<i4"), "domain": row.domain.encode()}
        if "loss_mask" in self._columns:
            values["loss_mask"] = _encode_array(mark_targets(row.token_ids, self._eos_token_id), np.uint8)
        for name, (encoding, size) in self._columns.items():
            if size is not None:
                values[name] = np.array([row.facts[name]], np.dtype(encoding)).tobytes()
        sizes = [len(values[name]) for name in sorted(values) if self._columns[name][1] is None]
        sample = np.array(sizes, "<u4").tobytes() + b"".join(values[name] for name in sorted(values))
        self._samples.append(sample)
        self._num_bytes += len(sample) + 4
        if self._num_bytes > _MOST_BYTES - (1 << 20):
            raise ConfigError("a shard of mds holds less than 4 GiB; give a smaller shard_tokens (--shard-tokens)")

    def close(self) -> None:
        columns = {
            "column_encodings": [self._columns[name][0] for name in sorted(self._columns)],
            "column_names": sorted(self._columns),
            "column_sizes": [self._columns[name][1] for name in sorted(self._columns)],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "size_limit": None,
            "version": 2,
        }
        head = json.dumps(columns, sort_keys=True).encode()
        bounds = np.cumsum([0, *map(len, self._samples)], dtype=np.int64) + 4 + 4 * (len(self._samples) + 1) + len(head)
        with open(self._path, "wb") as file:
            file.write(np.array([len(self._samples)], "<u4").tobytes() + bounds.astype("<u4").tobytes() + head)
            file.writelines(self._samples)

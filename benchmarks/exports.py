"""Exports of every format, and what their own libraries read of them: the same rows, tokens and ends of documents, or it ends in an error.

A random half of the sequences of made-up text is exported, and each format read in a process of its own by the library
that its users read it with (`make setup` installs them into .venv/readers). Rates are of CPU seconds, planning, writing and reading back
included.

    library      datatrove (jsonl, parquet, ds), datasets (hf), megatron-core, mosaicml-streaming (mds), litdata; nanochat and OLMo have
                 none to import: their files are read as their own code reads them, by pyarrow and NumPy
    rows, tokens as the library counts them. Libraries that give blocks of tokens leave out the last, short one of each file

    python -m benchmarks.exports --tokens 20000000                 # 10 M of them are kept
    python -m benchmarks.exports --formats hf mds --tokens 1000000
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.exports_inputs import make_selected_corpus
from benchmarks.records import Rows, describe_place, format_table, make_parser, measure_apart, run_benchmark
from miniplm.config.exports import FORMATS, TEXT_FORMATS, ExportConfig
from miniplm.errors import RunFailedError
from miniplm.export.exporting import export_selection
from miniplm.export.job import ExportJob
from miniplm.records.manifests import CorpusManifest
from miniplm.records.selections import SelectionManifest
from miniplm.storage.root import Storage

_BLOCK = 257
_SHARD_TOKENS = 2_000_000
# Rows, tokens and ends of documents as a library counts them; of text its bytes in place of the last two.
Counts = tuple[int, int, int]


def _count_text(texts: Iterable[str], eos: int) -> Counts:
    sizes = [len(text.encode()) for text in texts]
    return len(sizes), sum(sizes), 0


def _count_ids(rows: Iterable[Any], eos: int) -> Counts:
    num_rows = num_tokens = num_eos = 0
    for row in rows:
        ids = np.asarray(row)
        num_rows, num_tokens, num_eos = num_rows + 1, num_tokens + len(ids), num_eos + int(np.count_nonzero(ids == eos))
    return num_rows, num_tokens, num_eos


def _read_datatrove_text(folder: Path, eos: int) -> Counts:
    from datatrove.pipeline.readers import JsonlReader, ParquetReader

    reader = (
        JsonlReader(str(folder), glob_pattern="*.jsonl")
        if list(folder.glob("*.jsonl"))
        else ParquetReader(str(folder), glob_pattern="*.parquet")
    )
    return _count_text((document.text for document in reader()), eos)


def _read_datasets(folder: Path, eos: int) -> Counts:
    import datasets

    return _count_text(datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "hf-cache"))["text"], eos)


def _read_nanochat(folder: Path, eos: int) -> Counts:
    import pyarrow.parquet as pq

    files = [pq.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]
    groups = (file.read_row_group(group)["text"].to_pylist() for file in files for group in range(file.num_row_groups))
    return _count_text((text for group in groups for text in group), eos)


def _read_megatron(folder: Path, eos: int) -> Counts:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    parts = [IndexedDataset(str(path.with_suffix("")), mmap=True) for path in sorted(folder.glob("*.bin"))]
    return _count_ids((part[row] for part in parts for row in range(len(part))), eos)


def _read_mds(folder: Path, eos: int) -> Counts:
    sys.modules["streaming.vision"] = ModuleType("streaming.vision")  # its part for images wants torchvision
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return _count_ids((sample["tokens"] for sample in dataset), eos)


def _read_litdata(folder: Path, eos: int) -> Counts:
    import litdata

    dataset = litdata.StreamingDataset(str(folder), item_loader=litdata.TokensLoader(block_size=_BLOCK), shuffle=False)
    return _count_ids(dataset, eos)


def _read_ds(folder: Path, eos: int) -> Counts:
    from datatrove.utils.dataset import DatatroveFolderDataset

    dataset = DatatroveFolderDataset(str(folder), seq_len=_BLOCK - 1, filename_pattern="*.ds", token_size=2, shuffle=False)
    return _count_ids((dataset[index]["input_ids"] for index in range(len(dataset))), eos)


def _read_npy(folder: Path, eos: int) -> Counts:
    rows: list[Any] = []
    for path in sorted(folder.glob("*.npy")):
        ids = np.memmap(path, np.uint16, "r")
        with gzip.open(path.with_suffix(".csv.gz"), "rt", newline="") as file:
            rows += [ids[int(row[0]) : int(row[1])] for row in csv.reader(file)]
    return _count_ids(rows, eos)


READERS: dict[str, Callable[[Path, int], Counts]] = {
    "jsonl": _read_datatrove_text,
    "parquet": _read_datatrove_text,
    "hf": _read_datasets,
    "nanochat": _read_nanochat,
    "megatron": _read_megatron,
    "mds": _read_mds,
    "litdata": _read_litdata,
    "ds": _read_ds,
    "npy": _read_npy,
}
_GIVES_BLOCKS = ("litdata", "ds")


def export(storage: Storage, corpus: CorpusManifest, selection: SelectionManifest, format: str, to: str) -> dict[str, Any]:
    """Exports a selection; what the manifest says, and CPU seconds."""
    config = ExportConfig.model_validate({"format": format, "to": to, "shard_tokens": _SHARD_TOKENS})
    job = ExportJob(storage, corpus, selection, config)
    began = time.process_time()
    manifest, _ = export_selection(job)
    return {
        "cpu_seconds": time.process_time() - began,
        "num_bytes": manifest.num_bytes,
        "num_files": manifest.num_files,
        "num_source_tokens": manifest.num_source_tokens,
        "written": [manifest.num_rows, manifest.text_bytes if format in TEXT_FORMATS else manifest.num_tokens, manifest.num_eos],
        "eos": manifest.tokenizer.eos_token_id,
    }


def read(format: str, folder: Path, eos: int) -> dict[str, Any]:
    """What the format's own library counts."""
    sys.path.append(str(Path(sys.prefix) / "readers"))
    began = time.process_time()
    counts = READERS[format](folder, eos)
    return {"read": list(counts), "read_cpu_seconds": time.process_time() - began}


def check_counts(format: str, written: list[int], counts: list[int], num_files: int) -> None:
    """Raises `RunFailedError` where a library reads anything else than was written."""
    if format in _GIVES_BLOCKS:
        missing = written[1] - counts[1]
        agrees = 0 <= missing < _BLOCK * num_files and 0 <= written[2] - counts[2] <= missing and counts[0] * _BLOCK == counts[1]
    else:
        agrees = written[: 2 if format in TEXT_FORMATS else 3] == counts[: 2 if format in TEXT_FORMATS else 3]
    if not agrees:
        raise RunFailedError(f"{format}: its library reads rows, tokens and EOS {counts}, written were {written}")


def _measure(arguments: argparse.Namespace, scratch: Path) -> Rows:
    storage, corpus, selection = make_selected_corpus(scratch, arguments.tokens)
    place, rows = describe_place(torch.device("cpu")), []
    for format in arguments.formats:
        to = str(scratch / format)
        row = {"benchmark": "exports", "format": format, **place, **export(storage, corpus, selection, format, to)}
        row |= measure_apart("exports", ["--folder", to, "--eos", str(row.pop("eos"))], format)
        if "reason" in row:
            raise RunFailedError(f"the reader of {format} failed: {row['reason']}")
        num_files = row["num_files"] // 3 if format == "ds" else row["num_files"]
        check_counts(format, row["written"], row["read"], num_files)
        rows.append(row)
        print(f"{format}: read back by its own library", file=sys.stderr)
    header = ("format", "rows", "tokens, or bytes of text", "read by its library", "M tokens/CPU s", "MB/CPU s")
    cells = [
        (
            row["format"],
            f"{row['written'][0]:,}",
            f"{row['written'][1]:,}",
            f"{row['read'][1]:,}",
            f"{row['num_source_tokens'] / row['cpu_seconds'] / 1e6:.1f}",
            f"{row['num_bytes'] / row['cpu_seconds'] / 1e6:.1f}",
        )
        for row in rows
    ]
    print(format_table(header, cells))
    return rows


def main() -> int:
    parser = make_parser("exports", __doc__)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="of the corpus, of which half are kept")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--measure", choices=FORMATS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--eos", type=int, help=argparse.SUPPRESS)
    return run_benchmark(parser, _measure, lambda arguments: read(arguments.measure, arguments.folder, arguments.eos))


if __name__ == "__main__":
    raise SystemExit(main())

"""Each format opened by the library that trainers read it with, where set-up could install it; `test_formats` reads all of them without."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.miniplm.export.exported import Selected
from tests.miniplm.export.test_documents import read_rows
from tests.miniplm.export.test_formats import read_datatrove, read_litdata, read_megatron

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which set-up puts these libraries, and in which nothing else looks: they are there without what they depend on."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(sys.prefix) / "readers")])


def test_datasets_loads_the_folder_and_its_card(small: Selected, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    small.export("hf", tmp_path / "out", shard_tokens=500)
    small.export("jsonl", tmp_path / "text", shard_tokens=500)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == read_rows(tmp_path / "text")


def test_datatrove_reads_lines_and_tokens(small: Selected, tmp_path: Path) -> None:
    readers = pytest.importorskip("datatrove.pipeline.readers", reason="datatrove is not installed")
    from datatrove.utils.dataset import DatatroveFolderDataset

    small.export("jsonl", tmp_path / "text", shard_tokens=500, compression="zstd")
    documents = list(readers.JsonlReader(str(tmp_path / "text"), glob_pattern="*.jsonl.zst")())
    small.export("jsonl", tmp_path / "plain", shard_tokens=500)
    rows = {row["id"]: row for row in read_rows(tmp_path / "plain")}
    assert [document.text for document in documents] == [rows[document.id]["text"] for document in documents]
    assert len(documents) == len(rows)
    assert documents[0].metadata["domain"] == rows[documents[0].id]["domain"]

    small.export("ds", tmp_path / "ids", shard_tokens=500)
    ids = np.concatenate([np.array(row) for row in read_datatrove(tmp_path / "ids", "uint16")])
    dataset = DatatroveFolderDataset(str(tmp_path / "ids"), seq_len=9, filename_pattern="*.ds", token_size=2, shuffle=False)
    read = [dataset[index]["input_ids"].tolist() for index in range(len(dataset))]
    # Windows of ten; a file's last ids that fill none are not read.
    windows = []
    for path in sorted((tmp_path / "ids").glob("*.ds")):
        file = np.fromfile(path, np.uint16)
        windows += file[: len(file) // 10 * 10].reshape(-1, 10).tolist()
    assert sorted(read) == sorted(windows)
    assert sum(map(len, windows)) > 0.98 * len(ids) - 60


def test_datatrove_merges_tokens_with_their_loss_mask(small: Selected, tmp_path: Path) -> None:
    merger = pytest.importorskip("datatrove.pipeline.tokens.merger", reason="datatrove is not installed")
    small.export("ds", tmp_path / "ids", shard_tokens=500, loss_mask=True)
    merger.DocumentTokenizerMerger(
        str(tmp_path / "ids"), str(tmp_path / "merged"), "all", shuffle=False, save_loss_metadata=True, progress=False
    )()
    (ids,), (mask,) = (sorted((tmp_path / "merged").glob(pattern)) for pattern in ("*.ds", "*.ds.loss"))
    token_ids, targets = np.fromfile(ids, np.uint16), np.fromfile(mask, bool)
    assert token_ids.tolist() == [one for row in read_datatrove(tmp_path / "ids", "uint16") for one in row]
    assert targets.tolist() == [False, *(token_ids[:-1] != small.corpus.tokenizer.eos_token_id)]


@pytest.mark.parametrize(("corpus", "dtype"), [("small", np.uint16), ("large", np.uint32)])
def test_olmo_core_reads_ids_with_their_label_mask(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str, dtype: Any
) -> None:
    dataset_class = import_olmo(monkeypatch).NumpyFSLDataset
    selected: Selected = request.getfixturevalue(corpus)
    selected.export("npy", tmp_path / "out", shard_tokens=500, loss_mask=True)
    paths, masks = (sorted((tmp_path / "out").glob(pattern)) for pattern in ("part-*.npy", "labels_mask-*.npy"))
    tokenizer = selected.corpus.tokenizer
    dataset = dataset_class(
        *paths,
        label_mask_paths=masks,
        sequence_length=16,
        pad_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        vocab_size=tokenizer.vocab_size,
        dtype=dtype,
    )
    dataset.prepare()
    items = [dataset[index] for index in range(len(dataset))]
    files = [np.fromfile(path, dtype) for path in paths]
    # Windows of sixteen; a file's last ids that fill none are not read.
    windows = [window for file in files for window in file[: len(file) // 16 * 16].reshape(-1, 16).tolist()]
    assert [item["input_ids"].tolist() for item in items] == windows
    targets = [np.append(False, file[:-1] != tokenizer.eos_token_id) for file in files]
    wanted = [window for file in targets for window in file[: len(file) // 16 * 16].reshape(-1, 16).tolist()]
    assert [item["label_mask"].tolist() for item in items] == wanted


def import_olmo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """OLMo-core without what fetches files of URLs, which alone wants the clients of clouds."""
    for name in ("cached_path", "cached_path.schemes"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    client = type("Client", (), {"recoverable_errors": ()})
    monkeypatch.setattr(sys.modules["cached_path.schemes"], "S3Client", client)
    monkeypatch.setattr(sys.modules["cached_path.schemes"], "SchemeClient", client)
    return pytest.importorskip("olmo_core.data.numpy_dataset", reason="ai2-olmo-core is not installed")


@pytest.mark.parametrize(("corpus", "dtype"), [("small", "uint16"), ("large", "int32")])
def test_megatron_core_reads_its_indexed_dataset(request: pytest.FixtureRequest, tmp_path: Path, corpus: str, dtype: str) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed")
    selected: Selected = request.getfixturevalue(corpus)
    selected.export("megatron", tmp_path / "out", shard_tokens=500)
    rows: list[list[int]] = []
    for path in sorted((tmp_path / "out").glob("*.bin")):
        dataset = indexed.IndexedDataset(str(path.with_suffix("")), mmap=True)
        assert len(dataset.document_indices) == len(dataset) + 1
        assert dataset.index.dtype.__name__ == dtype
        rows += [dataset[index].tolist() for index in range(len(dataset))]
    assert rows == read_megatron(tmp_path / "out", dtype)


@pytest.mark.parametrize(("corpus", "dtype"), [("small", "uint16"), ("large", "int32")])
def test_litdata_reads_blocks_of_tokens(request: pytest.FixtureRequest, tmp_path: Path, corpus: str, dtype: str) -> None:
    litdata = pytest.importorskip("litdata", reason="litdata is not installed")
    selected: Selected = request.getfixturevalue(corpus)
    selected.export("litdata", tmp_path / "out", shard_tokens=10**6)
    ids = [token_id for row in read_litdata(tmp_path / "out", dtype) for token_id in row]
    dataset = litdata.StreamingDataset(str(tmp_path / "out"), item_loader=litdata.TokensLoader(block_size=17), shuffle=False)
    blocks = [block.tolist() for block in dataset]
    assert blocks == [ids[start : start + 17] for start in range(0, len(ids) // 17 * 17, 17)]


def test_mosaic_streaming_reads_its_shards(large: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = import_streaming(monkeypatch)
    large.export("mds", tmp_path / "out", shard_tokens=500, loss_mask=True)
    # What StreamingDataset reads samples with; it needs shared memory besides, which outlives a test.
    shards = json.loads((tmp_path / "out" / "index.json").read_text())["shards"]
    readers = [streaming.base.format.reader_from_json(str(tmp_path / "out"), "", shard) for shard in shards]
    rows = [reader[index] for reader in readers for index in range(len(reader))]
    kept = large.kept()
    assert [(row["sequence_id"], row["domain"], row["tokens"].tolist()) for row in rows] == [
        (row["sequence_id"], row["domain"], row["token_ids"]) for row in kept
    ]
    eos = large.corpus.tokenizer.eos_token_id
    for row in rows:
        ids = row["tokens"].tolist()
        assert row["loss_mask"].tolist() == [int(at > 0 and ids[at - 1] != eos) for at in range(len(ids))]
    assert {0, 1} == set(np.concatenate([row["loss_mask"] for row in rows]).tolist())
    assert all(row["reference_nll"] - row["teacher_nll"] == pytest.approx(row["difference_score"]) for row in rows)


def import_streaming(monkeypatch: pytest.MonkeyPatch) -> Any:
    """mosaicml-streaming without its part for images, which alone wants torchvision."""
    monkeypatch.setitem(sys.modules, "streaming.vision", ModuleType("streaming.vision"))
    return pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")


def test_nanochat_reads_text_group_by_group(small: Selected, tmp_path: Path) -> None:
    """As its `parquets_iter_batched` does: all files but the last to train on, the groups of a file in turn by its processes."""
    small.export("nanochat", tmp_path / "out", shard_tokens=500)
    small.export("jsonl", tmp_path / "text", shard_tokens=500)
    paths = sorted(
        path for path in (tmp_path / "out").iterdir() if path.name.endswith(".parquet") and not path.name.endswith(".tmp")
    )
    texts: list[str] = []
    for split in (paths[:-1], paths[-1:]):
        for path in split:
            table = pq.ParquetFile(path)
            for group in range(0, table.num_row_groups):
                texts += table.read_row_group(group).column("text").to_pylist()
    assert texts == [row["text"] for row in read_rows(tmp_path / "text")]
    assert len(paths) > 2

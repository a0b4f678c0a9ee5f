"""Each format read by its documented layout, in code that shares nothing with the writers: the ids are those of the kept sequences."""

from __future__ import annotations

import csv
import gzip
import json
import struct
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from miniplm.errors import RunFailedError
from miniplm.export.formats import tokens
from miniplm.export.records import ExportManifest
from tests.miniplm.export.exported import Selected

Ids = list[list[int]]


def list_files(folder: Path, pattern: str) -> list[Path]:
    return sorted(
        folder.glob(pattern),
        key=lambda path: int("".join(filter(str.isdigit, path.name.removeprefix("chunk-0-").split(".bin")[0])) or 0),
    )


def read_megatron(folder: Path, dtype: str) -> Ids:
    rows: Ids = []
    for path in list_files(folder, "*.idx"):
        content = path.read_bytes()
        assert content[:9] == b"MMIDIDX\x00\x00"
        version, code, num_sequences, num_documents = struct.unpack("<QBQQ", content[9:34])
        assert (version, code, num_documents) == (1, {"uint16": 8, "int32": 4}[dtype], num_sequences + 1)
        lengths = np.frombuffer(content, np.int32, num_sequences, 34)
        pointers = np.frombuffer(content, np.int64, num_sequences, 34 + 4 * num_sequences)
        documents = np.frombuffer(content, np.int64, num_documents, 34 + 12 * num_sequences)
        assert documents.tolist() == list(range(num_documents))
        assert len(content) == 34 + 12 * num_sequences + 8 * num_documents
        ids = path.with_suffix(".bin").read_bytes()
        rows += [np.frombuffer(ids, dtype, length, start).tolist() for length, start in zip(lengths, pointers, strict=True)]
    return rows


def read_datatrove(folder: Path, dtype: str) -> Ids:
    rows: Ids = []
    for path in list_files(folder, "*.ds"):
        ids = np.fromfile(path, dtype)
        ends = np.fromfile(f"{path}.index", np.uint64).astype(int)
        name, num_tokens, _ = Path(f"{path}.metadata").read_text().split("\n")
        assert name.endswith(f"|{ids.itemsize}")
        assert int(num_tokens) == len(ids) == ends[-1]
        rows += [part.tolist() for part in np.split(ids, ends[:-1])]
    return rows


def read_olmo(folder: Path, dtype: str) -> Ids:
    rows: Ids = []
    for path in list_files(folder, "*.npy"):
        ids = np.fromfile(path, dtype)
        with gzip.open(path.with_suffix(".csv.gz"), "rt") as file:
            places = [(int(start), int(end), name, source, int(number)) for start, end, name, source, number in csv.reader(file)]
        assert [place[0] for place in places] == [0, *(place[1] for place in places[:-1])]
        assert places[-1][1] == len(ids)
        rows += [ids[place[0] : place[1]].tolist() for place in places]
    return rows


def read_litdata(folder: Path, dtype: str) -> Ids:
    rows: Ids = []
    index = json.loads((folder / "index.json").read_text())
    assert index["config"]["data_format"] == [{"uint16": "no_header_numpy:5", "int32": "no_header_tensor:16"}[dtype]]
    for chunk in index["chunks"]:
        content = (folder / chunk["filename"]).read_bytes()
        assert len(content) == chunk["chunk_bytes"]
        (num_rows,) = struct.unpack("<I", content[:4])
        bounds = struct.unpack(f"<{num_rows + 1}I", content[4 : 8 + 4 * num_rows])
        found = [np.frombuffer(content[start:stop], dtype).tolist() for start, stop in pairwise(bounds)]
        assert (chunk["chunk_size"], chunk["dim"]) == (num_rows, sum(map(len, found)))
        rows += found
    return rows


READERS: dict[str, Callable[[Path, str], Ids]] = {
    "megatron": read_megatron,
    "ds": read_datatrove,
    "npy": read_olmo,
    "litdata": read_litdata,
}
DTYPES = {"megatron": ("uint16", "int32"), "litdata": ("uint16", "int32"), "ds": ("uint16", "uint32"), "npy": ("uint16", "uint32")}


def count_by_domain(rows: Ids, domains: list[str]) -> dict[str, Counter[int]]:
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for row, domain in zip(rows, domains, strict=True):
        counts[domain].update(row)
    return counts


@pytest.fixture(scope="module")
def texts(small: Selected, large: Selected, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The documents of both corpora as a text export restores them, which other tests hold against the sources."""
    folder = tmp_path_factory.mktemp("texts")
    documents = {}
    for name, selected in (("small", small), ("large", large)):
        selected.export("jsonl", folder / name, shard_tokens=400)
        files = sorted((folder / name).glob("*.jsonl"))
        documents[name] = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return documents


@pytest.mark.parametrize(
    ("corpus", "format"), [*(("small", format) for format in READERS), ("large", "megatron"), ("large", "npy")]
)
def test_ids_of_documents_are_those_of_the_kept_sequences(
    texts: dict[str, list[dict[str, Any]]], request: pytest.FixtureRequest, tmp_path: Path, corpus: str, format: str
) -> None:
    selected: Selected = request.getfixturevalue(corpus)
    manifest = selected.export(format, tmp_path / "out", shard_tokens=400)
    dtype = DTYPES[format][selected.corpus.tokenizer.vocab_size > 65_536]
    rows = READERS[format](tmp_path / "out", dtype)
    documents = texts[corpus]
    eos = selected.corpus.tokenizer.eos_token_id
    # Row for row the documents that the text export restores: as many ids, and the EOS after them.
    assert [len(row) for row in rows] == [row["token_end"] - row["token_start"] + 1 for row in documents]
    assert all(row[-1] == eos and eos not in row[:-1] for row in rows)
    kept = selected.kept()
    found = count_by_domain(rows, [row["domain"] for row in documents])
    expected = count_by_domain([row["token_ids"] for row in kept], [row["domain"] for row in kept])
    for counts in (*found.values(), *expected.values()):
        counts.pop(eos)
    assert found == expected
    # In the order in which a document has them: the ids of each are those of its sequences, one after the other.
    ids = {row["sequence_id"]: row["token_ids"] for row in kept}
    for row, document in zip(rows, documents, strict=True):
        joined = [token_id for sequence in document["sequence_ids"] for token_id in ids[sequence]]
        start = next(at for at in range(len(joined)) if joined[at : at + len(row) - 1] == row[:-1])
        assert joined[start : start + len(row) - 1] == row[:-1]
    assert manifest.token_dtype == dtype
    assert manifest.num_eos == len(rows) == manifest.num_rows
    assert manifest.num_files >= 3


def test_rows_of_mds_are_the_kept_sequences(selected: Selected, tmp_path: Path) -> None:
    manifest = selected.export("mds", tmp_path / "out", shard_tokens=500)
    found = []
    shards = json.loads((tmp_path / "out" / "index.json").read_text())["shards"]
    for shard in shards:
        content = (tmp_path / "out" / shard["raw_data"]["basename"]).read_bytes()
        assert (
            shard["column_names"]
            == ["difference_score", "domain", "reference_nll", "sequence_id", "teacher_nll", "tokens"][:1]
            + shard["column_names"][1:]
        )
        (num_rows,) = struct.unpack("<I", content[:4])
        bounds = struct.unpack(f"<{num_rows + 1}I", content[4 : 8 + 4 * num_rows])
        for start, stop in pairwise(bounds):
            domain_bytes, token_bytes = struct.unpack("<II", content[start : start + 8])
            place = start + 8
            (score,) = struct.unpack("<d", content[place : place + 8])
            domain = content[place + 8 : place + 8 + domain_bytes].decode()
            place += 8 + domain_bytes
            _, sequence_id, _ = struct.unpack("<dqd", content[place : place + 24])
            tokens = content[place + 24 : place + 24 + token_bytes]
            assert place + 24 + token_bytes == stop
            width = {4: 1, 5: 2}[tokens[0]]
            found.append((sequence_id, domain, score, np.frombuffer(tokens[1 + width :], np.int32).tolist()))
    expected = [(row["sequence_id"], row["domain"], row["token_ids"]) for row in selected.kept()]
    assert [(row[0], row[1], row[3]) for row in found] == expected
    assert len(shards) > 2
    assert manifest.num_eos == sum(row[2].count(selected.corpus.tokenizer.eos_token_id) for row in expected)


@pytest.mark.parametrize(("format", "mask"), [("ds", "part-*.ds.loss"), ("npy", "labels_mask-*.npy")])
def test_a_loss_mask_lies_beside_the_ids_a_byte_a_token(
    small: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, mask: str
) -> None:
    small.export(format, tmp_path / "plain", shard_tokens=500)
    small.export(format, tmp_path / "out", shard_tokens=500, loss_mask=True)
    plain, out = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("plain", "out"))
    masks = {name: content for name, content in out.items() if Path(name).match(mask)}
    assert out.keys() - masks.keys() == plain.keys()
    assert all(out[name] == content for name, content in plain.items() if name != "manifest.json")
    rows = {"ds": read_datatrove, "npy": read_olmo}[format](tmp_path / "plain", "uint16")
    assert b"".join(masks[name] for name in sorted(masks)) == b"".join(b"\0" + b"\1" * (len(row) - 1) for row in rows)
    monkeypatch.setattr(tokens, "mark_targets", lambda token_ids, eos_token_id: np.ones(len(token_ids), dtype=bool))
    with pytest.raises(RunFailedError, match=r"rows: \d+ read, \d+ written"):
        small.export(format, tmp_path / "wrong", shard_tokens=500, loss_mask=True)


def test_texts_are_the_same_in_every_format_of_text(small: Selected, tmp_path: Path) -> None:
    patterns = {"jsonl": "*.jsonl", "parquet": "*.parquet", "hf": "data/*.parquet", "nanochat": "*.parquet"}
    rows: dict[str, list[tuple[object, ...]]] = {}
    manifests: dict[str, ExportManifest] = {}
    for format, pattern in patterns.items():
        manifests[format] = small.export(format, tmp_path / format, shard_tokens=700)
        read = "read_json_auto" if format == "jsonl" else "read_parquet"
        columns = (
            "text"
            if format == "nanochat"
            else "text, domain, id, document_id, difference_score, is_whole, source, record, sequence_ids"
        )
        rows[format] = duckdb.sql(f"SELECT {columns} FROM {read}('{tmp_path / format / pattern}')").fetchall()
    assert rows["jsonl"] == rows["parquet"] == rows["hf"]
    assert [row[:1] for row in rows["jsonl"]] == rows["nanochat"]
    assert len({manifest.text_bytes for manifest in manifests.values()}) == 1
    zipped = small.export("jsonl", tmp_path / "zipped", shard_tokens=700, compression="zstd")
    assert duckdb.sql(f"SELECT text FROM read_json_auto('{tmp_path / 'zipped'}/*.jsonl.zst')").fetchall() == rows["nanochat"]
    assert zipped.export_id != manifests["jsonl"].export_id


def test_nanochat_gets_a_file_to_train_on_beside_its_last_for_validation(small: Selected, tmp_path: Path) -> None:
    manifest = small.export("nanochat", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert names == ["shard_00000.parquet", "shard_00001.parquet"]
    assert any("last file for validation" in note for note in manifest.notes)

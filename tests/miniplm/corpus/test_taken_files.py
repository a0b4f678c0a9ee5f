"""A corpus tells of its files: what was left out, what gave nothing, what was read twice; names of any bytes; the same id as before."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.config.run import CorpusConfig, SourceConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import load_corpus
from miniplm.corpus.taken_files import list_files_read_again, list_files_without_documents
from miniplm.errors import SourceError
from miniplm.sources.files import find_source
from miniplm.storage.root import Storage
from tests.miniplm import corpus_fixtures
from tests.miniplm.corpus_fixtures import make_documents, write_jsonl


def make_config(tokenizer: str, *sources: dict[str, str], **settings: bool) -> CorpusConfig:
    return corpus_fixtures.make_config(tokenizer, *sources, sequences_per_shard=1000, **settings)


def by_domain(path: object) -> dict[str, str]:
    return {"path": str(path), "domain": "domain"}


def list_quarantine(storage: Storage, corpus_id: str) -> list[dict[str, object]]:
    folder = layout.quarantine_folder(corpus_id)
    return [json.loads(line) for name in storage.list_names(folder) for line in storage.read_bytes(f"{folder}/{name}").splitlines()]


def test_the_manifest_tells_what_was_left_out_and_the_id_does_not_depend_on_it(storage: Storage, tmp_path: Path, tokenizer: str):
    write_jsonl(tmp_path / "in/a.jsonl", make_documents(20))
    config = make_config(tokenizer, by_domain(tmp_path / "in/**/*.jsonl"))
    before = prepare_corpus(storage, config)
    assert before.left_out == ()
    for index in range(12):
        write_jsonl(tmp_path / f"in/.old/{index:02}.jsonl", make_documents(5, seed=index))
    (tmp_path / "in/loop").symlink_to(".")
    after = prepare_corpus(storage, config)
    assert (after.corpus_id, after.shards, after.sources) == (before.corpus_id, before.shards, before.sources)
    assert load_corpus(storage, after.corpus_id) == after
    hidden, loop = sorted(after.left_out, key=lambda entry: -entry.num_files)
    assert (hidden.reason, hidden.num_files, len(hidden.names)) == ("hidden", 12, 10)
    assert (loop.reason, loop.names) == ("a link to a folder above it", (f"{tmp_path}/in/loop",))
    other = prepare_corpus(Storage(str(tmp_path / "other")), config)
    assert (other.corpus_id, other.left_out) == (after.corpus_id, after.left_out)


def test_the_compression_is_in_the_id_by_the_bytes_and_not_by_the_name(tmp_path: Path, tokenizer: str):
    content = "".join(json.dumps(record) + "\n" for record in make_documents(20)).encode()
    ids, documents = [], []
    for number, (name, stored) in enumerate(
        (("a.jsonl.gz", gzip.compress(content, mtime=0)), ("a.jsonl", gzip.compress(content, mtime=0)))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(stored)
        manifest = prepare_corpus(Storage(str(tmp_path / f"root{number}")), make_config(tokenizer, by_domain(folder / "*")))
        ids.append(manifest.corpus_id)
        documents.append(manifest.num_records)
        assert manifest.rejected == {}
    assert documents == [20, 20]
    assert ids[0] == ids[1]


def test_file_names_of_any_bytes_are_written_down(storage: Storage, tmp_path: Path, tokenizer: str):
    (tmp_path / "in").mkdir()
    names = {b"caf\xe9.jsonl": r"caf\xe9.jsonl", b"caf\\xe9.jsonl": r"caf\\xe9.jsonl", b"new\nline.jsonl": r"new\x0aline.jsonl"}
    good = "".join(json.dumps(record) + "\n" for record in make_documents(5)).encode()
    for index, name in enumerate(names):
        with open(os.fsencode(tmp_path / "in") + b"/" + name, "wb") as file:
            file.write(good + b'{"text": null}\n' * (index + 1))
    config = make_config(tokenizer, by_domain(tmp_path / "in/*.jsonl"), extend=True)
    manifest = prepare_corpus(storage, config)
    assert manifest.rejected_by_file == {f"{tmp_path}/in/{shown}": index + 1 for index, shown in enumerate(names.values())}
    assert sorted(source.path for source in manifest.sources) == sorted(f"{tmp_path}/in/{shown}" for shown in names.values())
    assert {str(row["source"]) for row in list_quarantine(storage, manifest.corpus_id)} == {
        source.path for source in manifest.sources
    }
    with open(os.fsencode(tmp_path / "in") + b"/\xb0\xa1.jsonl", "wb") as file:
        file.write(b'{"text": "one more", "domain": "d"}\n{"text": 1}\n')
    extension = prepare_corpus(storage, config)
    assert extension.parent == manifest.corpus_id
    assert extension.sources[-1].path == rf"{tmp_path}/in/\xb0\xa1.jsonl"
    with open(os.fsencode(tmp_path / "in") + b"/\xb0\xa1.jsonl", "ab") as file:
        file.write(b"{}\n")
    with pytest.raises(SourceError, match=r"changed since corpus .*\\xb0\\xa1\.jsonl"):
        prepare_corpus(storage, config)


def test_files_that_are_empty_or_all_of_whose_records_are_rejected_are_named(storage: Storage, tmp_path: Path, tokenizer: str):
    write_jsonl(tmp_path / "in/a.jsonl", [*make_documents(20), {"text": None}])
    (tmp_path / "in/b.jsonl").write_text("no,JSON\n" * 5)
    (tmp_path / "in/c.jsonl").write_text("")
    (tmp_path / "in/d.jsonl").write_text("")
    (tmp_path / "in/link.jsonl").symlink_to("b.jsonl")
    config = make_config(tokenizer, by_domain(tmp_path / "in/*.jsonl"), by_domain(tmp_path / "in/a*"))
    manifest = prepare_corpus(storage, config)
    assert list_files_without_documents(manifest) == {
        f"{tmp_path}/in/{name}.jsonl": count for name, count in (("b", 5), ("c", 0), ("d", 0), ("link", 5))
    }
    assert manifest.rejected_by_file == {f"{tmp_path}/in/a.jsonl": 2, f"{tmp_path}/in/b.jsonl": 5, f"{tmp_path}/in/link.jsonl": 5}
    assert list_files_read_again(manifest) == {f"{tmp_path}/in/a.jsonl": 2, f"{tmp_path}/in/b.jsonl": 2}


def test_a_column_of_a_parquet_source_is_its_own_below_a_folder_that_looks_like_one(
    storage: Storage, tmp_path: Path, tokenizer: str
):
    folder = tmp_path / "domain=other" / "text=no"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": ["the text"] * 20, "domain": ["own"] * 20}), folder / "a.parquet")
    manifest = prepare_corpus(storage, make_config(tokenizer, {**by_domain(tmp_path / "*/*/*.parquet"), "format": "parquet"}))
    assert set(manifest.domains["candidate"]) == {"own"}
    with pytest.raises(SourceError, match="has no column 'date'"):
        prepare_corpus(
            storage, make_config(tokenizer, {"path": str(tmp_path / "*/*/*.parquet"), "format": "parquet", "domain": "date"})
        )


def test_a_root_among_its_own_sources_gives_the_same_corpus_again(tmp_path: Path, tokenizer: str):
    root = Storage(str(tmp_path / "data"))
    write_jsonl(tmp_path / "data/texts/a.jsonl", [*make_documents(20), {"text": None, "domain": "web"}])
    config = make_config(tokenizer, by_domain(tmp_path / "data/**/*.jsonl"))
    first = prepare_corpus(root, config)
    again = prepare_corpus(root, config)
    assert first.rejected == {"null_text": 1}
    assert again.corpus_id == first.corpus_id
    (entry,) = [entry for entry in again.left_out if entry.reason == "written by MiniPLM"]
    assert all("/quarantine/" in name for name in entry.names)
    spelled = SourceConfig(path=str(tmp_path / f"data/corpora/{first.corpus_id}/quarantine/*.jsonl"), domain_name="rejected")
    assert len(find_source(spelled, root).files) == 1

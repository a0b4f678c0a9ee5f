"""Bad sources: a clear error that leaves nothing behind, or a rejection that is counted and written down."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniplm import layout
from miniplm.corpus.preparation import prepare_corpus
from miniplm.errors import BusyError, CorpusError, SourceError, StorageError, TokenizerError
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage
from tests.miniplm.corpus_fixtures import EOS, make_config, make_documents, read_sequences, save_tokenizer, write_jsonl


def list_artifacts(storage: Storage) -> list[str]:
    return [name for name in storage.list_names("corpora") if name.startswith("c-")]


def by_domain(path: object) -> dict[str, Any]:
    return {"path": str(path), "domain": "domain"}


def test_every_rejection_is_counted_and_written_down(storage: Storage, tmp_path: Path, tokenizer: str):
    lines = [
        b'{"text": "good one", "domain": "a"}',
        b'{"text": "cut',
        b"[1]",
        b'{"domain": "a"}',
        b'{"text": null, "domain": "a"}',
        b'{"text": 3, "domain": "a"}',
        b'{"text": "\xff", "domain": "a"}',
        b'{"text": "  ", "domain": "a"}',
        b'{"text": "x"}',
        b'{"text": "x", "domain": 7}',
        b"",
        b'{"text": "good two", "domain": "a"}',
        b'{"text": "\\ud800", "domain": "a"}',
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    manifest = prepare_corpus(storage, make_config(tokenizer, by_domain(path)))
    assert manifest.rejected == {
        "domain_not_a_string": 1,
        "empty_document": 1,
        "invalid_utf8": 2,
        "malformed_json": 1,
        "missing_domain": 1,
        "missing_text": 1,
        "not_an_object": 1,
        "null_text": 1,
        "text_not_a_string": 1,
    }
    assert manifest.num_records == 12
    rows = [json.loads(line) for line in storage.read_bytes(layout.quarantine_file(manifest.corpus_id, 0)).splitlines()]
    assert [row["line"] for row in rows] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 13]
    assert [row["document_id"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert {row["source"] for row in rows} == {str(path)}
    assert rows[0]["excerpt"] == '{"text": "cut'
    sequences = read_sequences(storage, manifest.corpus_id, manifest.shards)
    assert sorted({document_id for row in sequences for document_id in row["document_ids"]}) == [0, 10]


def test_a_text_that_makes_no_token_is_rejected(storage: Storage, tmp_path: Path):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({EOS: 0, "[UNK]": 1, "a": 2}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Replace("#", "")
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(str(tmp_path / "tokenizer"))
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": text, "domain": "d"} for text in ("a", "###", "a a")])
    manifest = prepare_corpus(storage, make_config(str(tmp_path / "tokenizer"), by_domain(path)))
    assert manifest.rejected == {"no_tokens": 1}
    assert manifest.domains["candidate"]["d"].num_documents == 2
    (row,) = [json.loads(line) for line in storage.read_bytes(layout.quarantine_file(manifest.corpus_id, 0)).splitlines()]
    assert (row["document_id"], row["reason"], row["excerpt"]) == (1, "no_tokens", "###")


def test_many_rejections_are_written_in_several_files(
    storage: Storage, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("miniplm.corpus.quarantine._FILE_REJECTIONS", 10)
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "good", "domain": "d"}, *[{"text": index} for index in range(35)]])
    manifest = prepare_corpus(storage, make_config(tokenizer, by_domain(path)))
    assert manifest.rejected == {"text_not_a_string": 35}
    names = storage.list_names(layout.quarantine_folder(manifest.corpus_id))
    rows = [
        json.loads(line)
        for name in names
        for line in storage.read_bytes(f"{layout.quarantine_folder(manifest.corpus_id)}/{name}").splitlines()
    ]
    assert len(names) == 4
    assert [row["line"] for row in rows] == list(range(2, 37))


def test_a_truncated_file_after_good_shards_leaves_nothing(
    storage: Storage, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("miniplm.corpus.file_encoding._BATCH_RECORDS", 5)
    monkeypatch.setattr("miniplm.sources.blocks._BLOCK_BYTES", 300)
    write_jsonl(tmp_path / "in/a.jsonl", make_documents(40))
    stored = gzip.compress("".join(json.dumps(record) + "\n" for record in make_documents(300, seed=1)).encode())
    (tmp_path / "in/b.jsonl.gz").write_bytes(stored[: len(stored) * 3 // 4])
    published: list[str] = []
    publish = storage.publish

    def watch(relative: str) -> Any:
        published.append(relative)
        return publish(relative)

    monkeypatch.setattr(storage, "publish", watch)
    with pytest.raises(SourceError, match=r"b\.jsonl\.gz is truncated.*copy it again"):
        prepare_corpus(storage, make_config(tokenizer, by_domain(f"{tmp_path}/in/*")))
    assert sum("shard-" in relative for relative in published) > 10
    assert list_artifacts(storage) == []


def test_a_parquet_file_without_the_column_leaves_nothing(storage: Storage, tmp_path: Path, tokenizer: str):
    pq.write_table(pa.table({"text": ["good"] * 50, "domain": ["d"] * 50}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["good"], "domain": ["d"]}), tmp_path / "b.parquet")
    config = make_config(tokenizer, {**by_domain(f"{tmp_path}/*.parquet"), "format": "parquet"})
    with pytest.raises(SourceError, match=r"b\.parquet has no column 'text'; it has body \(string\), domain \(string\)"):
        prepare_corpus(storage, config)
    assert list_artifacts(storage) == []


def test_a_glob_that_matches_nothing_is_found_before_anything_is_written(storage: Storage, tmp_path: Path, tokenizer: str):
    with pytest.raises(SourceError, match="matches no file"):
        prepare_corpus(storage, make_config(tokenizer, by_domain(f"{tmp_path}/*.jsonl")))
    assert not Path(storage.root_path).exists()


def test_no_usable_document_is_an_error_with_the_reasons(storage: Storage, tmp_path: Path, tokenizer: str):
    path = write_jsonl(tmp_path / "in.jsonl", [{"body": "a"}, {"body": "b"}, {"text": None}])
    with pytest.raises(
        SourceError, match=r"no usable document.*3 records, all rejected \(missing_text: 2, null_text: 1\).*in\.jsonl, line 1"
    ):
        prepare_corpus(storage, make_config(tokenizer, by_domain(path)))
    assert list_artifacts(storage) == []
    path.write_text("")
    with pytest.raises(SourceError, match=r"no usable document.*no record"):
        prepare_corpus(storage, make_config(tokenizer, by_domain(path)))


def test_no_candidate_is_an_error(storage: Storage, tmp_path: Path, tokenizer: str):
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "a text", "domain": "d"}])
    config = make_config(tokenizer, by_domain(path), splits={"reference": 0.4999, "heldout": 0.5})
    with pytest.raises(CorpusError, match=r"no candidate sequences: of 1 documents .* lower corpus\.splits"):
        prepare_corpus(storage, config)
    assert list_artifacts(storage) == []


def test_a_domain_smaller_than_a_sequence_is_one_short_sequence(storage: Storage, tmp_path: Path, tokenizer: str):
    path = write_jsonl(tmp_path / "in.jsonl", [*make_documents(20), {"text": "x", "domain": "tiny"}])
    manifest = prepare_corpus(storage, make_config(tokenizer, by_domain(path), sequence_length=1024))
    counts = manifest.domains["candidate"]["tiny"]
    assert (counts.num_sequences, counts.num_tokens, counts.num_documents) == (1, 2, 1)


def test_a_tokenizer_without_eos_is_found_before_anything_is_written(storage: Storage, tmp_path: Path):
    path = write_jsonl(tmp_path / "in.jsonl", make_documents(3))
    folder = save_tokenizer(tmp_path / "tokenizer", "bytes", eos_token=None)
    with pytest.raises(TokenizerError, match="has no EOS token"):
        prepare_corpus(storage, make_config(folder, by_domain(path)))
    assert not Path(storage.root_path).exists()


def test_a_root_that_cannot_be_made_is_an_error(tmp_path: Path, tokenizer: str):
    path = write_jsonl(tmp_path / "in.jsonl", make_documents(3))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .* Give the config a `storage` that this user may write to"):
        prepare_corpus(Storage(str(tmp_path / "file/root")), make_config(tokenizer, by_domain(path)))


def test_a_corpus_that_is_being_prepared_is_left_alone(storage: Storage, tmp_path: Path, tokenizer: str):
    config = make_config(tokenizer, by_domain(write_jsonl(tmp_path / "in.jsonl", make_documents(30))))
    manifest = prepare_corpus(storage, config)
    with exclusive(storage, layout.corpus_folder(manifest.corpus_id), "corpus"):
        assert prepare_corpus(storage, config) == manifest
        storage.delete(layout.corpus_manifest(manifest.corpus_id))
        with pytest.raises(BusyError, match=rf"is working on corpus {manifest.corpus_id}; wait for it or stop it"):
            prepare_corpus(storage, config)
    assert prepare_corpus(storage, config) == manifest

"""Reading a corpus back, and what is said of one that is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from miniplm import layout
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import find_corpus, load_corpus, load_corpus_tokenizer, read_shard, read_token_ids
from miniplm.errors import CorpusError, StorageError
from miniplm.records.manifests import CorpusManifest
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer
from tests.miniplm.corpus_fixtures import make_config, make_documents, save_tokenizer, write_jsonl


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root") if request.param == "local" else f"memory://reader-{tmp_path.name}")


@pytest.fixture
def manifest(storage: Storage, tmp_path: Path) -> CorpusManifest:
    path = write_jsonl(tmp_path / "in.jsonl", make_documents(60))
    tokenizer = save_tokenizer(tmp_path / "tokenizer", "bytes")
    return prepare_corpus(storage, make_config(tokenizer, {"path": str(path), "domain": "domain"}, sequences_per_shard=40))


def shard_path(manifest: CorpusManifest, index: int) -> str:
    return layout.corpus_shard(manifest.corpus_id, "candidate", index)


def test_columns_can_be_chosen_and_ids_are_views(storage: Storage, manifest: CorpusManifest):
    shard = manifest.shards[0]
    whole = read_shard(storage, shard)
    table = read_shard(storage, shard, columns=["token_ids", "sequence_id"])
    assert set(table.column_names) == {"token_ids", "sequence_id"}
    token_ids = read_token_ids(table)
    assert [ids.tolist() for ids in token_ids] == whole["token_ids"].to_pylist()
    assert {ids.dtype for ids in token_ids} == {np.dtype(np.uint16)}
    assert not any(ids.flags.owndata for ids in token_ids)
    assert [len(ids) for ids in token_ids] == whole["num_tokens"].to_pylist()
    assert read_shard(storage, shard, verify=False).equals(whole)
    # A part of a table, and one of several chunks.
    assert [ids.tolist() for ids in read_token_ids(whole.slice(7, 5))] == whole["token_ids"].to_pylist()[7:12]


def test_a_flipped_byte_is_found_and_the_shard_named(storage: Storage, manifest: CorpusManifest):
    path = shard_path(manifest, 1)
    content = bytearray(storage.read_bytes(path))
    content[len(content) // 2] ^= 1
    storage.write_bytes(path, bytes(content))
    with pytest.raises(CorpusError, match=r"shard-00001 of the candidate split of corpus c-.* is damaged.*miniplm prepare"):
        read_shard(storage, manifest.split_shards("candidate")[1])
    read_shard(storage, manifest.split_shards("candidate")[0])


def test_a_truncated_or_missing_shard_is_an_error(storage: Storage, manifest: CorpusManifest):
    shard = manifest.split_shards("candidate")[0]
    content = storage.read_bytes(shard_path(manifest, 0))
    storage.write_bytes(shard_path(manifest, 0), content[:-10])
    for verify in (True, False):
        with pytest.raises(CorpusError, match=r"shard-00000 of the candidate split .* is damaged"):
            read_shard(storage, shard, verify=verify)
    storage.delete(shard_path(manifest, 0))
    for verify in (True, False):
        with pytest.raises(CorpusError, match=r"shard-00000 of the candidate split .* is missing"):
            read_shard(storage, shard, verify=verify)


def test_a_corpus_that_is_not_there_says_how_to_make_it(storage: Storage):
    assert find_corpus(storage, "c-0") is None
    with pytest.raises(CorpusError, match=r"corpus c-0 is not prepared at .*; run `miniplm prepare CONFIG`"):
        load_corpus(storage, "c-0")
    with pytest.raises(CorpusError, match="is not prepared"):
        load_corpus_tokenizer(storage, "c-0")


def test_a_damaged_manifest_is_an_error(storage: Storage, manifest: CorpusManifest):
    path = layout.corpus_manifest(manifest.corpus_id)
    storage.write_json(path, {"corpus_id": "x"})
    with pytest.raises(CorpusError, match="is no corpus manifest"):
        load_corpus(storage, manifest.corpus_id)
    storage.write_bytes(path, b"{")
    with pytest.raises(StorageError, match="is not valid JSON"):
        load_corpus(storage, manifest.corpus_id)


def test_the_tokenizer_comes_back_without_the_folder_it_came_from(storage: Storage, manifest: CorpusManifest, tmp_path: Path):
    original = load_tokenizer(str(tmp_path / "tokenizer"))
    (tmp_path / "tokenizer").rename(tmp_path / "gone")
    tokenizer = load_corpus_tokenizer(storage, manifest.corpus_id)
    assert tokenizer.entry == manifest.tokenizer
    texts = ["Some text.", "日本 and more\n"]
    for found, expected in zip(tokenizer.encode_documents(texts), original.encode_documents(texts), strict=True):
        assert np.array_equal(found, expected)


def test_another_tokenizer_in_its_place_is_found(storage: Storage, manifest: CorpusManifest, tmp_path: Path):
    other = Path(save_tokenizer(tmp_path / "other", "metaspace"))
    for file in other.iterdir():
        storage.write_bytes(f"{layout.corpus_tokenizer(manifest.corpus_id)}/{file.name}", file.read_bytes())
    with pytest.raises(CorpusError, match=r"the tokenizer of corpus c-.* is damaged"):
        load_corpus_tokenizer(storage, manifest.corpus_id)


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_a_damaged_tokenizer_is_told_and_prepare_writes_it_again_and_nothing_else(tmp_path: Path, damage: str):
    storage = Storage(str(tmp_path / "root"))
    path = write_jsonl(tmp_path / "in.jsonl", make_documents(60))
    config = make_config(save_tokenizer(tmp_path / "tokenizer", "bytes"), {"path": str(path), "domain": "domain"})
    manifest = prepare_corpus(storage, config)
    file = Path(storage.path(f"{layout.corpus_tokenizer(manifest.corpus_id)}/tokenizer.json"))
    content = file.read_bytes()
    file.unlink() if damage == "gone" else file.write_bytes(content[:100])
    with pytest.raises(CorpusError, match=r"tokenizer of corpus .* is damaged.*miniplm prepare CONFIG"):
        load_corpus_tokenizer(storage, manifest.corpus_id)
    shard = Path(storage.path(shard_path(manifest, 0)))
    before = shard.stat().st_mtime_ns
    assert prepare_corpus(storage, config) == manifest
    assert load_corpus_tokenizer(storage, manifest.corpus_id).entry == manifest.tokenizer
    assert shard.stat().st_mtime_ns == before

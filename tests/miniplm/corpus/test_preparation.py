"""Preparation: what goes in comes out, packed, split, counted; the same input gives the same bytes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniplm import layout
from miniplm.config.run import CorpusConfig, SplitsConfig
from miniplm.corpus.identity import resolve_corpus_id
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import load_corpus, read_shard
from miniplm.corpus.splits import assign_split
from miniplm.errors import CorpusError, SourceError
from miniplm.progress import Progress
from miniplm.records.manifests import CorpusManifest
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer
from tests.miniplm.corpus_fixtures import (
    EOS,
    make_config,
    make_documents,
    read_sequences,
    read_tree,
    save_tokenizer,
    word_id,
    write_jsonl,
)

SPLITS = ("candidate", "reference", "heldout")


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("word"), "word")


def by_domain(path: object) -> dict[str, Any]:
    return {"path": str(path), "domain": "domain"}


def test_a_corpus_with_literal_ids(storage: Storage, tmp_path: Path, word_tokenizer: str):
    path = write_jsonl(
        tmp_path / "in.jsonl",
        [
            {"text": "one two. three four", "domain": "b"},
            {"text": "", "domain": "b"},
            {"text": "one\n", "domain": "a"},
            {"text": "one two three", "domain": "b"},
        ],
    )
    config = make_config(word_tokenizer, by_domain(path), sequence_length=4, sequences_per_shard=2)
    manifest = prepare_corpus(storage, config)
    one, two, three, four, dot, newline = (word_id(word) for word in ("one", " two", " three", " four", ".", "\n"))
    rows = read_sequences(storage, manifest.corpus_id, manifest.shards)
    assert rows == [
        {"sequence_id": 0, "domain": "b", "document_ids": [0], "num_tokens": 3, "token_ids": [one, two, dot]},
        {"sequence_id": 1, "domain": "b", "document_ids": [0], "num_tokens": 3, "token_ids": [three, four, 0]},
        # At the end: what is left of each domain, by name.
        {"sequence_id": 2, "domain": "a", "document_ids": [2], "num_tokens": 3, "token_ids": [one, newline, 0]},
        {"sequence_id": 3, "domain": "b", "document_ids": [3], "num_tokens": 4, "token_ids": [one, two, three, 0]},
    ]
    assert [(shard.split, shard.shard_index, shard.num_sequences, shard.first_sequence_id) for shard in manifest.shards] == [
        ("candidate", 0, 2, 0),
        ("candidate", 1, 2, 2),
    ]
    assert manifest.num_records == 4
    assert manifest.rejected == {"empty_document": 1}
    counts = manifest.domains["candidate"]["b"]
    assert (counts.num_documents, counts.num_bytes, counts.num_tokens, counts.num_sequences) == (2, 32, 10, 3)
    assert manifest.tokenizer.eos_token == EOS
    assert load_corpus(storage, manifest.corpus_id) == manifest


def test_the_columns_of_a_shard_are_the_contract(storage: Storage, tmp_path: Path, tokenizer: str):
    manifest = prepare_corpus(storage, make_config(tokenizer, by_domain(write_jsonl(tmp_path / "in.jsonl", make_documents(5)))))
    schema = read_shard(storage, manifest.shards[0]).schema
    assert schema.names == ["sequence_id", "domain", "document_ids", "num_tokens", "token_ids"]
    assert schema.types[0] == pa.int64()
    assert schema.types[1] == pa.dictionary(pa.int32(), pa.string())
    assert schema.types[2].value_type == pa.int64()
    assert schema.types[3] == pa.int32()
    assert schema.types[4].value_type == pa.uint16()


def test_a_vocabulary_beyond_uint16_has_wider_ids(storage: Storage, tmp_path: Path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {EOS: 0, "[UNK]": 1, **{f"w{i}": 2 + i for i in range(70_000)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(str(folder))
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "w0 w69999", "domain": "a"}])
    manifest = prepare_corpus(storage, make_config(str(folder), by_domain(path)))
    table = read_shard(storage, manifest.shards[0])
    assert table.schema.field("token_ids").type.value_type == pa.uint32()
    assert table["token_ids"].to_pylist() == [[2, 70_001, 0]]


def check_corpus(storage: Storage, manifest: CorpusManifest, config: CorpusConfig, records: list[dict[str, Any]]) -> None:
    """Every usable record is in its split and domain, whole and in order; every count is that of the data."""
    tokenizer = load_tokenizer(config.tokenizer)
    usable = {index: record for index, record in enumerate(records) if record["text"].strip()}
    ids = dict(zip(usable, tokenizer.encode_documents([record["text"] for record in usable.values()]), strict=True))
    expected: dict[tuple[str, str], list[int]] = {}
    owners: dict[tuple[str, str], list[int]] = {}
    documents: Counter[tuple[str, str]] = Counter()
    num_bytes: Counter[tuple[str, str]] = Counter()
    for index, record in usable.items():
        split = assign_split(record["text"].encode(), config.seed, config.splits)
        key = (split, record["domain"])
        expected.setdefault(key, []).extend([*ids[index].tolist(), tokenizer.eos_token_id])
        owners.setdefault(key, []).extend([index] * (len(ids[index]) + 1))
        documents[key] += 1
        num_bytes[key] += len(record["text"].encode())
    found: dict[tuple[str, str], list[int]] = {}
    sequences: Counter[tuple[str, str]] = Counter()
    next_id = 0
    # Dense over the whole corpus, in blocks by shard.
    for shard in sorted(manifest.shards, key=lambda shard: shard.first_sequence_id):
        rows = read_sequences(storage, manifest.corpus_id, [shard])
        assert [row["sequence_id"] for row in rows] == list(range(next_id, next_id + len(rows)))
        assert shard.first_sequence_id == next_id
        assert (shard.num_sequences, shard.num_tokens) == (len(rows), sum(row["num_tokens"] for row in rows))
        assert len(rows) <= config.sequences_per_shard
        next_id += len(rows)
        for row in rows:
            key = (shard.split, row["domain"])
            start = len(found.setdefault(key, []))
            found[key] += row["token_ids"]
            assert row["num_tokens"] == len(row["token_ids"]) <= config.sequence_length + 1
            assert row["document_ids"] == sorted(set(owners[key][start : len(found[key])]))
            sequences[key] += 1
    assert found == expected
    assert manifest.num_records == len(records)
    assert sum(manifest.rejected.values()) == len(records) - len(usable)
    for split in SPLITS:
        indices = [shard.shard_index for shard in manifest.split_shards(split)]
        assert indices == list(range(len(indices)))
        assert all(shard.num_sequences == config.sequences_per_shard for shard in manifest.split_shards(split)[:-1])
        assert set(manifest.domains[split]) == {domain for key_split, domain in expected if key_split == split}
        for domain, counts in manifest.domains[split].items():
            key = (split, domain)
            assert counts.num_documents == documents[key]
            assert counts.num_bytes == num_bytes[key]
            assert counts.num_tokens == len(expected[key])
            assert counts.num_sequences == sequences[key]


def test_nothing_is_lost_over_many_shards_domains_and_splits(storage: Storage, tmp_path: Path, tokenizer: str):
    records = make_documents(300)
    for index in range(0, 300, 17):
        records[index]["text"] = " "
    path = write_jsonl(tmp_path / "in.jsonl", records)
    config = make_config(tokenizer, by_domain(path), sequence_length=32, splits={"reference": 0.2, "heldout": 0.1}, seed=3)
    manifest = prepare_corpus(storage, config)
    check_corpus(storage, manifest, config, records)
    assert len(manifest.shards) > 20


@settings(max_examples=25, deadline=None)
@given(
    records=st.lists(
        st.fixed_dictionaries(
            {"text": st.text(st.sampled_from("ab .!;\n(é日"), max_size=60), "domain": st.sampled_from(["x", "y"])}
        ),
        max_size=25,
    ),
    sequence_length=st.integers(2, 20),
    sequences_per_shard=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_counts_add_up_whatever_goes_in(
    tokenizer: str,
    tmp_path_factory: pytest.TempPathFactory,
    records: list[dict[str, str]],
    sequence_length: int,
    sequences_per_shard: int,
    seed: int,
):
    folder = tmp_path_factory.mktemp("any")
    storage = Storage(str(folder / "root"))
    path = write_jsonl(folder / "in.jsonl", records)
    config = make_config(
        tokenizer,
        by_domain(path),
        sequence_length=sequence_length,
        sequences_per_shard=sequences_per_shard,
        splits={"reference": 0.3, "heldout": 0.2},
        seed=seed,
    )
    usable = [record for record in records if record["text"].strip()]
    splits = SplitsConfig(reference=0.3, heldout=0.2)
    if not usable:
        with pytest.raises(SourceError, match="no usable document"):
            prepare_corpus(storage, config)
    elif all(assign_split(record["text"].encode(), seed, splits) != "candidate" for record in usable):
        with pytest.raises(CorpusError, match="no candidate sequences"):
            prepare_corpus(storage, config)
    else:
        check_corpus(storage, prepare_corpus(storage, config), config, records)
    shutil.rmtree(folder)


def test_document_ids_lead_back_to_file_and_line_over_all_sources(storage: Storage, tmp_path: Path, tokenizer: str):
    write_jsonl(tmp_path / "one/b.jsonl", [{"text": "b0", "domain": "x"}, {"text": None, "domain": "x"}])
    write_jsonl(tmp_path / "one/a.jsonl", [{"text": "a0", "domain": "x"}])
    (tmp_path / "one/empty.jsonl").write_text("")
    pq.write_table(pa.table({"body": ["p0", "p1"]}), tmp_path / "two.parquet")
    (tmp_path / "three").mkdir()
    (tmp_path / "three/t.txt").write_text("t0")
    config = make_config(
        tokenizer,
        by_domain(f"{tmp_path}/one/*.jsonl"),
        {"path": f"{tmp_path}/two.parquet", "format": "parquet", "text": "body", "domain_name": "p"},
        {"path": f"{tmp_path}/three", "format": "text", "domain_name": "t"},
    )
    manifest = prepare_corpus(storage, config)
    assert [(Path(source.path).name, source.first_document_id, source.num_records) for source in manifest.sources] == [
        ("a.jsonl", 0, 1),
        ("b.jsonl", 1, 2),
        ("empty.jsonl", 3, 0),
        ("two.parquet", 3, 2),
        ("t.txt", 5, 1),
    ]
    (row,) = [json.loads(line) for line in storage.read_bytes(layout.quarantine_file(manifest.corpus_id, 0)).splitlines()]
    assert (row["source"], row["line"], row["document_id"], row["reason"]) == (f"{tmp_path}/one/b.jsonl", 2, 2, "null_text")
    found = {row["domain"]: row["document_ids"] for row in read_sequences(storage, manifest.corpus_id, manifest.shards)}
    assert found == {"x": [0, 1], "p": [3, 4], "t": [5]}


def test_equal_texts_are_in_one_split_and_the_seed_moves_them(storage: Storage, tmp_path: Path, tokenizer: str):
    texts = [f"text {i % 40}" for i in range(120)]
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": text, "domain": "d"} for text in texts])

    def find_splits(seed: int) -> dict[str, set[str]]:
        config = make_config(tokenizer, by_domain(path), splits={"reference": 0.3, "heldout": 0.2}, seed=seed)
        manifest = prepare_corpus(storage, config)
        found: dict[str, set[str]] = {}
        for split in SPLITS:
            for row in read_sequences(storage, manifest.corpus_id, manifest.split_shards(split)):
                for document_id in row["document_ids"]:
                    found.setdefault(texts[document_id], set()).add(split)
        return found

    first = find_splits(0)
    assert all(len(splits) == 1 for splits in first.values())
    assert len(first) == 40
    assert find_splits(1) != first


def test_the_same_input_gives_the_same_bytes_anywhere(tmp_path: Path, tokenizer: str):
    records = make_documents(150)
    trees = []
    for name in ("first", "second"):
        path = write_jsonl(tmp_path / "in.jsonl", records)
        storage = Storage(str(tmp_path / name))
        config = make_config(tokenizer, by_domain(path), sequence_length=64, splits={"reference": 0.2, "heldout": 0.1})
        trees.append(read_tree(storage, layout.corpus_folder(prepare_corpus(storage, config).corpus_id)))
    assert trees[0] == trees[1]
    assert sum(name.endswith(".parquet") for name in trees[0]) > 5


def test_batch_sizes_change_nothing(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch):
    path = write_jsonl(tmp_path / "in.jsonl", [*make_documents(80), {"text": 1}, *make_documents(80, seed=1)])
    config = make_config(tokenizer, by_domain(path), sequence_length=64, splits={"reference": 0.2, "heldout": 0.1})
    trees = []
    for num_records, num_bytes in ((1000, 1 << 22), (1, 1 << 22), (7, 300)):
        monkeypatch.setattr("miniplm.corpus.file_encoding._BATCH_RECORDS", num_records)
        monkeypatch.setattr("miniplm.corpus.file_encoding._BATCH_BYTES", num_bytes)
        storage = Storage(str(tmp_path / f"root-{num_records}"))
        trees.append(read_tree(storage, layout.corpus_folder(prepare_corpus(storage, config).corpus_id)))
    assert trees[0] == trees[1] == trees[2]


def test_a_prepared_corpus_is_not_prepared_again(storage: Storage, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch):
    config = make_config(tokenizer, by_domain(write_jsonl(tmp_path / "in.jsonl", make_documents(40))))
    manifest = prepare_corpus(storage, config)
    assert not storage.exists(layout.corpus_preparation(manifest.corpus_id))
    monkeypatch.setattr("miniplm.corpus.preparation._Preparation", lambda *parts: pytest.fail("prepared again"))
    assert prepare_corpus(storage, config) == manifest


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_missing_or_cut_shard_is_made_again_with_the_same_bytes(storage: Storage, tmp_path: Path, tokenizer: str, damage: str):
    config = make_config(tokenizer, by_domain(write_jsonl(tmp_path / "in.jsonl", make_documents(40))))
    manifest = prepare_corpus(storage, config)
    before = read_tree(storage, layout.corpus_folder(manifest.corpus_id))
    shard = Path(storage.path(layout.corpus_shard(manifest.corpus_id, "candidate", 1)))
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
    assert prepare_corpus(storage, config) == manifest
    assert read_tree(storage, layout.corpus_folder(manifest.corpus_id)) == before


def test_a_memory_root_and_memory_sources_are_enough(tokenizer: str, tmp_path: Path):
    records = make_documents(60)
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    fsspec.filesystem("memory").pipe_file("/prepare-in/in.jsonl", lines)
    storage = Storage("memory://prepare-root")
    config = make_config(tokenizer, by_domain("memory://prepare-in/*.jsonl"))
    manifest = prepare_corpus(storage, config)
    check_corpus(storage, manifest, config, records)
    assert prepare_corpus(storage, config) == manifest
    local = Storage(str(tmp_path / "root"))
    path = write_jsonl(tmp_path / "in.jsonl", records)
    on_disk = prepare_corpus(local, make_config(tokenizer, by_domain(path)))
    assert on_disk.corpus_id == manifest.corpus_id
    assert on_disk.shards == manifest.shards


def test_compressed_files_give_the_same_sequences(tmp_path: Path, tokenizer: str):
    import bz2
    import gzip

    import zstandard

    records = make_documents(50)
    content = write_jsonl(tmp_path / "in.jsonl", records).read_bytes()
    for ending, compress in ((".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstandard.compress)):
        path = tmp_path / f"in.jsonl{ending}"
        path.write_bytes(compress(content))
        storage = Storage(str(tmp_path / f"root{ending}"))
        config = make_config(tokenizer, by_domain(path), sequence_length=64)
        check_corpus(storage, prepare_corpus(storage, config), config, records)


def test_the_seed_and_settings_change_the_id_and_paths_do_not(storage: Storage, tmp_path: Path, tokenizer: str):
    records = make_documents(10)
    here = write_jsonl(tmp_path / "here.jsonl", records)
    there = write_jsonl(tmp_path / "sub/there.jsonl", records)
    other = write_jsonl(tmp_path / "other.jsonl", make_documents(10, seed=9))
    base = resolve_corpus_id(storage, make_config(tokenizer, by_domain(here)))
    assert base.startswith("c-")
    assert len(base) == 14
    assert resolve_corpus_id(storage, make_config(tokenizer, by_domain(there))) == base
    assert resolve_corpus_id(storage, make_config(save_tokenizer(tmp_path / "copy", "bytes"), by_domain(here))) == base
    different = [
        make_config(tokenizer, by_domain(other)),
        make_config(tokenizer, by_domain(here), by_domain(there)),
        make_config(tokenizer, {"path": str(here), "domain": "text"}),
        make_config(tokenizer, {"path": str(here), "domain_name": "domain"}),
        make_config(tokenizer, {**by_domain(here), "text": "domain"}),
        make_config(tokenizer, by_domain(here), sequence_length=9),
        make_config(tokenizer, by_domain(here), sequences_per_shard=6),
        make_config(tokenizer, by_domain(here), splits={"reference": 0.1, "heldout": 0}),
        make_config(tokenizer, by_domain(here), seed=1),
        make_config(save_tokenizer(tmp_path / "word", "word"), by_domain(here)),
    ]
    ids = [resolve_corpus_id(storage, config) for config in different]
    assert len({base, *ids}) == 1 + len(different)


def test_progress_goes_up_to_the_bytes_of_the_sources(
    storage: Storage, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("miniplm.corpus.file_encoding._BATCH_RECORDS", 10)
    path = write_jsonl(tmp_path / "a.jsonl", make_documents(60))
    pq.write_table(pa.table({"text": ["p"] * 30, "domain": ["d"] * 30}), tmp_path / "b.parquet")
    seen: list[Progress] = []
    config = make_config(tokenizer, by_domain(path), {**by_domain(tmp_path / "b.parquet"), "format": "parquet"})
    manifest = prepare_corpus(storage, config, seen.append)
    total = path.stat().st_size + (tmp_path / "b.parquet").stat().st_size
    assert {(moment.key, moment.unit, moment.total) for moment in seen} == {("prepare", "bytes", total)}
    assert [moment.done for moment in seen] == sorted(moment.done for moment in seen)
    assert seen[-1].done == total
    assert seen[-1].detail == f"90 documents, {manifest.split_counts('candidate').num_tokens:,} tokens"

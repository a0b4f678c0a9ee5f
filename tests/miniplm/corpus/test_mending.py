"""Shards that a growing corpus lost are made again where they were, with the bytes they had, and nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.reader import read_shard
from miniplm.errors import BusyError, CorpusError
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage
from tests.miniplm.corpus.test_extension import add_file, check_sequences, make_lineage, stamp_files
from tests.miniplm.corpus_fixtures import make_documents, read_tree


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 2)])
def test_lost_shards_are_made_again_where_they_were(
    storage: Storage, folder: Path, config: CorpusConfig, tmp_path: Path, lost: tuple[int, ...]
):
    manifest = make_lineage(storage, folder, config)
    tree = read_tree(storage, "corpora")
    for generation in lost:
        shards = [shard for shard in manifest.shards if shard.corpus_id == manifest.lineage[generation]]
        for shard in (shards[0], shards[-1]):
            storage.delete(layout.corpus_shard(shard.corpus_id, shard.split, shard.shard_index))
    left = stamp_files(storage, "corpora")
    (folder / "a.jsonl").rename(folder / "moved.jsonl")
    add_file(folder, "d", seed=3)
    extended = prepare_corpus(storage, config)
    assert extended.parent == manifest.corpus_id
    found = read_tree(storage, "corpora")
    assert {name: found[name] for name in tree if name.startswith("/c-")} == {
        name: content for name, content in tree.items() if name.startswith("/c-")
    }
    now = stamp_files(storage, "corpora")
    assert {path: now[path] for path in left if "/c-" in path} == {path: stamp for path, stamp in left.items() if "/c-" in path}


def test_a_lost_shard_whose_source_is_gone_is_told(storage: Storage, folder: Path, config: CorpusConfig):
    manifest = make_lineage(storage, folder, config)
    root = manifest.lineage[0]
    storage.delete(layout.corpus_shard(root, "candidate", 1))
    os.truncate(storage.path(layout.corpus_shard(root, "candidate", 2)), 10)
    (folder / "a.jsonl").rename(folder / "a.away")
    stamps = stamp_files(storage, "corpora")
    with pytest.raises(
        CorpusError,
        match=rf"shard-00001 of the candidate split, shard-00002 .* of corpus {root} are missing.*not there either: .*/a\.jsonl\. Put",
    ):
        prepare_corpus(storage, config)
    assert stamp_files(storage, "corpora") == stamps
    (folder / "a.away").rename(folder / "back.jsonl")
    mended = prepare_corpus(storage, config)
    (left,) = mended.left_out
    assert (left.reason, left.names) == ("its content is in the corpus already", (f"{folder}/back.jsonl",))
    assert mended == manifest.model_copy(update={"left_out": (left,)})
    assert (
        read_shard(storage, manifest.split_shards("candidate")[1]).num_rows == manifest.split_shards("candidate")[1].num_sequences
    )


def test_a_lost_shard_that_comes_out_otherwise_is_not_written(
    storage: Storage, folder: Path, config: CorpusConfig, monkeypatch: pytest.MonkeyPatch
):
    manifest = make_lineage(storage, folder, config)
    lost = next(shard for shard in manifest.shards if shard.corpus_id == manifest.lineage[1])
    storage.delete(layout.corpus_shard(lost.corpus_id, lost.split, lost.shard_index))
    stamps = stamp_files(storage, "corpora")
    monkeypatch.setattr("miniplm.corpus.shards.ROW_GROUP_SEQUENCES", 1)  # as another version might do it
    with pytest.raises(CorpusError, match=r"cannot be made again: of the same files this program makes shard-\d+ .* other bytes"):
        prepare_corpus(storage, config)
    assert stamp_files(storage, "corpora") == stamps


def test_a_corpus_whose_shards_are_being_made_again_is_left_alone(storage: Storage, folder: Path, config: CorpusConfig):
    manifest = make_lineage(storage, folder, config)
    root = manifest.lineage[0]
    storage.delete(layout.corpus_shard(root, "candidate", 0))
    with exclusive(storage, layout.corpus_folder(root), "corpus"), pytest.raises(BusyError, match=f"corpus {root}"):
        prepare_corpus(storage, config)


def test_a_corpus_of_an_older_version_is_extended_and_mended(storage: Storage, folder: Path, config: CorpusConfig):
    root = prepare_corpus(storage, config)
    content = storage.read_json(layout.corpus_manifest(root.corpus_id))
    for source in content["sources"]:
        del source["corpus_id"], source["reading"]
    storage.write_json(layout.corpus_manifest(root.corpus_id), content)
    records = make_documents(60) + add_file(folder, "b")
    manifest = prepare_corpus(storage, config)
    assert manifest.lineage == (root.corpus_id, manifest.corpus_id)
    check_sequences(storage, manifest, config, records)
    storage.delete(layout.corpus_shard(root.corpus_id, "candidate", 0))
    assert prepare_corpus(storage, config) == manifest
    check_sequences(storage, manifest, config, records)

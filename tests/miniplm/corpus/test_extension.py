"""A corpus that grows: new files are added, and nothing that is there is prepared, written or named anew."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus.identity import resolve_corpus_id
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.splits import assign_split
from miniplm.errors import CorpusError, SourceError
from miniplm.progress import Progress
from miniplm.records.manifests import CorpusManifest
from miniplm.records.run import RunRecord
from miniplm.run.inspection import inspect_sequence
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer
from tests.ends import Interrupted
from tests.forks import FORKS
from tests.miniplm.corpus.test_resume import KilledStorage
from tests.miniplm.corpus_fixtures import (
    make_config,
    make_documents,
    make_growing,
    read_sequences,
    read_tree,
    save_tokenizer,
    word_id,
    write_jsonl,
)

SPLITS = ("candidate", "reference", "heldout")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed here is a process, not the machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def add_file(folder: Path, name: str, num_documents: int = 40, seed: int = 1) -> list[dict[str, str]]:
    records = make_documents(num_documents, seed)
    write_jsonl(folder / f"{name}.jsonl", records)
    return records


def stamp_files(storage: Storage, folder: str) -> dict[str, tuple[int, int]]:
    """Inode and time of every file: unchanged only where nobody wrote it.

    Without the digests of sources, which are noted as soon as a file is old enough to be known by its time.
    """
    notes = Path(storage.path(layout.source_digests()))
    paths = [path for path in Path(storage.path(folder)).rglob("*") if path.is_file() and path != notes]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def list_corpora(storage: Storage) -> list[str]:
    return [name for name in storage.list_names("corpora") if name.startswith("c-")]


def check_sequences(storage: Storage, manifest: CorpusManifest, config: CorpusConfig, records: list[dict[str, str]]) -> None:
    """All records are in the split and domain that a separate count puts them in, in order; ids and indices go on."""
    tokenizer = load_tokenizer(config.tokenizer)
    expected: dict[tuple[str, str], list[int]] = {}
    for record, token_ids in zip(records, tokenizer.encode_documents([record["text"] for record in records]), strict=True):
        key = (assign_split(record["text"].encode(), config.seed, config.splits), record["domain"])
        expected.setdefault(key, []).extend([*token_ids.tolist(), tokenizer.eos_token_id])
    found: dict[tuple[str, str], list[int]] = {}
    next_id = 0
    for shard in manifest.shards:
        rows = read_sequences(storage, manifest.corpus_id, [shard])
        assert [row["sequence_id"] for row in rows] == list(range(next_id, next_id + len(rows)))
        next_id += len(rows)
        for row in rows:
            found.setdefault((shard.split, row["domain"]), []).extend(row["token_ids"])
    assert found == expected
    for split in SPLITS:
        shards = manifest.split_shards(split)
        assert [shard.shard_index for shard in shards] == list(range(len(shards)))
        counts = manifest.split_counts(split)
        assert counts.num_tokens == sum(shard.num_tokens for shard in shards)
        assert counts.num_sequences == sum(shard.num_sequences for shard in shards)
    num_documents = sum(manifest.split_counts(split).num_documents for split in SPLITS)
    assert manifest.num_records == num_documents + sum(manifest.rejected.values())


def test_an_extension_with_literal_ids(storage: Storage, tmp_path: Path):
    tokenizer = save_tokenizer(tmp_path / "word", "word")
    first = [{"text": "one two. three four", "domain": "b"}, {"text": "", "domain": "b"}, {"text": "one\n", "domain": "a"}]
    write_jsonl(tmp_path / "in/x.jsonl", first)
    source = {"path": f"{tmp_path}/in/*.jsonl", "domain": "domain"}
    config = make_config(tokenizer, source, sequence_length=4, sequences_per_shard=2, extend=True)
    root = prepare_corpus(storage, config)
    before = stamp_files(storage, layout.corpus_folder(root.corpus_id))
    # Sorted before the first file: new files come after all that is there, whatever they are called.
    new = [
        {"text": 5, "domain": "b"},
        {"text": "", "domain": "c"},
        {"text": "one two", "domain": "b"},
        {"text": "zzz", "domain": "c"},
    ]
    write_jsonl(tmp_path / "in/a.jsonl", new)
    manifest = prepare_corpus(storage, config)
    assert manifest.parent == root.corpus_id
    assert manifest.lineage == (root.corpus_id, manifest.corpus_id)
    one, two, unknown = word_id("one"), word_id(" two"), 1
    assert manifest.shards[:2] == root.shards
    assert [shard.corpus_id for shard in manifest.shards] == [root.corpus_id, root.corpus_id, manifest.corpus_id]
    assert [(shard.shard_index, shard.first_sequence_id, shard.num_sequences) for shard in manifest.shards] == [
        (0, 0, 2),
        (1, 2, 1),
        (2, 3, 2),
    ]
    assert read_sequences(storage, manifest.corpus_id, manifest.shards[2:]) == [
        {"sequence_id": 3, "domain": "b", "document_ids": [5], "num_tokens": 3, "token_ids": [one, two, 0]},
        {"sequence_id": 4, "domain": "c", "document_ids": [6], "num_tokens": 2, "token_ids": [unknown, 0]},
    ]
    assert [(Path(entry.path).name, entry.first_document_id, entry.num_records) for entry in manifest.sources] == [
        ("x.jsonl", 0, 3),
        ("a.jsonl", 3, 4),
    ]
    assert (manifest.num_records, manifest.rejected) == (7, {"empty_document": 2, "text_not_a_string": 1})
    counts = {domain: (count.num_documents, count.num_sequences) for domain, count in manifest.domains["candidate"].items()}
    assert counts == {"a": (1, 1), "b": (2, 3), "c": (1, 1)}
    rows = storage.read_bytes(layout.quarantine_file(manifest.corpus_id, 0)).splitlines()
    assert [json.loads(row)["document_id"] for row in rows] == [3, 4]
    assert stamp_files(storage, layout.corpus_folder(root.corpus_id)) == before
    files = {name.split("/")[1] for name in read_tree(storage, layout.corpus_folder(manifest.corpus_id))}
    assert files == {"candidate", "manifest.json", "quarantine", "tokenizer"}


def test_extensions_of_extensions_hold_all_documents(storage: Storage, folder: Path, config: CorpusConfig):
    records = make_documents(60)
    manifests = [prepare_corpus(storage, config)]
    for name, seed in (("c", 2), ("b", 1), ("d", 3)):
        records += add_file(folder, name, seed=seed)
        stamps = {corpus_id: stamp_files(storage, layout.corpus_folder(corpus_id)) for corpus_id in list_corpora(storage)}
        seen: list[Progress] = []
        manifests.append(prepare_corpus(storage, config, seen.append))
        check_sequences(storage, manifests[-1], config, records)
        assert manifests[-1].shards[: len(manifests[-2].shards)] == manifests[-2].shards
        assert {corpus_id: stamp_files(storage, layout.corpus_folder(corpus_id)) for corpus_id in stamps} == stamps
        # Read were the new file's bytes, and no others.
        assert (seen[-1].done, seen[-1].total) == ((folder / f"{name}.jsonl").stat().st_size,) * 2
    assert manifests[-1].lineage == tuple(manifest.corpus_id for manifest in manifests)
    assert [manifest.parent for manifest in manifests] == [None, *(manifest.corpus_id for manifest in manifests[:-1])]


def test_two_files_at_once_are_one_extension(storage: Storage, folder: Path, config: CorpusConfig):
    prepare_corpus(storage, config)
    records = make_documents(60) + add_file(folder, "b", seed=1) + add_file(folder, "c", seed=2)
    manifest = prepare_corpus(storage, config)
    check_sequences(storage, manifest, config, records)
    assert len(manifest.lineage) == 2


def test_without_new_files_the_corpus_is_found(storage: Storage, folder: Path, config: CorpusConfig):
    add_file(folder, "b")
    root = prepare_corpus(storage, config)
    add_file(folder, "c", seed=2)
    manifest = prepare_corpus(storage, config)
    stamps = stamp_files(storage, "corpora")
    # Renamed, gone, and copied: nothing of that is new, and what is found under another name is counted.
    (folder / "a.jsonl").rename(folder / "z.jsonl")
    (folder / "b.jsonl").unlink()
    shutil.copy(folder / "c.jsonl", folder / "copy.jsonl")
    assert resolve_corpus_id(storage, config) == manifest.corpus_id
    again = prepare_corpus(storage, config)
    (left,) = again.left_out
    assert left.reason == "its content is in the corpus already"
    assert left.names == (f"{folder}/copy.jsonl", f"{folder}/z.jsonl")
    assert again == manifest.model_copy(update={"left_out": (left,)})
    written = storage.path(layout.corpus_manifest(manifest.corpus_id))
    now = stamp_files(storage, "corpora")
    assert {path for path in now if now[path] != stamps[path]} == {written}
    assert prepare_corpus(storage, config) == again
    assert stamp_files(storage, "corpora") == now
    assert manifest.lineage == (root.corpus_id, manifest.corpus_id)


def test_copies_among_new_files_are_added_once(storage: Storage, folder: Path, config: CorpusConfig):
    prepare_corpus(storage, config)
    records = make_documents(60) + add_file(folder, "b")
    shutil.copy(folder / "b.jsonl", folder / "c.jsonl")
    manifest = prepare_corpus(storage, config)
    check_sequences(storage, manifest, config, records)
    assert [Path(entry.path).name for entry in manifest.sources] == ["a.jsonl", "b.jsonl"]
    assert [left.names for left in manifest.left_out] == [(f"{folder}/c.jsonl",)]


def write_corpus_id(root: str, config: str, told: str) -> None:
    """The body of a process, whose sets have another order."""
    Path(told).write_text(resolve_corpus_id(Storage(root), CorpusConfig.model_validate_json(config)))


def test_the_id_is_made_of_the_parent_and_the_new_content(tmp_path: Path, folder: Path, config: CorpusConfig, tokenizer: str):
    ids = []
    for number in range(2):
        storage = Storage(str(tmp_path / f"root{number}"))
        (folder / "b.jsonl").unlink(missing_ok=True)
        root = prepare_corpus(storage, config)
        add_file(folder, "b")
        ids.append(resolve_corpus_id(storage, config))
    assert ids[0] == ids[1] != root.corpus_id
    other = FORKS.Process(target=write_corpus_id, args=(str(tmp_path / "root0"), config.model_dump_json(), str(tmp_path / "told")))
    other.start()
    other.join()
    assert (tmp_path / "told").read_text() == ids[0]
    add_file(folder, "c", seed=2)
    assert resolve_corpus_id(storage, config) not in ids
    # All files as one corpus are another one.
    assert resolve_corpus_id(storage, make_growing(folder, tokenizer, extend=False)) not in (*ids, root.corpus_id)


def test_a_corpus_prepared_without_extend_is_extended(storage: Storage, folder: Path, config: CorpusConfig, tokenizer: str):
    root = prepare_corpus(storage, make_growing(folder, tokenizer, extend=False))
    assert resolve_corpus_id(storage, config) == root.corpus_id
    add_file(folder, "b")
    assert prepare_corpus(storage, config).parent == root.corpus_id


def test_other_settings_and_other_folders_are_other_corpora(storage: Storage, folder: Path, config: CorpusConfig, tokenizer: str):
    prepare_corpus(storage, config)
    other = folder.parent / "other"
    write_jsonl(other / "x.jsonl", make_documents(30, seed=5))
    assert prepare_corpus(storage, make_growing(other, tokenizer)).parent is None
    add_file(folder, "b")
    assert prepare_corpus(storage, make_growing(folder, tokenizer, seed=7)).parent is None
    assert prepare_corpus(storage, make_growing(folder, tokenizer, sequence_length=20)).parent is None
    assert prepare_corpus(storage, config).parent is not None


def test_a_changed_file_is_refused_and_extend_false_starts_a_new_lineage(
    storage: Storage, folder: Path, config: CorpusConfig, tokenizer: str
):
    root = prepare_corpus(storage, config)
    add_file(folder, "b")
    with open(folder / "a.jsonl", "a") as file:
        file.write('{"text": "more", "domain": "a"}\n')
    with pytest.raises(
        SourceError, match=rf"changed since corpus {root.corpus_id} .*: {folder}/a\.jsonl\. .*new file name.*extend=false"
    ):
        prepare_corpus(storage, config)
    assert list_corpora(storage) == [root.corpus_id]
    anew = prepare_corpus(storage, make_growing(folder, tokenizer, extend=False))
    assert anew.parent is None
    assert prepare_corpus(storage, config) == anew
    add_file(folder, "c", seed=2)
    assert prepare_corpus(storage, config).parent == anew.corpus_id


def test_a_deleted_extension_is_made_again_and_a_deleted_lineage_anew(storage: Storage, folder: Path, config: CorpusConfig):
    root = prepare_corpus(storage, config)
    add_file(folder, "b")
    manifest = prepare_corpus(storage, config)
    tree = read_tree(storage, layout.corpus_folder(manifest.corpus_id))
    storage.delete(layout.corpus_folder(manifest.corpus_id))
    assert prepare_corpus(storage, config) == manifest
    assert read_tree(storage, layout.corpus_folder(manifest.corpus_id)) == tree
    for corpus_id in list_corpora(storage):
        storage.delete(layout.corpus_folder(corpus_id))
    anew = prepare_corpus(storage, config)
    assert (anew.parent, len(anew.sources)) == (None, 2)
    assert anew.corpus_id not in (root.corpus_id, manifest.corpus_id)


def test_a_damaged_note_of_the_newest_corpus_is_told(storage: Storage, config: CorpusConfig):
    prepare_corpus(storage, config)
    (name,) = storage.list_names("corpora/growing")
    storage.write_bytes(f"corpora/growing/{name}", b"{")
    with pytest.raises(CorpusError, match=r"growing/[0-9a-f]+\.json is damaged.*write .*\"corpora\".*or delete it"):
        resolve_corpus_id(storage, config)


def test_an_extension_killed_at_any_publish_and_started_again(tmp_path: Path, folder: Path, config: CorpusConfig):
    root = tmp_path / "whole"
    write_jsonl(folder / "a.jsonl", make_documents(30))
    prepare_corpus(Storage(str(root)), config)
    shutil.copytree(root, tmp_path / "base")
    add_file(folder, "b", 20)
    write_jsonl(folder / "c.jsonl", [{"text": None}, *make_documents(12, seed=2), {"text": 1}])
    manifest = prepare_corpus(Storage(str(root)), config)
    undisturbed = read_tree(Storage(str(root)), "corpora")
    num_kills = 0
    for alive in range(1000):
        copy = tmp_path / str(alive)
        shutil.copytree(tmp_path / "base", copy)
        try:
            prepare_corpus(KilledStorage(str(copy), alive, after=False), config)
        except Interrupted:
            num_kills += 1
            assert prepare_corpus(Storage(str(copy)), config) == manifest
            found = read_tree(Storage(str(copy)), "corpora")
            assert _without_digests(found) == _without_digests(undisturbed), f"killed at publish {alive}"
        else:
            break
    assert num_kills > len(manifest.shards)


def _without_digests(tree: dict[str, bytes]) -> dict[str, bytes]:
    """Without the memory of source digests, which holds what was old enough to be kept."""
    return {name: content for name, content in tree.items() if "source-digests" not in name}


def test_files_without_a_usable_document_are_counted_and_stop_nothing(storage: Storage, folder: Path, config: CorpusConfig):
    root = prepare_corpus(storage, config)
    write_jsonl(folder / "b.jsonl", [{"body": "x"}, {"text": None}])
    (folder / "c.jsonl").write_text("")
    manifest = prepare_corpus(storage, config)
    assert (manifest.parent, manifest.shards, manifest.domains) == (root.corpus_id, root.shards, root.domains)
    assert (manifest.num_records, manifest.rejected) == (62, {"missing_text": 1, "null_text": 1})
    assert prepare_corpus(storage, config) == manifest
    records = make_documents(60) + add_file(folder, "d")
    last = prepare_corpus(storage, config)
    assert last.parent == manifest.corpus_id
    assert last.sources[-1].first_document_id == 62
    check_sequences(storage, last, config, records)


def test_a_truncated_new_file_leaves_the_corpus_as_it_was(storage: Storage, folder: Path, tokenizer: str):
    config = make_config(tokenizer, {"path": f"{folder}/*.jsonl*", "domain": "domain"}, extend=True)
    root = prepare_corpus(storage, config)
    stamps = stamp_files(storage, layout.corpus_folder(root.corpus_id))
    (folder / "b.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(SourceError, match=r"b\.jsonl\.gz is"):
        prepare_corpus(storage, config)
    assert list_corpora(storage) == [root.corpus_id]
    assert stamp_files(storage, layout.corpus_folder(root.corpus_id)) == stamps


def make_lineage(storage: Storage, folder: Path, config: CorpusConfig) -> CorpusManifest:
    """A corpus, its extension, and the extension's extension."""
    prepare_corpus(storage, config)
    for name, seed in (("b", 1), ("c", 2)):
        add_file(folder, name, seed=seed)
        manifest = prepare_corpus(storage, config)
    return manifest


def test_inspection_traces_documents_over_the_whole_lineage(storage: Storage, folder: Path, config: CorpusConfig):
    manifest = make_lineage(storage, folder, config)
    record = RunRecord(run_name="r", config={}, corpus_id=manifest.corpus_id, started_at="2025-01-01T00:00:00+00:00")
    for corpus_id, name in zip(manifest.lineage, ("a", "b", "c"), strict=True):
        shard = next(shard for shard in manifest.shards if shard.corpus_id == corpus_id)
        document = inspect_sequence(storage, record, shard.first_sequence_id).documents[0]
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert document.path == str(folder / f"{name}.jsonl")
        assert document.record_number is not None
        text = json.loads(lines[document.record_number - 1])["text"]
        assert inspect_sequence(storage, record, shard.first_sequence_id).text.startswith(text[:10])

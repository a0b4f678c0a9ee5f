"""A corpus whose files are tokenised by others, part by part, has the bytes of one that a single process prepares."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus import file_encoding, part_making, token_parts
from miniplm.corpus.identity import resolve_corpus_id
from miniplm.corpus.part_making import open_part_making
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.token_parts import (
    MakeParts,
    PartFiles,
    PartsFolder,
    PartsPlan,
    TokenPart,
    delete_late_parts,
    delete_parts,
)
from miniplm.errors import (
    ConfigError,
    DamagedFileError,
    DamagedSourceError,
    SourceError,
    StoppedError,
    TokenizerError,
    VersionError,
)
from miniplm.progress import ignore_progress
from miniplm.storage.root import Storage
from tests.ends import Interrupted
from tests.miniplm.corpus.test_resume import KilledStorage
from tests.miniplm.corpus_fixtures import make_config, make_documents, make_growing, read_tree, save_tokenizer, write_jsonl


def make_here(config: CorpusConfig, made: list[int] | None = None) -> MakeParts:
    """Makes all parts in this process, as workers would, and notes which."""

    def make(folder: PartsFolder, plan: PartsPlan, files: PartFiles, indices: range) -> Generator[TokenPart]:
        there = set(folder.list_parts())
        with open_part_making(folder.storage, folder.corpus_id, plan.plan_id, config, indices, "w") as making:
            for index in indices:
                if made is not None and index not in there:
                    made.append(index)
                yield making.make(index, ignore_progress)

    return make


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches a file, several blocks a part, some parts of several files; and no waiting for the disk."""
    monkeypatch.setattr(file_encoding, "_BATCH_RECORDS", 7)
    monkeypatch.setattr("miniplm.sources.blocks._BLOCK_BYTES", 800)
    monkeypatch.setattr(part_making, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(token_parts, "_NUM_PARTS", 4)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def config(tmp_path: Path, tokenizer: str) -> CorpusConfig:
    """Six files, one empty, one compressed, one under a Latin-1 name; rejected records in three of them; all three splits."""
    folder = tmp_path / "in"
    write_jsonl(folder / "a.jsonl", [{"text": None}, *make_documents(40, seed=1), {"text": "long " * 400, "domain": "a"}])
    write_jsonl(folder / "b.jsonl", [])
    write_jsonl(folder / "c.jsonl", [{"text": 5}, {"text": " "}])
    plain = write_jsonl(folder / "d.json", make_documents(30, seed=2)).read_bytes()
    (folder / "d.jsonl").write_bytes(gzip.compress(plain + b"{broken\n"))
    write_jsonl(folder / "e.jsonl", make_documents(9, seed=3))
    (folder / "e.jsonl").rename(os.fsdecode(os.fsencode(folder) + b"/e\xe9.jsonl"))
    write_jsonl(folder / "f.jsonl", make_documents(5, seed=4))
    splits = {"reference": 0.25, "heldout": 0.1}
    return make_config(tokenizer, {"path": f"{folder}/*.jsonl", "domain": "domain"}, sequence_length=40, splits=splits)


def find_tree(storage: Storage, corpus_id: str) -> dict[str, bytes]:
    assert storage.list_names(layout.corpus_parts(corpus_id)) == []
    return read_tree(storage, layout.corpus_folder(corpus_id))


def prepare_alone(config: CorpusConfig, tmp_path: Path) -> dict[str, bytes]:
    storage = Storage(str(tmp_path / "alone"))
    return find_tree(storage, prepare_corpus(storage, config).corpus_id)


def test_parts_are_packed_to_the_bytes_of_one_process(config: CorpusConfig, storage: Storage, tmp_path: Path):
    made: list[int] = []
    manifest = prepare_corpus(storage, config, make_parts=make_here(config, made))
    assert find_tree(storage, manifest.corpus_id) == prepare_alone(config, tmp_path)
    assert made == [0, 1, 2]
    assert manifest.rejected == {"empty_document": 1, "malformed_json": 1, "null_text": 1, "text_not_a_string": 1}
    assert len(manifest.sources) == 6
    assert prepare_corpus(storage, config, make_parts=make_here(config, made)) == manifest
    assert made == [0, 1, 2]


def test_a_part_that_is_made_twice_has_the_same_bytes(config: CorpusConfig, storage: Storage):
    seen: list[dict[str, bytes]] = []

    def make(folder: PartsFolder, plan: PartsPlan, files: PartFiles, indices: range) -> Generator[TokenPart]:
        for _ in range(2):
            parts = list(make_here(config)(folder, plan, files, indices))
            seen.append(read_tree(storage, f"{layout.plan_parts(folder.corpus_id, folder.plan_id)}/blocks"))
            for index in indices:
                storage.delete(layout.token_part(folder.corpus_id, folder.plan_id, index))
        yield from parts

    prepare_corpus(storage, config, make_parts=make)
    assert seen[0] == seen[1]
    assert len(seen[0]) > 4


def test_a_killed_preparation_goes_on_from_the_parts_that_are_made(config: CorpusConfig, tmp_path: Path):
    """Killed while parts are made, or at some of its shards; it may go on without them as well."""
    whole = prepare_alone(config, tmp_path)
    for alive, by_others in ((5, True), (20, False), (24, True)):
        root, made = str(tmp_path / str(alive)), []
        with pytest.raises(Interrupted):
            prepare_corpus(KilledStorage(root, alive, after=alive % 2 == 0), config, make_parts=make_here(config, made))
        storage = Storage(root)
        prepare_corpus(storage, config, make_parts=make_here(config, made) if by_others else None)
        assert find_tree(storage, resolve_corpus_id(storage, config)) == whole
        assert len(made) <= 4, "at most the part that was under way is made again"


def test_new_files_of_a_growing_corpus_are_made_in_parts(tmp_path: Path, storage: Storage, tokenizer: str):
    config, alone = make_growing(tmp_path / "in", tokenizer), Storage(str(tmp_path / "alone"))
    for name, num_documents in (("a", 60), ("b", 20)):
        write_jsonl(tmp_path / f"in/{name}.jsonl", [*make_documents(num_documents, seed=ord(name)), {"text": 1}])
        made: list[int] = []
        first = prepare_corpus(storage, config, make_parts=make_here(config, made))
        assert made == [0]
        assert first == prepare_corpus(alone, config)
        assert find_tree(storage, first.corpus_id) == find_tree(alone, first.corpus_id)
    assert first.parent is not None


def begin(config: CorpusConfig, storage: Storage) -> tuple[PartsFolder, PartsPlan]:
    """A preparation whose parent was killed when it had begun."""

    def make(folder: PartsFolder, plan: PartsPlan, files: PartFiles, indices: range) -> Generator[TokenPart]:
        raise Interrupted
        yield

    with pytest.raises(Interrupted):
        prepare_corpus(storage, config, make_parts=make)
    corpus_id = resolve_corpus_id(storage, config)
    (plan_id,) = storage.list_names(layout.corpus_parts(corpus_id))
    folder = PartsFolder(storage, corpus_id, plan_id)
    plan = folder.find_plan()
    assert plan is not None
    return folder, plan


def test_a_worker_refuses_what_it_would_make_otherwise_or_cannot_see(config: CorpusConfig, storage: Storage, tmp_path: Path):
    folder, plan = begin(config, storage)

    def make(expected: type[Exception], match: str, plan_id: str = plan.plan_id, with_config: CorpusConfig = config) -> None:
        with (
            pytest.raises(expected, match=match),
            open_part_making(storage, folder.corpus_id, plan_id, with_config, [0], "gpu-7") as making,
        ):
            making.make(0, ignore_progress)

    make(ConfigError, "worker gpu-7 does not see the preparation of corpus c-.* do all machines see the same storage", "other")
    other = config.model_copy(update={"tokenizer": save_tokenizer(tmp_path / "word", "word")})
    make(TokenizerError, "worker gpu-7 has another tokenizer .* than the run", with_config=other)
    path = tmp_path / "in/a.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"alpha", b"omega"))
    make(SourceError, r"worker gpu-7 sees another file at .*a\.jsonl .* or it was changed since")
    path.unlink()
    make(SourceError, r"worker gpu-7 does not see the source file .*a\.jsonl; .*execution\.prepare=parent")
    path.write_bytes(content)  # a copy, with times of its own
    with open_part_making(storage, folder.corpus_id, plan.plan_id, config, [0], "gpu-7") as making:
        assert making.make(0, ignore_progress).worker == "gpu-7"
    changed = plan.model_copy(update={"versions": {**plan.versions, "tokenizers": "0.0"}})
    storage.write_json(layout.parts_plan(folder.corpus_id, folder.plan_id), changed.as_json())
    make(VersionError, "worker gpu-7 has tokenizers .*, the run 0.0; install the same versions everywhere")


def test_a_worker_leaves_nothing_when_the_corpus_is_there(config: CorpusConfig, storage: Storage):
    folder, plan = begin(config, storage)
    with open_part_making(storage, folder.corpus_id, plan.plan_id, config, [0], "late") as making:
        manifest = prepare_corpus(storage, config)
        with pytest.raises(StoppedError, match="was prepared, or given up, by others"):
            making.make(0, ignore_progress)
    with (
        pytest.raises(StoppedError, match="was prepared by others"),
        open_part_making(storage, folder.corpus_id, plan.plan_id, config, [0], "late"),
    ):
        pass
    find_tree(storage, manifest.corpus_id)


def test_two_parents_that_begin_at_once_delete_no_parts(config: CorpusConfig, storage: Storage, monkeypatch: pytest.MonkeyPatch):
    """As on a store without locks."""
    folder, plan = begin(config, storage)
    files = folder.find_files()
    with open_part_making(storage, folder.corpus_id, plan.plan_id, config, [0], "w") as making:
        making.make(0, ignore_progress)
    second = PartsFolder(storage, folder.corpus_id, folder.plan_id)
    monkeypatch.setattr(second, "find_plan", lambda: None)  # it had looked before the first one wrote it
    second.open(plan, files)
    assert folder.list_parts() == [0]
    assert folder.find_plan() == plan


@pytest.mark.parametrize("is_local", [True, False])
def test_a_parent_of_another_version_keeps_its_parts_where_no_lock_is(config: CorpusConfig, tmp_path: Path, is_local: bool):
    """On a store it may live; at a local root, which is locked, it is dead, and its workers are to stop."""
    storage = Storage(str(tmp_path / "root") if is_local else f"memory://{tmp_path}")
    folder, plan = begin(config, storage)
    files = folder.find_files()
    other = PartsFolder(storage, folder.corpus_id, "of-another-version")
    other.open(plan.model_copy(update={"plan_id": other.plan_id}), files)
    assert (folder.find_plan() is None) == is_local
    assert other.find_plan() is not None
    delete_parts(storage, folder.corpus_id)
    assert (folder.find_plan(), other.find_plan()) == (None, None)


def test_a_block_that_comes_late_is_deleted_and_a_plan_at_work_is_not(config: CorpusConfig, storage: Storage):
    folder, plan = begin(config, storage)
    late = layout.token_block("c-done", plan.plan_id, 3, 0)
    storage.write_bytes(late, b"token ids")
    assert delete_late_parts(storage) == 1
    assert not storage.exists(late)
    assert folder.find_plan() == plan
    assert delete_late_parts(storage) == 0


def test_parts_of_a_version_that_had_one_plan_a_corpus_are_left_alone(storage: Storage):
    """A parent of that version may be at work."""
    parts = layout.corpus_parts("c-older")
    for name in ("plan.json", "part-00000.json", "blocks/part-00000/block-00000.arrow"):
        storage.write_bytes(f"{parts}/{name}", b"{}")
    assert delete_late_parts(storage) == 0
    assert storage.exists(f"{parts}/blocks/part-00000/block-00000.arrow")


def test_parts_that_another_parent_took_away_are_no_failure(config: CorpusConfig, storage: Storage, tmp_path: Path):
    """As on a store without locks, where two pack the same parts."""
    manifest = prepare_corpus(Storage(str(tmp_path / "alone")), config)

    def make(folder: PartsFolder, plan: PartsPlan, files: PartFiles, indices: range) -> Generator[TokenPart]:
        parts = list(make_here(config)(folder, plan, files, indices))
        yield parts[0]
        shutil.copytree(tmp_path / "alone/corpora", storage.path("corpora"), dirs_exist_ok=True)
        delete_parts(storage, folder.corpus_id)
        yield from parts[1:]

    assert prepare_corpus(storage, config, make_parts=make) == manifest


@pytest.mark.parametrize("harm", ["deleted", "damaged"])
def test_a_part_that_is_gone_or_damaged_is_told_and_made_again(config: CorpusConfig, storage: Storage, tmp_path: Path, harm: str):
    def make(folder: PartsFolder, plan: PartsPlan, files: PartFiles, indices: range) -> Generator[TokenPart]:
        parts = list(make_here(config)(folder, plan, files, indices))
        path = layout.token_block(folder.corpus_id, folder.plan_id, 0, 1)
        storage.delete(path) if harm == "deleted" else storage.write_bytes(path, b"other")
        yield from parts

    with pytest.raises(DamagedFileError, match=r"00000-00001\.arrow is gone or is not as it was written"):
        prepare_corpus(storage, config, make_parts=make)
    made: list[int] = []
    manifest = prepare_corpus(storage, config, make_parts=make_here(config, made))
    assert made == [0]
    assert find_tree(storage, manifest.corpus_id) == prepare_alone(config, tmp_path)


def test_a_faulty_source_is_told_as_by_one_process(config: CorpusConfig, storage: Storage, tmp_path: Path):
    path = tmp_path / "in/d.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    told: list[str] = []
    for make_parts in (make_here(config), None):
        with pytest.raises(DamagedSourceError) as raised:
            prepare_corpus(storage, config, make_parts=make_parts)
        told.append(str(raised.value))
        assert storage.list_names(f"corpora/{resolve_corpus_id(storage, config)}") == []
        assert storage.list_names("corpora/parts") == []
    assert told[0] == told[1]

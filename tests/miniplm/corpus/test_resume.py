"""A preparation that is interrupted at any moment and started again ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus import state
from miniplm.corpus.preparation import prepare_corpus
from miniplm.errors import StorageError
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import CorpusTokenizer
from tests.ends import Interrupted
from tests.forks import FORKS
from tests.miniplm.corpus_fixtures import make_config, make_documents, read_tree, save_tokenizer, write_jsonl


class KilledStorage(Storage):
    """Dies at publish number `alive`: before the file appears, or just after."""

    def __init__(self, root: str, alive: int, after: bool) -> None:
        super().__init__(root)
        self._left = alive
        self._after = after

    @contextmanager
    def publish(self, relative: str) -> Iterator[Path]:
        self._left -= 1
        if self._left < 0 and not self._after:
            raise Interrupted
        with super().publish(relative) as path:
            yield path
        if self._left < 0:
            raise Interrupted


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed here is a process, not the machine; a test prepares a hundred times."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    """Two files of two domains with rejections, all three splits, and a document of many shards."""
    folder = tmp_path_factory.mktemp("sources")
    first = make_documents(22)
    first.insert(11, {"text": "long " * 220 + "end", "domain": "a"})
    write_jsonl(folder / "a.jsonl", [*first, {"text": None}, {"text": " "}])
    write_jsonl(folder / "b.jsonl", [{"text": 5}, *make_documents(16, seed=1), {"domain": "a"}])
    tokenizer = save_tokenizer(tmp_path_factory.mktemp("bytes"), "bytes")
    return make_config(
        tokenizer,
        {"path": f"{folder}/*.jsonl", "domain": "domain"},
        sequence_length=40,
        sequences_per_shard=10,
        splits={"reference": 0.25, "heldout": 0.1},
    )


@pytest.fixture(scope="module")
def undisturbed(config: CorpusConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    storage = Storage(str(tmp_path_factory.mktemp("undisturbed")))
    manifest = prepare_corpus(storage, config)
    assert len(manifest.shards) > 12
    return read_tree(storage, layout.corpus_folder(manifest.corpus_id))


def find_tree(root: Path) -> dict[str, bytes]:
    storage = Storage(str(root))
    (corpus_id,) = [name for name in storage.list_names("corpora") if name.startswith("c-")]
    return read_tree(storage, layout.corpus_folder(corpus_id))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_publish_and_started_again(config: CorpusConfig, undisturbed: dict[str, bytes], tmp_path: Path, after: bool):
    num_kills = 0
    for alive in range(1000):
        root = tmp_path / str(alive)
        try:
            prepare_corpus(KilledStorage(str(root), alive, after), config)
        except Interrupted:
            num_kills += 1
            prepare_corpus(Storage(str(root)), config)
            assert find_tree(root) == undisturbed, f"killed at publish {alive}"
        else:
            break
    assert num_kills >= len(undisturbed)


@pytest.mark.parametrize("alive", [1, 2, 3, 5])
def test_killed_again_and_again(config: CorpusConfig, undisturbed: dict[str, bytes], tmp_path: Path, alive: int):
    """Each start survives a few publishes only; it must still come to an end."""
    for _ in range(100):
        try:
            prepare_corpus(KilledStorage(str(tmp_path), alive + 2, after=False), config)
        except Interrupted:
            continue
        break
    else:
        pytest.fail("a hundred starts were not enough")
    assert find_tree(tmp_path) == undisturbed


def test_a_resumed_preparation_tokenises_only_what_is_not_in_closed_shards(
    config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counted: list[int] = []
    encode = CorpusTokenizer.encode_documents

    def count(tokenizer: CorpusTokenizer, texts: Any) -> Any:
        counted.append(sum(len(text) for text in texts))
        return encode(tokenizer, texts)

    monkeypatch.setattr(CorpusTokenizer, "encode_documents", count)
    prepare_corpus(Storage(str(tmp_path / "whole")), config)
    whole = sum(counted)
    counted.clear()
    # So far that only the remainders of the last splits are missing.
    with pytest.raises(Interrupted):
        prepare_corpus(KilledStorage(str(tmp_path / "cut"), 26, after=False), config)
    counted.clear()
    prepare_corpus(Storage(str(tmp_path / "cut")), config)
    assert sum(counted) < whole / 2


def test_a_full_disk_keeps_what_is_published_for_the_next_start(
    config: CorpusConfig, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writes = 0
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 14:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=r"No space left on device.*finished shards are kept"):
        prepare_corpus(Storage(str(tmp_path)), config)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]
    published = {str(path) for path in tmp_path.rglob("*.parquet")}
    assert len(published) >= 5
    times = {path: Path(path).stat().st_mtime_ns for path in published}
    prepare_corpus(Storage(str(tmp_path)), config)
    assert find_tree(tmp_path) == undisturbed
    unchanged = [path for path in published if Path(path).stat().st_mtime_ns == times[path]]
    assert len(unchanged) >= len(published) - 1


def test_what_another_version_left_is_made_anew(config: CorpusConfig, undisturbed: dict[str, bytes], tmp_path: Path):
    with pytest.raises(Interrupted):
        prepare_corpus(KilledStorage(str(tmp_path), 11, after=True), config)
    storage = Storage(str(tmp_path))
    (corpus_id,) = [name for name in storage.list_names("corpora") if name.startswith("c-")]
    path = layout.corpus_preparation(corpus_id)
    state = storage.read_json(path)
    storage.write_json(path, {**state, "versions": {**state["versions"], "tokenizers": "0.0"}})
    storage.write_bytes(layout.corpus_shard(corpus_id, "candidate", 99), b"left over")
    prepare_corpus(storage, config)
    assert find_tree(tmp_path) == undisturbed


def count_shards(root: Path) -> int:
    """Published shards; unlike a glob it bears a folder that the other process deletes at this moment."""
    return sum(name.startswith("shard-") for _, _, names in os.walk(root) for name in names)


def prepare(root: str, config: str) -> None:
    """The body of a process."""
    prepare_corpus(Storage(root), CorpusConfig.model_validate_json(config))


def test_a_real_process_killed_and_started_again(config: CorpusConfig, tmp_path: Path):
    def start(root: Path) -> BaseProcess:
        process = FORKS.Process(target=prepare, args=(str(root), config.model_dump_json()))
        process.start()
        return process

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for num_shards in (1, 4, 9):
        process = start(killed)
        deadline = time.monotonic() + 60
        while count_shards(killed) < num_shards and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.join()
    for root in (killed, whole):
        process = start(root)
        process.join()
        assert process.exitcode == 0
    assert find_tree(killed) == find_tree(whole)


def test_a_state_that_is_stored_rarely_is_gone_on_from(
    config: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beyond 256 shards, here each time half of the shards are new."""
    monkeypatch.setattr(state, "_SHARE", 2)
    storage = Storage(str(tmp_path / "undisturbed"))
    wanted = read_tree(storage, layout.corpus_folder(prepare_corpus(storage, config).corpus_id))
    for alive in range(2, 30, 4):
        root = tmp_path / str(alive)
        with pytest.raises(Interrupted):
            prepare_corpus(KilledStorage(str(root), alive, after=True), config)
        prepare_corpus(Storage(str(root)), config)
        assert find_tree(root) == wanted


def test_all_states_together_stay_in_proportion_to_the_shards() -> None:
    """Of 150,000 shards, of which a state holds an entry each."""
    num_in_state = num_entries = 0
    for num_shards in range(1, 150_001):
        assert num_shards <= 256 or num_shards - num_in_state <= num_shards / 256 + 1
        if state.is_state_due(num_shards, num_in_state):
            num_in_state = num_shards
            num_entries += num_shards
    assert num_entries < 300 * 150_000

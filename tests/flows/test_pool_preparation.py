"""A corpus that the workers of a pool tokenise; the fleet is played, sources and corpus are real files."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Failed

from flows.work_pool.preparing import prepare_on_pool
from miniplm import layout
from miniplm.config.run import CorpusConfig, ExecutionConfig, RunConfig, config_as_dict
from miniplm.corpus.identity import resolve_corpus_id
from miniplm.corpus.part_making import open_part_making
from miniplm.corpus.preparation import prepare_corpus
from miniplm.corpus.token_parts import PartsFolder
from miniplm.errors import DamagedSourceError, MiniplmError, PoolWorkError
from miniplm.progress import ignore_progress
from miniplm.records.manifests import CorpusManifest
from miniplm.run import stages
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage
from tests.flows.played_parts import PlayedParts, install
from tests.miniplm.corpus_fixtures import make_documents, make_growing, read_tree, save_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class Preparation(PlayedParts):
    """Workers that tokenise the files of one growing corpus, four at first, and whoever prepares it."""

    def __init__(self, folder: Path, tokenizer: str) -> None:
        super().__init__("prepare-parts", self.make)
        self.folder, self.storage = folder, Storage(str(folder / "root"))
        self.packed_at: list[float] = []
        for index in range(4):
            self.write(index, {"text": 5} if index == 2 else {"text": " "})
        corpus = make_growing(folder / "in", tokenizer)
        self.plan = RunPlan.of(
            RunConfig.model_validate(
                {
                    "name": "ours",
                    "storage": self.storage.root,
                    "corpus": corpus.model_dump(),
                    "teacher": {"model": "m"},
                    "reference": {"model": "r"},
                    "execution": {
                        "fan_out": "work-pool",
                        "prepare": "workers",
                        "shards_per_batch": 2,
                        "stale_seconds": 60,
                    },
                }
            )
        )

    def write(self, index: int, *others: object) -> None:
        write_jsonl(self.folder / f"in/{index}.jsonl", [*make_documents(15, seed=index), *others])

    def make(self, run: FlowRun, indices: Sequence[int]) -> State:
        """As the flow does it, whose parameters have gone through JSON."""
        given = next(one for one in reversed(self.parameters) if one["part_indices"] == run.parameters["part_indices"])
        corpus = CorpusConfig.model_validate(given["corpus"])
        try:
            with open_part_making(
                Storage(given["storage"]), given["corpus_id"], given["plan_id"], corpus, indices, "gpu-1"
            ) as making:
                for index in indices:
                    making.make(index, ignore_progress)
        except MiniplmError as error:
            return Failed(message=f"Flow run encountered an exception: {type(error).__name__}: {error}")
        return Completed()

    def prepare(self) -> CorpusManifest:
        assert self.plan.prepares_on_workers
        return prepare_corpus(
            self.storage,
            self.plan.corpus,
            lambda progress: self.packed_at.append(self.now),
            make_parts=prepare_on_pool(self.plan),
        )

    def check(self, manifest: CorpusManifest, alone: Storage) -> None:
        """As one process makes it, quarantine included, with no part left over."""
        assert manifest == prepare_corpus(alone, self.plan.corpus)
        folder = layout.corpus_folder(manifest.corpus_id)
        assert read_tree(self.storage, folder) == read_tree(alone, folder)
        assert self.storage.list_names("corpora/parts") == []


@pytest.fixture
def play(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> Preparation:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    played = Preparation(tmp_path, tokenizer)
    install(played, monkeypatch)
    return played


def test_files_go_out_in_batches_and_new_ones_later(play: Preparation, tmp_path: Path) -> None:
    alone = Storage(str(tmp_path / "alone"))
    manifest = play.prepare()
    assert play.submitted == [[0, 1], [2, 3]]
    assert next(iter(play.runs.values())).name == f"prepare {manifest.corpus_id}, parts 0 to 1"
    assert manifest.rejected == {"empty_document": 3, "text_not_a_string": 1}
    play.check(manifest, alone)
    play.write(4, {"text": None})
    extension = play.prepare()
    assert play.submitted[2:] == [[0]]
    assert extension.parent == manifest.corpus_id
    play.check(extension, alone)
    assert play.prepare() == extension
    assert len(play.submitted) == 3


def test_what_a_dead_worker_has_not_made_goes_to_others(play: Preparation, tmp_path: Path) -> None:
    def work(run: FlowRun, indices: list[int]) -> State | None:
        if indices == [0, 1]:
            play.make(run, [0])
            return None  # its machine is gone: no sign of life comes
        return play.make(run, indices)

    play.work = work
    play.check(play.prepare(), Storage(str(tmp_path / "alone")))
    assert play.packed_at[0] == 1002.0, "what is there is packed while the rest is waited for"
    assert play.packed_at[-1] > 1060.0
    assert [batch for batch in play.submitted if 0 in batch or 1 in batch] == [[0, 1], [1]]
    assert any("1 parts of corpus c-" in warning and "are given to another worker" in warning for warning in play.warnings)


def test_a_parent_that_was_killed_finds_the_parts_and_the_workers(play: Preparation, tmp_path: Path) -> None:
    looks = 0

    def work(run: FlowRun, indices: list[int]) -> State | None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt  # stands for the end of the parent
        return play.make(run, indices) if 0 in indices else None

    play.work = work
    with pytest.raises(KeyboardInterrupt):
        play.prepare()
    play.work = play.make
    play.check(play.prepare(), Storage(str(tmp_path / "alone")))
    assert sorted(chain.from_iterable(play.submitted)) == [0, 1, 2, 3], "nothing is given out twice"


def test_the_same_files_for_another_storage_are_work_of_their_own(play: Preparation, tmp_path: Path) -> None:
    def work(run: FlowRun, indices: list[int]) -> State | None:
        if play.now > 1002:
            raise KeyboardInterrupt  # stands for another parent, whose workers are long at work
        return None

    play.work = work
    with pytest.raises(KeyboardInterrupt):
        play.prepare()
    theirs = set(play.runs)
    play.work = lambda run, indices: None if run.id in theirs else play.make(run, indices)
    play.storage = Storage(str(tmp_path / "other"))
    play.plan = play.plan.model_copy(update={"storage": play.storage.root})
    play.check(play.prepare(), Storage(str(tmp_path / "alone")))
    assert play.now < 1010, "what others make elsewhere is not waited for"
    assert play.submitted == [[0, 1], [2, 3]] * 2


def test_the_reason_is_told_as_without_a_fleet_or_with_the_worker(play: Preparation, tmp_path: Path) -> None:
    path = tmp_path / "in/1.jsonl"
    content = path.read_bytes()
    path.write_bytes(gzip.compress(content)[:-20])
    told = []
    for prepare in (play.prepare, lambda: prepare_corpus(Storage(str(tmp_path / "alone")), play.plan.corpus)):
        with pytest.raises(DamagedSourceError, match=r"1\.jsonl is truncated") as raised:
            prepare()
        told.append(str(raised.value))
    assert told[0] == told[1]
    assert play.storage.list_names("corpora/parts") == []
    path.write_bytes(content)
    play.runs.clear()

    def work(run: FlowRun, indices: list[int]) -> State:
        path.unlink(missing_ok=True)  # as on a machine that does not have it
        return play.make(run, indices)

    play.work = work
    with pytest.raises(
        PoolWorkError, match=r"not made: prepare c-.* worker gpu-1 does not see the source file .*1\.jsonl; .*parent"
    ):
        play.prepare()
    path.write_bytes(content)
    assert resolve_corpus_id(play.storage, play.plan.corpus) in play.storage.list_names("corpora/parts"), "what is made is kept"


def test_the_choice_is_in_no_record_while_it_is_the_default() -> None:
    assert "prepare" not in config_as_dict(ExecutionConfig())
    assert config_as_dict(ExecutionConfig(prepare="workers"))["prepare"] == "workers"


def test_workers_that_are_not_there_are_told(play: Preparation, caplog: pytest.LogCaptureFixture) -> None:
    alone = play.plan.model_copy(update={"execution": ExecutionConfig(prepare="workers")})
    for _ in range(2):
        stages.prepare(play.storage, alone)
    assert [record.getMessage() for record in caplog.records if "there are none" in record.getMessage()] == [
        "execution.prepare is workers, but with execution.fan_out=local there are none: this process prepares the corpus"
    ]


def test_what_an_ended_run_has_made_is_seen_before_the_next_list(
    play: Preparation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of 150,000 parts is some minutes old at times, and nothing is given out twice for it."""
    monkeypatch.setattr(PartsFolder, "list_parts", lambda folder: [])
    play.check(play.prepare(), Storage(str(tmp_path / "alone")))
    assert play.submitted == [[0, 1], [2, 3]]

"""What a run does with the files of an export whose flow runs end, die or are left by an earlier attempt; the fleet is played, the files are real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Failed

from flows.work_pool import exporting
from miniplm.config.run import RunConfig
from miniplm.errors import PoolWorkError
from miniplm.export.exporting import begin_export, finish_export
from miniplm.export.job import ExportJob
from miniplm.export.parts import ExportPlan
from miniplm.export.target import ExportTarget
from miniplm.progress import ignore_progress
from miniplm.run.plan import RunPlan
from miniplm.storage.root import digest_content
from tests.flows.played_parts import PlayedParts, install
from tests.miniplm.corpus_fixtures import save_tokenizer
from tests.miniplm.export.exported import Selected, make_selected, make_texts


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Selected:
    folder = tmp_path_factory.mktemp("selected")
    return make_selected(folder, save_tokenizer(folder / "tokenizer"), make_texts(30), sequence_length=24, sequences_per_shard=20)


class PlayedExport(PlayedParts):
    """Workers that make the files of one export."""

    def __init__(self, job: ExportJob, target: ExportTarget, cut: ExportPlan) -> None:
        super().__init__("export-parts", self.make)
        self.job, self.target, self.cut = job, target, cut

    def make(self, run: FlowRun, indices: Sequence[int]) -> State:
        for index in indices:
            self.job.make_part(self.target, self.cut.parts[index], index, len(self.cut.parts), ignore_progress)
        return Completed()


@pytest.fixture
def play(selected: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedExport]:
    """An export of five files or more that is begun, and its fleet."""
    job = selected.job("ds", tmp_path / "out", shard_tokens=300)
    target = ExportTarget(job.config.to)
    with begin_export(job, target, False, ignore_progress, by_others=True) as cut:
        assert len(cut.parts) >= 5
        played = PlayedExport(job, target, cut)
        install(played, monkeypatch)
        yield played
    for parameters in played.parameters:
        assert parameters["plan"]["execution"]["fan_out"] == "local"
        assert parameters["export_id"] == job.export_id


def export(played: PlayedExport, selected: Selected, shards_per_batch: int | str = 2) -> None:
    config = RunConfig.model_validate(
        {
            "name": "ours",
            "storage": selected.storage.root,
            "corpus": {"sources": [{"path": "/corpus/*.jsonl", "domain_name": "all"}], "tokenizer": "t"},
            "teacher": {"model": "m"},
            "reference": {"model": "r"},
            "execution": {"fan_out": "work-pool", "shards_per_batch": shards_per_batch, "stale_seconds": 60},
        }
    )
    parts = exporting.export_on_pool(RunPlan.of(config), played.job, played.target, played.cut)
    assert [part.part_index for part in parts] == list(range(len(played.cut.parts)))
    finish_export(played.job, played.target, parts, ignore_progress)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_go_out_in_batches_to_the_bytes_of_one_process(play: PlayedExport, selected: Selected, tmp_path: Path) -> None:
    export(play, selected)
    assert play.submitted[:2] == [[0, 1], [2, 3]]
    assert sorted(chain.from_iterable(play.submitted)) == list(range(len(play.cut.parts)))
    assert next(iter(play.runs.values())).name == "export ds of ours, files 0 to 1"
    selected.export("ds", tmp_path / "alone", shard_tokens=300)
    assert read_files(tmp_path / "out") == read_files(tmp_path / "alone")


def test_what_a_dead_or_deleted_flow_run_has_not_made_goes_to_others(play: PlayedExport, selected: Selected) -> None:
    def work(run: FlowRun, indices: list[int]) -> State | None:
        if indices == [0, 1]:
            play.make(run, [0])
            return None  # its machine is gone: no sign of life comes
        if indices == [2, 3]:
            play.make(run, [2])
            play.runs.pop(run.id)
            return Failed(message="deleted")
        return play.make(run, indices)

    play.work = work
    export(play, selected)
    assert [batch for batch in play.submitted if 1 in batch] == [[0, 1], [1]]
    assert sum(2 in batch for batch in play.submitted) == 1
    assert any("are given to another worker: export ds of ours, files 0 to 1 crashed" in warning for warning in play.warnings)


def test_flow_runs_of_an_earlier_attempt_are_waited_for(play: PlayedExport, selected: Selected) -> None:
    play.make(play.add([], []), [4])
    play.runs.clear()
    export_tag = f"export:{digest_content([play.job.export_id, play.target.url])}"
    theirs = play.add([0, 1, 2], [export_tag, "parent:gone"])
    play.work = lambda run, indices: Cancelled() if run.id == theirs.id else play.make(run, indices)
    export(play, selected, shards_per_batch="auto")
    assert sorted(chain.from_iterable(play.submitted)) == [index for index in range(len(play.cut.parts)) if index != 4]


def test_an_export_ends_with_the_reason_that_another_try_would_meet_too(play: PlayedExport, selected: Selected) -> None:
    for message, told in (
        ("Flow run encountered an exception: TokenizerError: no text", r"not made: export ds .* failed: TokenizerError: no text"),
        ("killed", r"not made, tried 3 times: .* failed: killed"),
    ):
        play.work = lambda run, indices, message=message: Failed(message=message)
        with pytest.raises(PoolWorkError, match=told):
            export(play, selected)
        play.runs.clear()

"""What a run does with the files of an export whose flow runs end, die or are left by an earlier attempt; the fleet is played, the files are real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Scheduled

from flows.work_pool import exporting, fleet, pulse
from miniplm.config.run import RunConfig
from miniplm.errors import PoolWorkError
from miniplm.export.exporting import begin_export, finish_export
from miniplm.export.job import ExportJob
from miniplm.export.parts import ExportPlan
from miniplm.export.target import ExportTarget
from miniplm.progress import ignore_progress
from miniplm.run.plan import RunPlan
from tests.miniplm.corpus_fixtures import save_tokenizer
from tests.miniplm.export.exported import Selected, make_selected, make_texts

Work = Callable[[FlowRun, list[int]], State | None]


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Selected:
    folder = tmp_path_factory.mktemp("selected")
    return make_selected(folder, save_tokenizer(folder / "tokenizer"), make_texts(30), sequence_length=24, sequences_per_shard=20)


class PlayedFleet:
    """Prefect and its workers: two seconds after it was submitted, a flow run is what `work` makes of it; None leaves it running."""

    def __init__(self, job: ExportJob, target: ExportTarget, cut: ExportPlan) -> None:
        self.job, self.target, self.cut = job, target, cut
        self.runs: dict[UUID, FlowRun] = {}
        self.submitted: list[list[int]] = []
        self.warnings: list[str] = []
        self.now = 1000.0
        self.work: Work = self.make

    def make(self, run: FlowRun, indices: Sequence[int]) -> State:
        for index in indices:
            self.job.make_part(self.target, self.cut.parts[index], index, len(self.cut.parts), ignore_progress)
        return Completed()

    def add(self, indices: list[int], tags: Sequence[str], name: str = "earlier") -> FlowRun:
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=name, parameters={"part_indices": indices}, tags=list(tags))
        self._set(run, Scheduled())
        return self.runs[run.id]

    def _set(self, run: FlowRun, state: State) -> None:
        self.runs[run.id] = run.model_copy(update={"state": state, "state_type": state.type, "state_name": state.name})

    def find_live(self, deployment: str, tags: Sequence[str]) -> list[FlowRun]:
        assert deployment == "export-parts"
        return [run for run in self.runs.values() if not run.state.is_final() and set(tags) <= set(run.tags)]

    def find_run(self, run_id: UUID) -> FlowRun | None:
        return self.runs.get(run_id)

    def submit(self, deployment: str, name: str, parameters: dict[str, Any], tags: Sequence[str]) -> FlowRun:
        assert parameters["plan"]["execution"]["fan_out"] == "local"
        assert parameters["export_id"] == self.job.export_id
        self.submitted.append(parameters["part_indices"])
        return self.add(parameters["part_indices"], tags, name)

    def crash(self, run: FlowRun, message: str) -> None:
        self._set(run, Crashed(message=message))

    def count_workers(self, deployment: str) -> tuple[int, str]:
        return 1, "gpu"

    def pause(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 5000, "it never ends"
        for run in self.find_live("export-parts", []):
            self._set(run, self.work(run, run.parameters["part_indices"]) or Running())


@pytest.fixture
def play(selected: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedFleet]:
    """An export of five files or more that is begun, and its fleet."""
    job = selected.job("ds", tmp_path / "out", shard_tokens=300)
    target = ExportTarget(job.config.to)
    with begin_export(job, target, False, ignore_progress, by_others=True) as cut:
        assert len(cut.parts) >= 5
        played = PlayedFleet(job, target, cut)
        for name in ("find_live", "find_run", "submit", "crash", "count_workers", "pause"):
            monkeypatch.setattr(fleet, name, getattr(played, name))

        @contextmanager
        def stage_progress(*given: Any, **options: Any) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(show=lambda done, detail: None)

        log = SimpleNamespace(warning=lambda text, *values: played.warnings.append(text % values))
        monkeypatch.setattr(exporting, "get_run_logger", lambda: log)
        monkeypatch.setattr(exporting, "this_run", SimpleNamespace(get_root_flow_run_id=lambda: "root"))
        monkeypatch.setattr(exporting, "stage_progress", stage_progress)
        monkeypatch.setattr(pulse, "time", SimpleNamespace(monotonic=lambda: played.now))
        monkeypatch.setattr(pulse, "find_last_heartbeat", lambda run: None)
        yield played


def export(played: PlayedFleet, selected: Selected, shards_per_batch: int | str = 2) -> None:
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


def test_files_go_out_in_batches_to_the_bytes_of_one_process(play: PlayedFleet, selected: Selected, tmp_path: Path) -> None:
    export(play, selected)
    assert play.submitted[:2] == [[0, 1], [2, 3]]
    assert sorted(chain.from_iterable(play.submitted)) == list(range(len(play.cut.parts)))
    assert next(iter(play.runs.values())).name == "export ds of ours, files 0 to 1"
    selected.export("ds", tmp_path / "alone", shard_tokens=300)
    assert read_files(tmp_path / "out") == read_files(tmp_path / "alone")


def test_what_a_dead_or_deleted_flow_run_has_not_made_goes_to_others(play: PlayedFleet, selected: Selected) -> None:
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
    assert any("1 files of the export are given to another worker: export ds of ours" in warning for warning in play.warnings)


def test_flow_runs_of_an_earlier_attempt_are_waited_for(play: PlayedFleet, selected: Selected) -> None:
    play.make(play.add([], []), [4])
    play.runs.clear()
    export_tag = f"export:{exporting.digest_content([play.job.export_id, play.target.url])}"
    theirs = play.add([0, 1, 2], [export_tag, "parent:gone"])
    play.work = lambda run, indices: Cancelled() if run.id == theirs.id else play.make(run, indices)
    export(play, selected, shards_per_batch="auto")
    assert sorted(chain.from_iterable(play.submitted)) == [index for index in range(len(play.cut.parts)) if index != 4]


def test_an_export_ends_with_the_reason_that_another_try_would_meet_too(play: PlayedFleet, selected: Selected) -> None:
    for message, told in (
        ("Flow run encountered an exception: TokenizerError: no text", r"not made: export ds .* failed: TokenizerError: no text"),
        ("killed", r"not made, tried 3 times: .* failed: killed"),
    ):
        play.work = lambda run, indices, message=message: Failed(message=message)
        with pytest.raises(PoolWorkError, match=told):
            export(play, selected)
        play.runs.clear()

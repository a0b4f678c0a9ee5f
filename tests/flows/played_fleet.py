"""A fleet that is played: flow runs, workers and the clock are here, the corpus, scores and notes of failures are real files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Crashed, Running, Scheduled

from flows.work_pool import fleet, listing, pulse, scoring
from miniplm.config.run import RunConfig
from miniplm.records.manifests import CorpusManifest, ModelEntry, ScoreShardManifest
from miniplm.run.plan import RunPlan
from miniplm.scoring.failures import record_failure
from miniplm.scoring.shards import ShardScoreState, check_score_shards
from miniplm.storage.root import Storage
from tests.miniplm.made_corpora import write_scores

ENTRY = ModelEntry(model_id="m", source="m", dtype="float32", weights_digest="sha256:w", num_parameters=1)

Work = Callable[[FlowRun, list[int]], State | None]


class Fleet:
    """Prefect and its workers: two seconds after it was taken, a flow run is what `work` makes of it; None leaves it running."""

    def __init__(self, storage: Storage, corpus: CorpusManifest, num_workers: int = 1) -> None:
        self.storage, self.corpus, self.num_workers = storage, corpus, num_workers
        self.shards = {shard.shard_index: shard for shard in corpus.split_shards("candidate")}
        self.runs: dict[UUID, FlowRun] = {}
        self.submitted: list[list[int]] = []
        self.crashed: list[str] = []
        self.hidden: list[UUID] = []
        self.on_lock: Callable[[], None] = lambda: None
        self.work: Work = self.score
        self.now = 1000.0
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.table_is_due = False

    # --- what workers do ---

    def score(self, run: FlowRun, indices: Sequence[int]) -> State:
        for index in indices:
            write_scores(self.storage, self.shards[index], "m", [1.5], [2])
        return Completed()

    def record(self, run: FlowRun, index: int, error: Exception) -> None:
        record_failure(self.storage, self.shards[index], ENTRY, error, "gpu-1", str(run.id))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 20_000, "it never ends"
        for run in [run for run in self.runs.values() if not run.state.is_final()][: max(self.num_workers, 1)]:
            state = self.work(run, run.parameters["shard_indices"]) or Running()
            if run.id in self.runs:
                self.set_state(run, state)

    def set_state(self, run: FlowRun, state: State) -> None:
        self.runs[run.id] = run.model_copy(update={"state": state, "state_type": state.type, "state_name": state.name})

    def add(self, indices: list[int], tags: Sequence[str] = ("run:other",), name: str = "theirs", **parameters: Any) -> FlowRun:
        """A flow run, of another run unless it is told otherwise."""
        of = {"storage": self.storage.root, "corpus_id": self.corpus.corpus_id, "shard_indices": indices}
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=name, parameters=of | parameters, tags=["model:m", *tags])
        self.set_state(run, Scheduled())
        return self.runs[run.id]

    # --- what `flows.work_pool.fleet` does ---

    def find_live(self, deployment: str, tags: Sequence[str]) -> list[FlowRun]:
        assert (deployment, tags) == ("score-shards", ["model:m"])
        return [run for run in self.runs.values() if not run.state.is_final() and run.id not in self.hidden]

    def submit(self, deployment: str, name: str, parameters: dict[str, Any], tags: Sequence[str]) -> FlowRun:
        self.submitted.append(parameters["shard_indices"])
        return self.add(tags=[tag for tag in tags if tag != "model:m"], name=name, indices=[], **parameters)

    def read_run(self, flow_run_id: UUID) -> FlowRun:
        if flow_run_id not in self.runs:
            raise ObjectNotFound(http_exc=Exception("Not Found"))
        return self.runs[flow_run_id]

    def crash(self, run: FlowRun, message: str) -> None:
        self.crashed.append(message)
        self.set_state(run, Crashed(message=message))

    def count_workers(self, deployment: str) -> tuple[int, str]:
        return self.num_workers, "gpu"

    @contextmanager
    def submission_lock(self) -> Iterator[None]:
        self.on_lock()
        yield


def install(played: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a played fleet in place of the server, the clock, and what people see."""
    for name in ("find_live", "submit", "read_run", "crash", "count_workers"):
        monkeypatch.setattr(fleet, name, getattr(played, name))
    monkeypatch.setattr(fleet, "pause", played.sleep, raising=False)
    clock = SimpleNamespace(monotonic=lambda: played.now, sleep=played.sleep)
    log = SimpleNamespace(
        warning=lambda text, *values: played.warnings.append(text % values),
        error=lambda text, *values: played.errors.append(text % values),
    )
    table = SimpleNamespace(is_due=lambda seconds: played.table_is_due, publish=lambda *rows: None)

    @contextmanager
    def stage_progress(*given: Any, **options: Any) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(show=lambda done, detail: None)

    monkeypatch.setattr(scoring, "submission_lock", played.submission_lock)
    monkeypatch.setattr(scoring, "time", clock)
    monkeypatch.setattr(pulse, "time", clock)
    monkeypatch.setattr(listing, "time", clock)
    monkeypatch.setattr(pulse, "find_last_heartbeat", lambda run: None)
    monkeypatch.setattr(scoring, "get_run_logger", lambda: log)
    monkeypatch.setattr(scoring, "this_run", SimpleNamespace(get_root_flow_run_id=lambda: "root"))
    monkeypatch.setattr(scoring, "stage_progress", stage_progress)
    monkeypatch.setattr(scoring, "ShardTable", lambda key, title: table)


def run_scoring(
    played: Fleet, shards_per_batch: int | str = 4, states: Sequence[ShardScoreState] | None = None
) -> list[ScoreShardManifest]:
    config = RunConfig.model_validate(
        {
            "name": "ours",
            "storage": played.storage.root,
            "corpus": {"sources": [{"path": "/corpus/*.jsonl", "domain_name": "all"}], "tokenizer": "t"},
            "teacher": {"model": "m"},
            "reference": {"model": "r"},
            "execution": {"fan_out": "work-pool", "shards_per_batch": shards_per_batch, "stale_seconds": 60},
        }
    )
    states = check_score_shards(played.storage, played.corpus, "m") if states is None else states
    return scoring.score_on_pool(Storage(config.storage), RunPlan.of(config), played.corpus, ENTRY, "teacher", states)

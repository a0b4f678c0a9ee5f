"""A fleet that is played, for work that is given out in parts: flow runs, workers and the clock are here, what they make are real files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Crashed, Running, Scheduled

from flows.work_pool import fleet, listing, parts, pulse

Work = Callable[[FlowRun, list[int]], State | None]


class PlayedParts:
    """Prefect and its workers: two seconds after it was submitted, a flow run is what `work` makes of it; None leaves it running."""

    def __init__(self, deployment: str, work: Work) -> None:
        self.deployment, self.work = deployment, work
        self.runs: dict[UUID, FlowRun] = {}
        self.submitted: list[list[int]] = []
        self.parameters: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.details: list[str] = []
        self.now = 1000.0

    def add(self, indices: list[int], tags: Sequence[str], name: str = "earlier") -> FlowRun:
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=name, parameters={"part_indices": indices}, tags=list(tags))
        self._set(run, Scheduled())
        return self.runs[run.id]

    def _set(self, run: FlowRun, state: State) -> None:
        self.runs[run.id] = run.model_copy(update={"state": state, "state_type": state.type, "state_name": state.name})

    def find_live(self, deployment: str, tags: Sequence[str]) -> list[FlowRun]:
        assert deployment == self.deployment
        return [run for run in self.runs.values() if not run.state.is_final() and set(tags) <= set(run.tags)]

    def find_run(self, run_id: UUID) -> FlowRun | None:
        return self.runs.get(run_id)

    def submit(self, deployment: str, name: str, parameters: dict[str, Any], tags: Sequence[str]) -> FlowRun:
        self.submitted.append(parameters["part_indices"])
        self.parameters.append(parameters)
        return self.add(parameters["part_indices"], tags, name)

    def crash(self, run: FlowRun, message: str) -> None:
        self._set(run, Crashed(message=message))

    def count_workers(self, deployment: str) -> tuple[int, str]:
        return 1, "gpu"

    def pause(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 5000, "it never ends"
        for run in self.find_live(self.deployment, []):
            self._set(run, self.work(run, run.parameters["part_indices"]) or Running())


def install(played: PlayedParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a played fleet in place of the server, the clock, and what people see."""
    for name in ("find_live", "find_run", "submit", "crash", "count_workers", "pause"):
        monkeypatch.setattr(fleet, name, getattr(played, name))

    @contextmanager
    def stage_progress(*given: Any, **options: Any) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(show=lambda done, detail: played.details.append(detail))

    @contextmanager
    def submission_lock() -> Iterator[None]:
        yield

    log = SimpleNamespace(warning=lambda text, *values: played.warnings.append(text % values))
    monkeypatch.setattr(parts, "get_run_logger", lambda: log)
    monkeypatch.setattr(parts, "this_run", SimpleNamespace(get_root_flow_run_id=lambda: "root"))
    monkeypatch.setattr(parts, "stage_progress", stage_progress)
    monkeypatch.setattr(parts, "submission_lock", submission_lock)
    for module in (pulse, listing):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: played.now))
    monkeypatch.setattr(pulse, "find_last_heartbeat", lambda run: None)

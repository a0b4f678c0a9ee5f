"""Carries the library's progress to whoever watches: the terminal, and a progress artifact in the Prefect UI."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect import get_run_logger

from miniplm.progress import Progress, ProgressCallback
from tasks.artifacts import LiveArtifact, make_key

_watchers: list[ProgressCallback] = []
_lock = threading.Lock()

_SECONDS_BETWEEN_UPDATES = 5.0
_SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def watch_progress(watcher: ProgressCallback) -> Iterator[None]:
    """Tells `watcher` of all progress made in this process while the block runs."""
    with _lock:
        _watchers.append(watcher)
    try:
        yield
    finally:
        with _lock:
            _watchers.remove(watcher)


def report_progress(progress: Progress) -> None:
    """Tells all watchers; the callback that tasks give to the library."""
    with _lock:
        watchers = list(_watchers)
    for watcher in watchers:
        watcher(progress)


class StageProgress:
    """The progress of a stage over many shards: the sum of what its shards have done, for terminal and UI.

    `done` counts what was there before; the rate is of what this process does.
    """

    def __init__(self, key: str, total: float, unit: str, done: float = 0.0, remark: str = "", artifact: str | None = None) -> None:
        self.key, self.total, self.unit = key, total, unit
        self.done_before = done
        self._parts: dict[str, float] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._updated = 0.0
        self._detail = ""
        self._artifact = LiveArtifact("progress", make_key(artifact or key))
        self._artifact.publish(self._percent(), f"{key}: {total:,.0f} {unit}")
        report_progress(Progress(key, done, total, unit, remark))

    def callback(self, part: str) -> Callable[[Progress], None]:
        """The callback for one shard; `part` names it. A shard that starts again counts anew."""

        def on_progress(progress: Progress) -> None:
            with self._lock:
                self._parts[part] = progress.done
                done = self.done
                self._detail = progress.detail
            detail = f"{part} {progress.detail}".rstrip()
            report_progress(Progress(self.key, done, self.total, self.unit, detail))
            self._update_artifact()

        return on_progress

    @property
    def done(self) -> float:
        return self.done_before + sum(self._parts.values())

    def show(self, done: float, detail: str) -> None:
        """Shows that `done` of the total is done, what was done before included: for work that others do."""
        with self._lock:
            self._parts = {"": done - self.done_before}
            self._detail = detail
        report_progress(Progress(self.key, done, self.total, self.unit, detail))
        self._update_artifact()

    def finish(self) -> None:
        """Writes the last state to the artifact."""
        self._update_artifact(force=True)

    def _percent(self) -> float:
        return 100.0 * self.done / self.total if self.total else 100.0

    def _update_artifact(self, force: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            if not force and now - self._updated < _SECONDS_BETWEEN_UPDATES:
                return
            self._updated = now
            rate = (self.done - self.done_before) / max(now - self._started, 1e-9)
            left = (self.total - self.done) / rate if rate > 0 else float("inf")
            percent, detail = self._percent(), self._detail
        description = f"{self.key}: {self.done:,.0f} of {self.total:,.0f} {self.unit}, {rate:,.0f} {self.unit}/s"
        if left not in (0.0, float("inf")):
            description += f", {left / 60:.1f} minutes left"
        if detail:
            description += f" ({detail})"
        self._artifact.publish(percent, description)


@contextmanager
def training_progress(key: str, artifact: str) -> Iterator[ProgressCallback]:
    """The callback of one training: to the terminal, to a progress artifact in the UI, and a line a minute to the log of the run.

    A training that is found finished makes no progress, and so no artifact.
    """
    stage: StageProgress | None = None
    log, logged = get_run_logger(), 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal stage, logged
        if stage is None:
            stage = StageProgress(key, progress.total or 0.0, progress.unit, progress.done, artifact=artifact)
        stage.show(progress.done, progress.detail)
        now = time.monotonic()
        if now - logged >= _SECONDS_BETWEEN_LINES or progress.done == progress.total:
            log.info("%s: %s of %s %s. %s", key, f"{progress.done:,.0f}", f"{stage.total:,.0f}", progress.unit, progress.detail)
            logged = now

    try:
        yield on_progress
    finally:
        if stage is not None:
            stage.finish()


_stages: dict[str, StageProgress] = {}


@contextmanager
def stage_progress(
    key: str, total: float, unit: str, done: float = 0.0, remark: str = "", artifact: str | None = None
) -> Iterator[StageProgress]:
    """Opens the progress of a stage, found by its tasks under `key` with `shard_callback`; `artifact` is its key in the UI."""
    stage = StageProgress(key, total, unit, done, remark, artifact)
    _stages[key] = stage
    try:
        yield stage
    finally:
        _stages.pop(key, None)
        stage.finish()


def shard_callback(key: str, part: str) -> ProgressCallback:
    """The callback of one shard of a stage; plain progress where the task runs outside its stage's process."""
    stage = _stages.get(key)
    return report_progress if stage is None else stage.callback(part)

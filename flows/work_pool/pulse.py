"""Tells the flow runs whose process is gone from those that are at work, by signs of life and this process' own clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType

from flows.work_pool.fleet import find_last_heartbeat

# A process that a worker starts, or an image that Kubernetes pulls, sends no heartbeat yet.
_PATIENCE_WITH_STARTS = 3.0
_CHECKS = 10


@dataclass
class _LastSign:
    sign: tuple[object, ...]
    seen_at: float
    asked_at: float


class Pulse:
    """Watches flow runs: dead is one that is pending or running and gave no new sign for `stale_seconds`.

    Signs are a change of state and heartbeat events, which flow runs of our deployments send every 30 seconds. Only
    their coming is timed, here, so that no machine's clock matters.
    """

    def __init__(self, stale_seconds: float) -> None:
        self._stale_seconds = stale_seconds
        self._signs: dict[UUID, _LastSign] = {}

    def is_dead(self, run: FlowRun) -> bool:
        state = run.state_type
        if state in (StateType.SCHEDULED, StateType.PAUSED) or run.state is None:
            self._signs.pop(run.id, None)
            return False
        now = time.monotonic()
        last = self._signs.get(run.id)
        if last is not None and last.sign[0] == state and now - last.asked_at < self._stale_seconds / _CHECKS:
            return False
        sign = (state, run.run_count, find_last_heartbeat(run))
        # Silence through which nobody listened, as the server was away, says nothing: a run that lives will beat again.
        if last is None or last.sign != sign or now - last.asked_at > self._stale_seconds / 2:
            self._signs[run.id] = _LastSign(sign, now, now)
            return False
        last.asked_at = now
        patience = self._stale_seconds * (_PATIENCE_WITH_STARTS if state == StateType.PENDING else 1.0)
        return now - last.seen_at > patience

    def forget(self, run: FlowRun) -> None:
        self._signs.pop(run.id, None)

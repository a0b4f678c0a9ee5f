"""Gives the parts of one piece of work to a pool, in batches, until each is made; what a worker that died has not made goes to others."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID

from prefect import get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run as this_run

from flows.work_pool import fleet
from flows.work_pool.batches import count_room, cut_batches
from flows.work_pool.failures import find_source_fault, is_lasting_message, strip_message
from flows.work_pool.listing import BoundedListing
from flows.work_pool.pulse import Pulse
from flows.work_pool.submission_lock import submission_lock
from miniplm.errors import PoolWorkError
from miniplm.run.plan import RunPlan
from tasks.progress import stage_progress

Part = TypeVar("Part")

_MOST_TRIES = 3
# A flow run takes some five seconds to start, an export's file of the default size twenty to write (docs/export.md): more parts hide no
# more of that, and a worker that dies has little to give back.
_MOST_PARTS = 16
_POLL_SECONDS = 2.0


class PoolParts(ABC, Generic[Part]):
    """Work whose parts are flow runs of `deployment` with the parameter `part_indices`; what is done of it is read anew at each look."""

    deployment: ClassVar[str]
    # Whether runs that know nothing of each other may give out the same work.
    is_shared: ClassVar[bool] = False

    def __init__(self, plan: RunPlan, work_tag: str, what: str, sizes: Sequence[int]) -> None:
        """`what` are parts to people ("files of the export to /out"); `sizes` of all parts are what progress counts."""
        self._plan, self._tag, self._what, self._sizes = plan, work_tag, what, sizes
        self._done: dict[int, Part] = {}
        self._tries: Counter[int] = Counter()
        self._watched: dict[UUID, FlowRun] = {}
        self._wanted: Sequence[int] = ()
        self._pulse = Pulse(plan.execution.stale_seconds)
        self._log = get_run_logger()
        self._parent_tag = f"parent:{this_run.get_root_flow_run_id()}"
        self._reminded = False
        self._listing = BoundedListing(self.list_made)

    def require_wanted(self) -> None:
        """Raises what ends the work where it is wanted no more."""
        return

    @abstractmethod
    def list_made(self) -> Collection[int]:
        """The parts that have a record, by its name alone."""

    @abstractmethod
    def find_part(self, part_index: int) -> Part | None:
        """A part that is made whole."""

    @abstractmethod
    def name_batch(self, batch: Sequence[int]) -> str: ...

    @abstractmethod
    def make_parameters(self, batch: Sequence[int]) -> dict[str, Any]: ...

    def make(self, wanted: Sequence[int], key: str, unit: str, artifact: str) -> Generator[Part]:
        """Gives each wanted part, in their order, once it is there; then waits for the flow runs that are still at work.

        Flow runs that an earlier attempt has left at work are waited for. Raises `PoolWorkError` where a part was tried three times, or failed
        for a reason that another try would meet too; a faulty source file is told by its own error.
        """
        self._wanted = wanted
        waiting = deque(wanted)
        total = sum(self._sizes[index] for index in wanted)
        self._take_in(self._list_made())
        with stage_progress(key, total, unit, self._count_done(), artifact=artifact) as progress:
            while True:
                # In this order: what no longer lives has laid down its parts before it ended.
                self._look()
                self._take_in(self._list_made())
                self._submit()
                detail = f"{len(self._done)} of {len(wanted)} parts, {len(self._watched)} batches on the pool"
                progress.show(self._count_done(), detail)
                looked_at = time.monotonic()
                while waiting and waiting[0] in self._done:
                    yield self._done[waiting.popleft()]
                    # Whoever takes a part may be long at work on it, and others are not to wait for that.
                    if time.monotonic() - looked_at >= _POLL_SECONDS:
                        break
                if not waiting and not self._watched:
                    return
                if not waiting or waiting[0] not in self._done:
                    fleet.pause(_POLL_SECONDS)

    def _list_made(self) -> Collection[int]:
        self.require_wanted()
        return self._listing.look()

    def _count_done(self) -> int:
        return sum(self._sizes[index] for index in self._done)

    def _take_in(self, made: Iterable[int]) -> None:
        """Takes in parts by their records: whether their bytes are whole is seen by who reads them."""
        for index in sorted(set(made) & set(self._wanted) - set(self._done)):
            part = self.find_part(index)
            if part is not None:
                self._done[index] = part

    def _look(self) -> None:
        """Takes in which flow runs live, and what those have made that ended since the last look."""
        live = {run.id: run for run in fleet.find_live(self.deployment, [self._tag])}
        for run in list(live.values()):
            if self._pulse.is_dead(run):
                seconds = self._plan.execution.stale_seconds
                fleet.crash(run, f"no sign of life for {seconds} s: its worker or the way to it is gone")
                self._watched[run.id] = live.pop(run.id)
        ended = [run_id for run_id in self._watched if run_id not in live]
        self._watched = live
        for run_id in ended:
            found = fleet.find_run(run_id)
            if found is None:
                continue  # deleted: what it has not made is free again
            if found.state is None or not found.state.is_final():
                self._watched[run_id] = found  # the list of the live ones moved on by a page while it was read
            else:
                self._settle(found)

    def _settle(self, run: FlowRun) -> None:
        """Judges why an ended flow run has not made all of its parts."""
        self._pulse.forget(run)
        indices = [index for index in run.parameters["part_indices"] if index in self._wanted]
        self.require_wanted()
        self._take_in(indices)  # a batch is few; the list of all may be some minutes old
        left = [index for index in indices if index not in self._done]
        if not left or run.state is None:
            return
        fault = find_source_fault(run.state.message)
        if fault is not None:
            raise fault
        told = f"{run.name} {(run.state_name or 'ended').lower()}: {strip_message(run.state.message)}"
        self._tries.update(left)
        ours = self._parent_tag in run.tags
        is_final = is_lasting_message(run.state.message) or (run.state.is_cancelled() and ours)
        if is_final or max(self._tries[index] for index in left) >= _MOST_TRIES:
            tries = "" if is_final else f", tried {_MOST_TRIES} times"
            raise PoolWorkError(
                f"{len(left)} {self._what} were not made{tries}: {told}. When the reason is gone retry this run: finished ones are kept"
            )
        self._log.warning("%d %s are given to another worker: %s", len(left), self._what, told)

    def _list_free(self) -> list[int]:
        taken = {index for run in self._watched.values() for index in run.parameters["part_indices"]}
        return [index for index in self._wanted if index not in self._done and index not in taken]

    def _submit(self) -> None:
        free = self._list_free()
        if not free:
            return
        num_workers, pool = fleet.count_workers(self.deployment)
        if not num_workers and not self._reminded:
            self._reminded = True
            self._log.warning(
                "no worker of pool %s is online; %d %s wait. Start one: `deployments/gpu-workers.sh --pool %s`",
                pool,
                len(free),
                self._what,
                pool,
            )
        if not count_room(num_workers, len(self._watched), has_measured=True):
            return
        if not self.is_shared:
            self._give_out(free, num_workers)
            return
        with submission_lock():
            # Another run may have taken some since. One that was made since the last list is found by who is to make it.
            self._look()
            self._take_in(self._list_made())
            self._give_out(self._list_free(), num_workers)

    def _give_out(self, free: Sequence[int], num_workers: int) -> None:
        wanted = self._plan.execution.shards_per_batch
        size = min(-(-len(free) // (2 * max(num_workers, 1))), _MOST_PARTS) if wanted == "auto" else int(wanted)
        for batch in cut_batches(free, size, count_room(num_workers, len(self._watched), has_measured=True)):
            tags = [self._tag, f"run:{self._plan.name}", self._parent_tag]
            run = fleet.submit(self.deployment, self.name_batch(batch), self.make_parameters(batch), tags)
            self._watched[run.id] = run

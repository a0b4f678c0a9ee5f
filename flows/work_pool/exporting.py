"""Gives the files of an export to a work pool, in batches, until each is made; what a worker that died has not made goes to others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run as this_run

from flows.export_parts import name_batch
from flows.work_pool import fleet
from flows.work_pool.batches import count_room, cut_batches
from flows.work_pool.failures import is_lasting_message, strip_message
from flows.work_pool.pulse import Pulse
from miniplm import __version__
from miniplm.errors import PoolWorkError
from miniplm.export.job import ExportJob
from miniplm.export.parts import ExportPlan
from miniplm.export.records import ExportedPart
from miniplm.export.target import ExportTarget
from miniplm.run.plan import RunPlan
from miniplm.storage.root import digest_content
from tasks.progress import stage_progress

DEPLOYMENT = "export-parts"

_MOST_TRIES = 3
# A flow run takes some five seconds to start, a file of the default size twenty to write (docs/export.md): more files hide no more of that,
# and a worker that dies has little to give back.
_MOST_PARTS = 16
_POLL_SECONDS = 2.0


def export_on_pool(plan: RunPlan, job: ExportJob, target: ExportTarget, cut: ExportPlan) -> list[ExportedPart]:
    """Has workers make the parts that are not made yet; returns all. The caller holds the target, so that nobody else gives out its parts.

    Flow runs that an earlier attempt has left at work are waited for. Raises `PoolWorkError` where a part was tried three times, or
    failed for a reason that another try would meet too.
    """
    return _PoolExport(plan, job, target, cut).run()


class _PoolExport:
    def __init__(self, plan: RunPlan, job: ExportJob, target: ExportTarget, cut: ExportPlan) -> None:
        self._plan, self._job, self._target, self._cut = plan, job, target, cut
        self._done: dict[int, ExportedPart] = {}
        self._tries: Counter[int] = Counter()
        self._watched: dict[UUID, FlowRun] = {}
        self._pulse = Pulse(plan.execution.stale_seconds)
        self._log = get_run_logger()
        # The same export may go to two targets.
        self._tag = f"export:{digest_content([job.export_id, target.url])}"
        self._parent_tag = f"parent:{this_run.get_root_flow_run_id()}"
        self._reminded = False

    def run(self) -> list[ExportedPart]:
        parts = self._cut.parts
        total = sum(part.num_tokens for part in parts)
        made = self._take_in(range(len(parts)))
        before = sum(parts[index].num_tokens for index in self._done)
        with stage_progress(self._job.name, total, "tokens", before, artifact=self._job.export_id) as progress:
            while True:
                self._look()
                self._submit(made)
                made = [index for index in self._target.list_parts() if index < len(parts)]
                detail = f"{len(made)} of {len(parts)} files, {len(self._watched)} batches on the pool"
                progress.show(sum(parts[index].num_tokens for index in made), detail)
                if not self._watched:
                    return [self._done[index] for index in range(len(parts))]
                fleet.pause(_POLL_SECONDS)

    def _take_in(self, indices: Sequence[int], made: Sequence[int] | None = None) -> list[int]:
        """Takes in which of the parts are made, by their records and the sizes of their files: their digests are for when all is read back.

        `made`: those with a record as a look a moment ago told; returned where it is looked for here.
        """
        made = self._target.list_parts() if made is None else made
        for index in sorted(set(indices) & set(made)):
            part = self._target.find_part(self._job.export_id, index, by_size=True)
            if part is not None:
                self._done[index] = part
        return list(made)

    def _look(self) -> None:
        """Takes in which flow runs live, and what those have made that ended since the last look."""
        live = {run.id: run for run in fleet.find_live(DEPLOYMENT, [self._tag])}
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
        indices = run.parameters["part_indices"]
        self._take_in(indices)
        left = [index for index in indices if index not in self._done]
        if not left or run.state is None:
            return
        told = f"{run.name} {(run.state_name or 'ended').lower()}: {strip_message(run.state.message)}"
        self._tries.update(left)
        ours = self._parent_tag in run.tags
        is_final = is_lasting_message(run.state.message) or (run.state.is_cancelled() and ours)
        if is_final or max(self._tries[index] for index in left) >= _MOST_TRIES:
            tries = "" if is_final else f", tried {_MOST_TRIES} times"
            raise PoolWorkError(
                f"{len(left)} files of the export to {self._target.url} were not made{tries}: {told}. When the reason is gone retry this run: "
                "finished files are kept"
            )
        self._log.warning("%d files of the export are given to another worker: %s", len(left), told)

    def _submit(self, made: Sequence[int]) -> None:
        taken = {index for run in self._watched.values() for index in run.parameters["part_indices"]}
        # Of a flow run that was deleted, or of an earlier attempt.
        self._take_in([index for index in made if index not in self._done and index not in taken], made)
        free = [index for index in range(len(self._cut.parts)) if index not in self._done and index not in taken]
        if not free:
            return
        num_workers, pool = fleet.count_workers(DEPLOYMENT)
        if not num_workers and not self._reminded:
            self._reminded = True
            self._log.warning(
                "no worker of pool %s is online; %d files of the export wait. Start one: `deployments/gpu-workers.sh --pool %s`",
                pool,
                len(free),
                pool,
            )
        wanted = self._plan.execution.shards_per_batch
        size = min(-(-len(free) // (2 * max(num_workers, 1))), _MOST_PARTS) if wanted == "auto" else int(wanted)
        for batch in cut_batches(free, size, count_room(num_workers, len(self._watched), has_measured=True)):
            name = name_batch(self._job.config.format, self._plan.name, batch)
            run = fleet.submit(
                DEPLOYMENT, name, self._make_parameters(batch), [self._tag, f"run:{self._plan.name}", self._parent_tag]
            )
            self._watched[run.id] = run

    def _make_parameters(self, batch: list[int]) -> dict[str, Any]:
        return {
            "plan": self._plan.for_worker().as_json(),
            "corpus_id": self._job.corpus.corpus_id,
            "selection_id": self._job.selection.selection_id,
            "export": self._job.config.model_dump(mode="json"),
            "export_id": self._job.export_id,
            "part_indices": batch,
            "version": __version__,
        }

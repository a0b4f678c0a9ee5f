"""Has the files of an export made by a work pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.export_parts import name_batch
from flows.work_pool.parts import PoolParts
from miniplm import __version__
from miniplm.export.job import ExportJob
from miniplm.export.parts import ExportPlan
from miniplm.export.records import ExportedPart
from miniplm.export.target import ExportTarget
from miniplm.run.plan import RunPlan
from miniplm.storage.root import digest_content


def export_on_pool(plan: RunPlan, job: ExportJob, target: ExportTarget, cut: ExportPlan) -> list[ExportedPart]:
    """Has workers make the parts that are not made yet; returns all. The caller holds the target, so that nobody else gives out its parts.

    Raises what `PoolParts.make` raises.
    """
    return list(_PoolExport(plan, job, target, cut).make(range(len(cut.parts)), job.name, "tokens", job.export_id))


class _PoolExport(PoolParts[ExportedPart]):
    deployment = "export-parts"

    def __init__(self, plan: RunPlan, job: ExportJob, target: ExportTarget, cut: ExportPlan) -> None:
        # The same export may go to two targets.
        tag = f"export:{digest_content([job.export_id, target.url])}"
        super().__init__(plan, tag, f"files of the export to {target.url}", [part.num_tokens for part in cut.parts])
        self._job, self._target = job, target

    def list_made(self) -> list[int]:
        return self._target.list_parts()

    def find_part(self, part_index: int) -> ExportedPart | None:
        # By the sizes of its files: their digests are for when all is read back.
        return self._target.find_part(self._job.export_id, part_index, by_size=True)

    def name_batch(self, batch: Sequence[int]) -> str:
        return name_batch(self._job.config.format, self._plan.name, batch)

    def make_parameters(self, batch: Sequence[int]) -> dict[str, Any]:
        return {
            "plan": self._plan.for_worker().as_json(),
            "corpus_id": self._job.corpus.corpus_id,
            "selection_id": self._job.selection.selection_id,
            "export": self._job.config.model_dump(mode="json"),
            "export_id": self._job.export_id,
            "part_indices": list(batch),
            "version": __version__,
        }

"""Keeps the record of a run up to date while it goes on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from miniplm import layout
from miniplm.errors import RunError
from miniplm.records.run import RunRecord, StageRecord, StudentRecord, load_run, save_run
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage
from miniplm.versions import list_versions


class RunLog:
    """The growing record of a run; each addition is saved at the storage root at once, the first when a stage is done.

    A stage that found its work finished keeps the seconds that an earlier record of this run measured for it,
    so that a report tells what the work took, not how long it took to find it.
    """

    def __init__(self, storage: Storage, plan: RunPlan) -> None:
        self._storage = storage
        self._earlier = _load_earlier(storage, plan.name)
        # A report of an earlier configuration must not be taken for this one's, should this run die before its own.
        storage.delete(layout.run_report(plan.name))
        self.record = RunRecord(
            run_name=plan.name,
            config=plan.config,
            versions=list_versions(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def set_plan(self, plan: RunPlan) -> None:
        """Records the configuration anew, with what a fleet's workers have made explicit."""
        self._save(config=plan.config)

    def add_stage(self, stage: StageRecord, **results: Any) -> None:
        """Adds a finished stage and the ids that it gave."""
        if stage.reused and (earlier := self._earlier.get((stage.name, stage.num_units))) is not None:
            stage = stage.model_copy(update={"seconds": earlier.seconds})
        self._save(stages=(*self.record.stages, stage), **results)

    def add_student(self, name: str, student: StudentRecord) -> None:
        self._save(students={**self.record.students, name: student})

    def finish(self) -> None:
        self._save(finished_at=datetime.now(UTC).isoformat(timespec="seconds"))

    def _save(self, **changes: Any) -> None:
        self.record = self.record.model_copy(update=changes)
        save_run(self._storage, self.record)


def _load_earlier(storage: Storage, run_name: str) -> dict[tuple[str, int], StageRecord]:
    try:
        record = load_run(storage, run_name)
    except RunError:
        return {}
    return {(stage.name, stage.num_units): stage for stage in record.stages}

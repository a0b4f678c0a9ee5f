"""Makes the files of an export: one open export in this process serves all its parts."""

from __future__ import annotations

from prefect import task

from miniplm.export.job import ExportJob
from miniplm.export.parts import ExportPlan
from miniplm.export.records import ExportedPart
from miniplm.export.target import ExportTarget
from tasks.retries import TASK_OPTIONS
from tasks.served import Served

# By the URL of the target.
open_exports = Served[tuple[ExportJob, ExportTarget, ExportPlan]]()


@task(name="export-part", task_run_name="{stage}: file {part_index:05d}", **TASK_OPTIONS)
def export_part(target_url: str, part_index: int, stage: str) -> ExportedPart:
    """Makes one part of an export that is open in this process, or returns its record where it is made already."""
    message = f"file {part_index} of the export to {target_url} was stopped before it was done; nothing of it is kept"
    job, target, plan = open_exports.find(target_url)
    on_progress = open_exports.callback(target_url, stage, f"file {part_index:05d}", message)
    return job.make_part(target, plan.parts[part_index], part_index, len(plan.parts), on_progress)

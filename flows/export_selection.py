"""A selection becomes files for other people's trainers: each file a task, here or on a pool, then all of them read back and published."""

from __future__ import annotations

import time

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.export_parts import make_parts
from flows.work_pool.exporting import export_on_pool
from miniplm.config.exports import ExportConfig
from miniplm.corpus.reader import load_corpus
from miniplm.export.exporting import begin_export, finish_export
from miniplm.export.records import ExportManifest
from miniplm.export.target import ExportTarget
from miniplm.records.run import StageRecord
from miniplm.run.exports import find_export, plan_export
from miniplm.run.pinning import make_export_absolute
from miniplm.run.plan import RunPlan
from miniplm.run.stages import record_export
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage
from tasks.progress import report_progress


# Two files at a time: one is written, the shards of the other are read meanwhile.
@flow(
    name="export-selection",
    flow_run_name="export {export.format} of {plan.name}",
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # type: ignore[arg-type]
)
def export_selection(
    plan: RunPlan, corpus_id: str, selection_id: str, export: ExportConfig, resume: bool = True
) -> tuple[ExportManifest, StageRecord]:
    """Exports the selection of a run, in this process or by the workers of its pool; what is finished of it is kept.

    Args:
        plan: the run's plan
        corpus_id: the prepared corpus
        selection_id: the selection, made of that corpus
        export: format, target and settings
        resume: go on with this export where it is unfinished at the target; else that is refused
    """
    started, storage = time.monotonic(), Storage(plan.storage)
    if plan.is_on_work_pool:
        export = make_export_absolute(export)
    job = plan_export(storage, plan, load_corpus(storage, corpus_id), load_selection(storage, selection_id), export)
    manifest = find_export(job)
    reused = manifest is not None
    if manifest is None:
        target = ExportTarget(job.config.to)
        with begin_export(job, target, resume, report_progress, by_others=plan.is_on_work_pool) as cut:
            if plan.is_on_work_pool:
                parts = export_on_pool(plan, job, target, cut)
            else:
                parts = make_parts(job, target, cut, range(len(cut.parts)))
            manifest = finish_export(job, target, parts, report_progress)
    return manifest, record_export(job.name, time.monotonic() - started, reused, manifest)

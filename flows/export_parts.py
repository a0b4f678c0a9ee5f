"""Files of an export, each a task: all of them in the process of a run, or a batch of them on a worker of a pool."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import flow
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.work_pool.batches import describe_indices
from miniplm import __version__
from miniplm.config.exports import ExportConfig
from miniplm.corpus.reader import load_corpus
from miniplm.errors import ConfigError
from miniplm.export.job import ExportJob
from miniplm.export.parts import ExportPlan
from miniplm.export.records import ExportedPart
from miniplm.export.target import ExportTarget
from miniplm.run.exports import plan_export
from miniplm.run.plan import RunPlan
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage
from tasks.parts import export_part, open_exports
from tasks.progress import stage_progress
from tasks.workers import prepare_worker

# Prefect's server loses task runs when ten thousand come at once; two thousand were complete.
_PARTS_AT_ONCE = 1000


def name_batch(format: str, run_name: str, part_indices: Sequence[int]) -> str:
    """The flow run's name, e.g. `export jsonl of mine, files 16 to 31`."""
    return f"export {format} of {run_name}, {describe_indices(part_indices, 'file')}"


def _name_run() -> str:
    given = flow_run.get_parameters()
    return name_batch(given["export"].format, given["plan"].name, given["part_indices"])


# Two files at a time: one is written, the shards of the other are read meanwhile.
@flow(
    name="export-parts",
    flow_run_name=_name_run,
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # type: ignore[arg-type]
)
def export_parts(
    plan: RunPlan,
    corpus_id: str,
    selection_id: str,
    export: ExportConfig,
    export_id: str,
    part_indices: Sequence[int],
    version: str = __version__,
) -> list[int]:
    """Makes some files of an export aside at its target, but those that are made already; returns their numbers.

    Raises `ConfigError` where this worker would make another export than the run, or does not see what the run has begun.

    Args:
        plan: the run's plan
        corpus_id: the prepared corpus
        selection_id: the selection, made of that corpus
        export: format, target and settings
        export_id: the export, as the run names it by its content
        part_indices: the files of this batch, from 0
        version: version of miniplm that gives the work; a worker of another one refuses
    """
    prepare_worker(version)
    storage = Storage(plan.storage)
    job = plan_export(storage, plan, load_corpus(storage, corpus_id), load_selection(storage, selection_id), export)
    if job.export_id != export_id:
        raise ConfigError(
            f"this worker would make export {job.export_id}, the run means {export_id}; is the tokenizer of the export the same on all machines?"
        )
    target = ExportTarget(job.config.to)
    cut = target.find_plan()
    if cut is None or cut.export_id != export_id:
        raise ConfigError(
            f"this worker does not see export {export_id} begun at {target.url}; do all machines see the same folder?"
        )
    return [part.part_index for part in make_parts(job, target, cut, part_indices)]


def make_parts(job: ExportJob, target: ExportTarget, cut: ExportPlan, part_indices: Sequence[int]) -> list[ExportedPart]:
    """Makes files of an export as tasks of the flow that calls, in this process."""
    parts: list[ExportedPart] = []
    total = sum(cut.parts[index].num_tokens for index in part_indices)
    work = (job, target, cut)
    with open_exports.serve(target.url, work), stage_progress(job.name, total, "tokens", artifact=job.export_id):
        for start in range(0, len(part_indices), _PARTS_AT_ONCE):
            indices = part_indices[start : start + _PARTS_AT_ONCE]
            futures = [export_part.submit(target.url, index, job.name) for index in indices]
            wait(futures)
            parts += [future.result() for future in futures]
    return parts

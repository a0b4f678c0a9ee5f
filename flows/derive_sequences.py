"""Sequences are encoded anew for a student's own tokenizer, or gone on with by the teacher: what is missing of them, once for all students."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from miniplm import layout
from miniplm.corpus.reader import load_corpus
from miniplm.derived.sets import DerivedJob, check_shards, finish_set, require_sources
from miniplm.run.plan import RunPlan
from miniplm.run.students import list_pending_jobs
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage
from tasks.derived import derive_shard, load_maker, open_job
from tasks.progress import stage_progress

# Prefect's server loses task runs when ten thousand come at once; two thousand were complete.
_SHARDS_AT_ONCE = 1000


# Two shards at a time: one computes, the other is read or written meanwhile.
@flow(
    name="derive-sequences",
    flow_run_name="derive sequences for {student_name} of {plan.name}",
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # type: ignore[arg-type]
)
def derive_sequences(plan: RunPlan, corpus_id: str, selection_id: str, student_name: str) -> list[str]:
    """Makes what a student's training and measurement need, in this process; returns the ids of the sets, whole now.

    A shard that fails does not stop its neighbours; its error is raised when they are done.

    Args:
        plan: the run's plan
        corpus_id: the prepared corpus
        selection_id: the selection, made of that corpus
        student_name: which student of the configuration
    """
    storage = Storage(plan.storage)
    corpus, selection = load_corpus(storage, corpus_id), load_selection(storage, selection_id)
    jobs = list_pending_jobs(storage, plan, corpus, selection, student_name)
    for job in jobs:
        _derive(storage, job, plan.scoring.device)
    return [job.derived_id for job in jobs]


def _derive(storage: Storage, job: DerivedJob, device: str) -> None:
    sources = require_sources(storage, job)
    states = check_shards(storage, job.derived_id, sources)
    manifests = {state.shard_index: state.manifest for state in states if state.manifest is not None}
    for state in states:
        if state.state == "broken":
            get_run_logger().warning(
                "%s of %s is made again: %s", layout.shard_name(state.shard_index), job.derived_id, state.reason
            )
    todo = [state.shard_index for state in states if state.manifest is None]
    if todo:
        total = sum(job.count_units(source) for source in sources)
        done = total - sum(job.count_units(sources[index]) for index in todo)
        with open_job(storage, job, sources, device), stage_progress(job.name, total, job.unit, done, artifact=job.derived_id):
            load_maker(storage.root, job.derived_id)
            for start in range(0, len(todo), _SHARDS_AT_ONCE):
                futures = {
                    index: derive_shard.submit(storage.root, job.derived_id, index, job.name)
                    for index in todo[start : start + _SHARDS_AT_ONCE]
                }
                wait(list(futures.values()))
                manifests |= {index: future.result() for index, future in futures.items()}
    finish_set(storage, job, [manifests[index] for index in range(len(sources))])

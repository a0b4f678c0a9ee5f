"""A selection and a student's configuration become a trained student, the sequences that it needs of its own included."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.work_pool.single import run_on_pool
from flows.work_pool.subflows import cancel_subflows, crash_subflows, tagged_subflows
from miniplm import __version__, layout
from miniplm.corpus.reader import open_corpus
from miniplm.derived.sets import DerivedJob, check_shards, finish_set, require_sources
from miniplm.records.manifests import CorpusManifest
from miniplm.records.run import StageRecord, StudentRecord
from miniplm.records.selections import SelectionManifest
from miniplm.run.plan import RunPlan
from miniplm.run.student_records import find_student, is_evaluated, list_needed_sets
from miniplm.run.students import list_pending_jobs
from miniplm.run.trainings import know_student
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage
from tasks import stages, workers
from tasks.derived import derive_shard, load_maker, open_job
from tasks.progress import stage_progress

# Prefect's server loses task runs when ten thousand come at once; two thousand were complete.
_SHARDS_AT_ONCE = 1000


@flow(
    name="train-student",
    flow_run_name="train {student_name} of {plan.name}",
    on_cancellation=[cancel_subflows],
    on_crashed=[crash_subflows],
)
def train_student(
    plan: RunPlan,
    corpus_id: str,
    selection_id: str,
    student_name: str,
    evaluate: bool = False,
    version: str = __version__,
) -> tuple[StudentRecord, StageRecord]:
    """Trains one student of a run, from its last checkpoint; on a work pool a worker does, and measures it.

    Args:
        plan: the run's plan
        corpus_id: the prepared corpus
        selection_id: the selection, made of that corpus
        student_name: which student of the configuration
        evaluate: measure the student on the held-out split when it is trained
        version: version of miniplm that gives the work; a worker of another one refuses
    """
    workers.prepare_worker(version)
    storage, corpus = open_corpus(plan.storage, corpus_id)
    selection = load_selection(storage, selection_id)
    if plan.is_on_work_pool:
        _train_on_pool(storage, plan, corpus, selection, student_name)
    elif list_needed_sets(storage, plan, corpus, selection, student_name):
        with tagged_subflows(plan.name):
            derive_sequences(plan, corpus_id, selection_id, student_name)
    record, stage = stages.train_student(storage, plan, corpus, selection, student_name)
    if evaluate:
        record, _ = stages.evaluate_student(storage, plan, corpus, student_name, record)
    return record, stage


def _train_on_pool(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> None:
    """Has a worker train the student, and measure it where the run wants that, unless both are done."""
    found = find_student(storage, plan, corpus, selection, student_name)
    if found is not None and (not plan.evaluation.measures_losses or is_evaluated(storage, plan, corpus, student_name, found)):
        return
    parameters = {
        "plan": plan.for_worker().as_json(),
        "corpus_id": corpus.corpus_id,
        "selection_id": selection.selection_id,
        "student_name": student_name,
        "evaluate": plan.evaluation.measures_losses,
        "version": __version__,
    }
    tag = f"training:{know_student(storage, plan, corpus, selection, student_name).training_id}"
    run_on_pool("train-student", f"train {student_name} of {plan.name}", parameters, plan, tag)


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
    storage, corpus = open_corpus(plan.storage, corpus_id)
    selection = load_selection(storage, selection_id)
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

"""The reference becomes the teacher by target text, for runs whose configuration says so (`teacher.tuned_on`)."""

from __future__ import annotations

from prefect import flow

from flows.work_pool.single import run_on_pool
from miniplm import __version__
from miniplm.corpus.reader import open_corpus
from miniplm.records.manifests import ModelEntry
from miniplm.records.run import StageRecord
from miniplm.run.model_entries import find_tuned
from miniplm.run.outside_texts import name_target, prepare_target
from miniplm.run.plan import RunPlan
from miniplm.run.trainings import know_teacher
from tasks import stages, workers
from tasks.progress import report_progress


@flow(name="tune-teacher", flow_run_name="tune teacher of {plan.name}")
def tune_teacher(
    plan: RunPlan,
    corpus_id: str,
    reference: ModelEntry,
    version: str = __version__,
) -> tuple[RunPlan, StageRecord]:
    """Provides the teacher of a run that tunes the reference on target text; on a work pool a worker tunes it.

    Args:
        plan: the run's plan
        corpus_id: the prepared corpus
        reference: the reference model, as its run names it
        version: version of miniplm that gives the work; a worker of another one refuses
    """
    workers.prepare_worker(version)
    storage, corpus = open_corpus(plan.storage, corpus_id)
    if plan.is_on_work_pool:
        prepare_target(storage, plan, report_progress)
        plan = name_target(storage, plan)
        if find_tuned(storage, plan, corpus) is None:
            parameters = {
                "plan": plan.for_worker().as_json(),
                "corpus_id": corpus_id,
                "reference": reference.as_json(),
                "version": __version__,
            }
            tag = f"training:{know_teacher(storage, plan, reference).training_id}"
            run_on_pool("tune-teacher", f"tune teacher of {plan.name}", parameters, plan, tag)
    return stages.provide_teacher(storage, plan, corpus, reference)

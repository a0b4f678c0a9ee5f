"""The reference split becomes the reference model, unless one is given or trained already."""

from __future__ import annotations

from prefect import flow

from flows.work_pool.single import run_on_pool
from miniplm import __version__
from miniplm.corpus.reader import open_corpus
from miniplm.records.manifests import ModelEntry
from miniplm.records.run import StageRecord
from miniplm.run.model_entries import find_reference
from miniplm.run.plan import RunPlan
from miniplm.run.trainings import know_reference
from tasks import stages, workers


@flow(name="train-reference", flow_run_name="train reference of {corpus_id}")
def train_reference(
    plan: RunPlan,
    corpus_id: str,
    version: str = __version__,
) -> tuple[ModelEntry, StageRecord]:
    """Provides the reference model of a run; on a work pool a worker trains it.

    Args:
        plan: the run's plan
        corpus_id: the prepared corpus
        version: version of miniplm that gives the work; a worker of another one refuses
    """
    workers.prepare_worker(version)
    storage, corpus = open_corpus(plan.storage, corpus_id)
    if plan.is_on_work_pool and find_reference(storage, plan, corpus) is None:
        parameters = {"plan": plan.for_worker().as_json(), "corpus_id": corpus_id, "version": __version__}
        tag = f"training:{know_reference(storage, plan, corpus).training_id}"
        run_on_pool("train-reference", f"train reference of {corpus_id}", parameters, plan, tag)
    return stages.provide_reference(storage, plan, corpus)

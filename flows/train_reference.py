"""The reference split becomes the reference model, unless one is given or trained already."""

from __future__ import annotations

from prefect import flow

from flows.work_pool.single import run_on_pool
from miniplm import __version__
from miniplm.artifacts import ModelEntry
from miniplm.config import RunConfig, config_as_dict
from miniplm.corpus.reader import load_corpus
from miniplm.pinning import for_worker
from miniplm.run_record import StageRecord
from miniplm.scorers import find_reference, plan_reference
from miniplm.storage import Storage
from tasks import models, workers


@flow(name="train-reference", flow_run_name="train reference of {corpus_id}")
def train_reference(
    config: RunConfig,
    corpus_id: str,
    version: str = __version__,
) -> tuple[ModelEntry, StageRecord]:
    """Provides the reference model of a run; on a work pool a worker trains it.

    Args:
        config: the run's configuration
        corpus_id: the prepared corpus
        version: version of miniplm that gives the work; a worker of another one refuses
    """
    workers.prepare_worker(version)
    if config.is_on_work_pool:
        storage = Storage(config.storage)
        corpus = load_corpus(storage, corpus_id)
        if find_reference(storage, config, corpus) is None:
            parameters = {"config": config_as_dict(for_worker(config)), "corpus_id": corpus_id, "version": __version__}
            tag = f"training:{plan_reference(config, corpus).training_id}"
            run_on_pool("train-reference", f"train reference of {corpus_id}", parameters, config, tag)
    return models.provide_reference(config, corpus_id)

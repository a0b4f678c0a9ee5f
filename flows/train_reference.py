"""The reference split becomes the reference model, unless one is given or trained already."""

from __future__ import annotations

from prefect import flow

from miniplm.artifacts import ModelEntry
from miniplm.config import RunConfig
from miniplm.run_record import StageRecord
from tasks import models


@flow(name="train-reference", flow_run_name="train reference of {corpus_id}")
def train_reference(config: RunConfig, corpus_id: str) -> tuple[ModelEntry, StageRecord]:
    """Provides the reference model of a run."""
    return models.provide_reference(config, corpus_id)

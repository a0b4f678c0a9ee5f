"""Compares the dtypes that the two models score in with float32, before they may score: the fidelity gate."""

from __future__ import annotations

from prefect import flow

from miniplm.artifacts import Calibration, ModelEntry
from miniplm.config import RunConfig
from tasks import scoring


@flow(name="calibrate-dtypes", flow_run_name="calibrate {teacher.dtype} and {reference.dtype} on {corpus_id}")
def calibrate_dtypes(
    config: RunConfig, corpus_id: str, teacher: ModelEntry, reference: ModelEntry, num_sequences: int
) -> Calibration:
    """Scores `num_sequences` candidates in both precisions; what it says is judged by whoever uses it."""
    return scoring.calibrate_dtypes(config.storage, corpus_id, teacher, reference, config.scoring, num_sequences)

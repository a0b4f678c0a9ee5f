"""The scores of both models become a selection."""

from __future__ import annotations

import time

from prefect import flow

from miniplm.artifacts import ModelEntry
from miniplm.config import RunConfig
from miniplm.run_record import StageRecord
from tasks import selections


@flow(name="select-sequences", flow_run_name="select {config.selection.ratio} of {corpus_id}")
def select_sequences(config: RunConfig, corpus_id: str, teacher: ModelEntry, reference: ModelEntry) -> tuple[str, StageRecord]:
    """Selects the sequences of a run; returns the selection's id."""
    started = time.monotonic()
    manifest, reused = selections.select_sequences(config.storage, corpus_id, teacher, reference, config.selection)
    return manifest.selection_id, StageRecord(
        name="select", seconds=time.monotonic() - started, reused=reused, num_units=manifest.num_candidates, unit="sequences"
    )

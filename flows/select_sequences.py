"""The scores of both models become a selection."""

from __future__ import annotations

import time

from prefect import flow

from miniplm.artifacts import ModelEntry, SelectionManifest
from miniplm.run_plan import RunPlan
from miniplm.run_record import StageRecord
from tasks import selections


@flow(name="select-sequences", flow_run_name="select {plan.selection.ratio} of {corpus_id}")
def select_sequences(
    plan: RunPlan, corpus_id: str, teacher: ModelEntry, reference: ModelEntry
) -> tuple[SelectionManifest, StageRecord]:
    """Selects the sequences of a run."""
    started = time.monotonic()
    manifest, reused = selections.select_sequences(plan.storage, corpus_id, teacher, reference, plan.selection)
    return manifest, StageRecord(
        name="select", seconds=time.monotonic() - started, reused=reused, num_units=manifest.num_candidates, unit="sequences"
    )

"""The scores of both models become a selection."""

from __future__ import annotations

from prefect import flow

from miniplm.artifacts import ModelEntry, SelectionManifest
from miniplm.run_plan import RunPlan
from miniplm.run_record import StageRecord
from tasks import selections


@flow(name="select-sequences", flow_run_name="select {plan.selection.ratio} of {corpus_id}")
def select_sequences(plan: RunPlan, corpus_id: str, reference: ModelEntry) -> tuple[SelectionManifest, StageRecord]:
    """Selects the sequences of a run."""
    return selections.select_sequences(plan, corpus_id, reference)

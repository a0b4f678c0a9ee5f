"""Documents become sequences in shards."""

from __future__ import annotations

from prefect import flow

from miniplm.artifacts import CorpusManifest
from miniplm.run_plan import RunPlan
from miniplm.run_record import StageRecord
from tasks import corpora


@flow(name="prepare-corpus", flow_run_name="prepare {plan.name}")
def prepare_corpus(plan: RunPlan) -> tuple[CorpusManifest, StageRecord]:
    """Prepares the corpus of a run."""
    return corpora.prepare_corpus(plan)

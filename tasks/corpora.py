"""Prepares a corpus."""

from __future__ import annotations

from prefect import task

from miniplm import stages
from miniplm.artifacts import CorpusManifest
from miniplm.run_plan import RunPlan
from miniplm.run_record import StageRecord
from tasks.progress import report_progress
from tasks.retries import TASK_OPTIONS


@task(name="prepare-corpus", task_run_name="prepare corpus", **TASK_OPTIONS)
def prepare_corpus(plan: RunPlan) -> tuple[CorpusManifest, StageRecord]:
    """Cuts the sources into sequences in shards."""
    return stages.prepare(plan, report_progress)

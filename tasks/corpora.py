"""Prepares a corpus."""

from __future__ import annotations

from prefect import task

from miniplm.records.manifests import CorpusManifest
from miniplm.records.run import StageRecord
from miniplm.run import stages
from miniplm.run.plan import RunPlan
from tasks.progress import report_progress
from tasks.retries import TASK_OPTIONS


@task(name="prepare-corpus", task_run_name="prepare corpus", **TASK_OPTIONS)
def prepare_corpus(plan: RunPlan) -> tuple[CorpusManifest, StageRecord]:
    """Cuts the sources into sequences in shards."""
    return stages.prepare(plan, report_progress)

"""Finds the reference model, or trains it where the configuration says so."""

from __future__ import annotations

from prefect import task

from miniplm.corpus.reader import load_corpus
from miniplm.records.manifests import ModelEntry
from miniplm.records.run import StageRecord
from miniplm.run import stages
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage
from tasks.progress import training_progress
from tasks.retries import TASK_OPTIONS


@task(name="provide-reference", task_run_name="train or find the reference of {corpus_id}", **TASK_OPTIONS)
def provide_reference(plan: RunPlan, corpus_id: str) -> tuple[ModelEntry, StageRecord]:
    """Trains the reference model where it is to be trained here and is not there yet."""
    with training_progress("train reference", f"train reference {corpus_id}") as on_progress:
        return stages.provide_reference(plan, load_corpus(Storage(plan.storage), corpus_id), on_progress)

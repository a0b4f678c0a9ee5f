"""Finds the reference model, or trains it where the configuration says so."""

from __future__ import annotations

from prefect import task

from miniplm import scorers
from miniplm.artifacts import ModelEntry
from miniplm.corpus.reader import load_corpus
from miniplm.references import find_reference
from miniplm.run_plan import RunPlan
from miniplm.run_record import StageRecord
from miniplm.storage import Storage
from tasks.progress import training_progress
from tasks.retries import TASK_OPTIONS


@task(name="provide-reference", task_run_name="train or find the reference of {corpus_id}", **TASK_OPTIONS)
def provide_reference(plan: RunPlan, corpus_id: str) -> tuple[ModelEntry, StageRecord]:
    """Trains the reference model where it is to be trained here and is not there yet."""
    storage = Storage(plan.storage)
    corpus = load_corpus(storage, corpus_id)
    entry = find_reference(storage, plan, corpus)
    if entry is not None and not entry.stored:
        return entry, StageRecord(name="reference", seconds=0.0, reused=True, num_units=0, unit="tokens")
    reused = entry is not None
    with training_progress("train reference", f"train reference {corpus_id}") as on_progress:
        entry, training = scorers.train_reference(storage, plan, corpus, on_progress)
    return entry, StageRecord(
        name="train reference", seconds=training.seconds, reused=reused, num_units=training.num_tokens, unit="tokens"
    )

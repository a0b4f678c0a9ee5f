"""Finds the models that score: given ones are identified, the reference is trained where the configuration says so."""

from __future__ import annotations

from prefect import task

from miniplm import inputs, scorers
from miniplm.artifacts import ModelEntry
from miniplm.config import RunConfig
from miniplm.corpus.reader import load_corpus
from miniplm.run_record import StageRecord
from miniplm.storage import Storage
from tasks.progress import training_progress
from tasks.retries import TASK_OPTIONS


@task(name="check-inputs", task_run_name="check inputs", **TASK_OPTIONS)
def check_inputs(config: RunConfig) -> None:
    """Refuses what would fail only after hours: storage, sources, models and their tokenizers."""
    inputs.check_inputs(config)


@task(name="identify-teacher", task_run_name="identify {config.teacher.model}", **TASK_OPTIONS)
def identify_teacher(config: RunConfig) -> ModelEntry:
    """Digests the teacher's weights and so finds its id."""
    return scorers.identify_teacher(config)


@task(name="provide-reference", task_run_name="train or find the reference of {corpus_id}", **TASK_OPTIONS)
def provide_reference(config: RunConfig, corpus_id: str) -> tuple[ModelEntry, StageRecord]:
    """Trains the reference model where it is to be trained here and is not there yet; identifies it otherwise."""
    storage = Storage(config.storage)
    corpus = load_corpus(storage, corpus_id)
    entry = scorers.find_reference(storage, config, corpus)
    if config.reference.model is not None:
        assert entry is not None
        return entry, StageRecord(name="reference", seconds=0.0, reused=True, num_units=0, unit="tokens")
    reused = entry is not None
    with training_progress("train reference", f"train reference {corpus_id}") as on_progress:
        entry, training = scorers.train_reference(storage, config, corpus, on_progress)
    return entry, StageRecord(
        name="train reference", seconds=training.seconds, reused=reused, num_units=training.num_tokens, unit="tokens"
    )

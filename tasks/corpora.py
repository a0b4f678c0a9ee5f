"""Prepares a corpus."""

from __future__ import annotations

from prefect import task

from miniplm.artifacts import CorpusManifest
from miniplm.config import RunConfig
from miniplm.corpus import preparation
from miniplm.corpus.identity import resolve_corpus_id
from miniplm.corpus.reader import find_corpus
from miniplm.inputs import check_splits
from miniplm.storage import Storage
from tasks.progress import report_progress
from tasks.retries import TASK_OPTIONS


@task(name="prepare-corpus", task_run_name="prepare corpus", **TASK_OPTIONS)
def prepare_corpus(config: RunConfig) -> tuple[CorpusManifest, bool]:
    """Cuts the sources into sequences in shards, with some in each split that the run needs; says whether that was done already."""
    storage = Storage(config.storage)
    reused = find_corpus(storage, resolve_corpus_id(storage, config.corpus)) is not None
    manifest = preparation.prepare_corpus(storage, config.corpus, report_progress)
    check_splits(config, manifest)
    return manifest, reused

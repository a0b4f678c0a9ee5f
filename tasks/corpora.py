"""Prepares a corpus."""

from __future__ import annotations

from prefect import task

from miniplm.artifacts import CorpusManifest
from miniplm.config import CorpusConfig
from miniplm.corpus import preparation
from miniplm.corpus.identity import resolve_corpus_id
from miniplm.corpus.reader import find_corpus
from miniplm.storage import Storage
from tasks.progress import report_progress
from tasks.retries import TASK_OPTIONS


@task(name="prepare-corpus", task_run_name="prepare corpus", **TASK_OPTIONS)
def prepare_corpus(storage_url: str, corpus: CorpusConfig) -> tuple[CorpusManifest, bool]:
    """Cuts the sources into sequences in shards; says whether that was done already."""
    storage = Storage(storage_url)
    reused = find_corpus(storage, resolve_corpus_id(storage, corpus)) is not None
    return preparation.prepare_corpus(storage, corpus, report_progress), reused

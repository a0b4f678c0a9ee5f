"""Prepares a corpus."""

from __future__ import annotations

from prefect import task

from miniplm.artifacts import CorpusManifest
from miniplm.corpus import preparation
from miniplm.corpus.identity import plan_corpus
from miniplm.corpus.reader import find_corpus
from miniplm.inputs import check_splits
from miniplm.run_plan import RunPlan
from miniplm.storage import Storage
from tasks.progress import report_progress
from tasks.retries import TASK_OPTIONS


@task(name="prepare-corpus", task_run_name="prepare corpus", **TASK_OPTIONS)
def prepare_corpus(plan: RunPlan) -> tuple[CorpusManifest, bool]:
    """Cuts the sources into sequences in shards, with some in each split that the run needs; says whether that was done already."""
    storage = Storage(plan.storage)
    planned = plan_corpus(storage, plan.corpus, plan.tokenizer)
    reused = find_corpus(storage, planned.corpus_id) is not None
    manifest = preparation.prepare_corpus(storage, plan.corpus, report_progress, planned)
    check_splits(plan, manifest)
    return manifest, reused

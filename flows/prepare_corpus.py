"""Documents become sequences in shards."""

from __future__ import annotations

import time

from prefect import flow

from miniplm.artifacts import CorpusManifest
from miniplm.run_plan import RunPlan
from miniplm.run_record import StageRecord
from tasks import corpora


@flow(name="prepare-corpus", flow_run_name="prepare {plan.name}")
def prepare_corpus(plan: RunPlan) -> tuple[CorpusManifest, StageRecord]:
    """Prepares the corpus of a run."""
    started = time.monotonic()
    manifest, reused = corpora.prepare_corpus(plan)
    # Of a corpus that extends another only what was made for it.
    num_tokens = sum(shard.num_tokens for shard in manifest.shards if shard.corpus_id == manifest.corpus_id)
    return manifest, StageRecord(
        name="prepare", seconds=time.monotonic() - started, reused=reused, num_units=num_tokens, unit="tokens"
    )

"""Documents become sequences in shards."""

from __future__ import annotations

import time

from prefect import flow

from miniplm.config import RunConfig
from miniplm.run_record import StageRecord
from tasks import corpora


@flow(name="prepare-corpus", flow_run_name="prepare {config.name}")
def prepare_corpus(config: RunConfig) -> tuple[str, StageRecord]:
    """Prepares the corpus of a run; returns its id."""
    started = time.monotonic()
    manifest, reused = corpora.prepare_corpus(config)
    # Of a corpus that extends another only what was made for it.
    num_tokens = sum(shard.num_tokens for shard in manifest.shards if shard.corpus_id == manifest.corpus_id)
    return manifest.corpus_id, StageRecord(
        name="prepare", seconds=time.monotonic() - started, reused=reused, num_units=num_tokens, unit="tokens"
    )

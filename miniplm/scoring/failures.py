"""What is known of shards that could not be scored: one small file a shard, gone once it is scored."""

from __future__ import annotations

from datetime import UTC, datetime

from miniplm import layout
from miniplm.errors import is_lasting
from miniplm.records.manifests import CorpusManifest, ModelEntry, ScoreFailure, ShardEntry
from miniplm.records.stored import find_record
from miniplm.storage.root import Storage


def record_failure(
    storage: Storage, shard: ShardEntry, entry: ModelEntry, error: BaseException, worker: str = "", flow_run_id: str = ""
) -> ScoreFailure:
    """Keeps why a shard could not be scored, in place of what was known before."""
    failure = ScoreFailure(
        corpus_id=shard.corpus_id,
        model_id=entry.model_id,
        shard_index=shard.shard_index,
        error=type(error).__name__,
        reason=str(error) or type(error).__name__,
        lasting=is_lasting(error),
        worker=worker,
        flow_run_id=flow_run_id,
        failed_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.write_json(layout.score_failure(shard.corpus_id, entry.model_id, shard.shard_index), failure.as_json())
    return failure


def clear_failure(storage: Storage, shard: ShardEntry, model_id: str) -> None:
    """Forgets the failure of a shard that is scored now."""
    storage.delete(layout.score_failure(shard.corpus_id, model_id, shard.shard_index))


def find_failures(storage: Storage, corpus: CorpusManifest, model_id: str) -> dict[int, ScoreFailure]:
    """The kept failures of a corpus' candidate shards under one model, by shard index."""
    failures = {}
    shards = corpus.split_shards("candidate")
    for corpus_id in {shard.corpus_id for shard in shards}:
        # One listing for all shards: to ask for each would cost a request a shard at a remote root.
        known = set(storage.list_names(layout.score_failures_folder(corpus_id, model_id)))
        for shard in shards:
            path = layout.score_failure(corpus_id, model_id, shard.shard_index)
            if shard.corpus_id == corpus_id and path.rsplit("/", 1)[-1] in known:
                failure = find_record(storage, path, ScoreFailure)
                if failure is not None:  # scored meanwhile, or a damaged note: what counts is whether the shard is scored
                    failures[shard.shard_index] = failure
    return failures

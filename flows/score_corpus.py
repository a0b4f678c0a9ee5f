"""One model scores the candidate shards that have no verified score yet, in this process or on a work pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from prefect import flow, get_run_logger

from flows.score_shards import check_shard_indices, score_shards
from flows.work_pool.scoring import score_on_pool
from miniplm import layout
from miniplm.corpus.reader import open_corpus
from miniplm.records.manifests import ModelEntry
from miniplm.records.run import StageRecord
from miniplm.run.plan import RunPlan
from miniplm.scoring.shards import check_score_shards


@flow(name="score-corpus", flow_run_name="score {corpus_id} {role} {entry.model_id}")
def score_corpus(
    plan: RunPlan,
    corpus_id: str,
    entry: ModelEntry,
    role: Literal["teacher", "reference", "proxy"],
    shard_indices: Sequence[int] | None = None,
    again: bool = False,
) -> StageRecord:
    """Scores what is not scored yet of the given shards (default: all), or all of them `again`; neighbours of one that fails go on.

    Raises `ScoreError` naming the shards that failed with their reasons, once all others are done; `RunFailedError`
    where one of the reasons is in no input.
    """
    storage, corpus = open_corpus(plan.storage, corpus_id)
    shards = {shard.shard_index: shard for shard in corpus.split_shards("candidate")}
    check_shard_indices(corpus_id, shard_indices or (), len(shards))
    wanted = set(shards if shard_indices is None else shard_indices)
    if again:
        for index in sorted(wanted):
            storage.delete(layout.score_shard_manifest(shards[index].corpus_id, entry.model_id, index))
    states = [state for state in check_score_shards(storage, corpus, entry.model_id) if state.shard_index in wanted]
    manifests = [state.manifest for state in states if state.manifest is not None]
    todo = [state.shard_index for state in states if state.manifest is None]
    broken = [state for state in states if state.state == "broken"]
    for state in broken:
        get_run_logger().warning("%s of %s is scored again: %s", layout.shard_name(state.shard_index), role, state.reason)
    if todo and plan.is_on_work_pool:
        manifests = score_on_pool(storage, plan, corpus, entry, role, states)
    elif todo:
        done_tokens = sum(manifest.num_tokens for manifest in manifests)
        remark = f"{len(broken)} broken shards are scored again" if broken else ""
        manifests += score_shards(plan.storage, corpus_id, entry, role, todo, plan.scoring, done_tokens, remark)
    return StageRecord(
        name=f"score {role}",
        seconds=sum(manifest.seconds for manifest in manifests),
        reused=not todo,
        num_units=sum(manifest.num_tokens for manifest in manifests),
        unit="tokens",
    )

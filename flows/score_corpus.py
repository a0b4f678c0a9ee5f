"""One model scores the candidate shards that have no verified score yet: the fan-out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from prefect import flow, get_run_logger
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner

from miniplm import layout
from miniplm.artifacts import ModelEntry, ScoreShardManifest
from miniplm.config import RunConfig
from miniplm.corpus.reader import load_corpus
from miniplm.errors import ConfigError, MiniplmError, RunFailedError, ScoreError, list_offenders
from miniplm.run_record import StageRecord
from miniplm.scoring.shards import check_score_shards
from miniplm.storage import Storage
from tasks.progress import stage_progress
from tasks.scoring import load_model, release_model, score_shard

# Prefect's server loses task runs when ten thousand come at once; two thousand were complete.
_SHARDS_AT_ONCE = 1000


# One shard at a time: a device computes for one shard at full speed, and its memory is one batch's.
@flow(
    name="score-corpus",
    flow_run_name="score {corpus_id} {role} {entry.model_id}",
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
)
def score_corpus(
    config: RunConfig,
    corpus_id: str,
    entry: ModelEntry,
    role: Literal["teacher", "reference"],
    shard_indices: Sequence[int] | None = None,
) -> StageRecord:
    """Scores what is not scored yet of the given shards (default: all); neighbours of a shard that fails go on.

    Raises `ScoreError` naming the shards that failed with their reasons, once all others are done; `RunFailedError`
    where one of the reasons is in no input.
    """
    storage = Storage(config.storage)
    corpus = load_corpus(storage, corpus_id)
    shards = {shard.shard_index: shard for shard in corpus.split_shards("candidate")}
    unknown = sorted(set(shard_indices or ()) - set(shards))
    if unknown:
        raise ConfigError(
            f"corpus {corpus_id} has no candidate shard {list_offenders(unknown)}; its shards are 0 to {len(shards) - 1}"
        )
    states = [
        state
        for state in check_score_shards(storage, corpus, entry.model_id)
        if shard_indices is None or state.shard_index in shard_indices
    ]
    for state in states:
        if state.state == "broken":
            get_run_logger().warning("%s of %s is scored again: %s", layout.shard_name(state.shard_index), role, state.reason)
    manifests = [state.manifest for state in states if state.manifest is not None]
    todo = [state.shard_index for state in states if state.manifest is None]
    if todo:
        load_model(config.storage, entry, config.scoring)
        stage = f"score {role}"
        total = sum(shards[state.shard_index].num_tokens for state in states)
        num_broken = sum(state.state == "broken" for state in states)
        remark = f"{num_broken} broken shards are scored again" if num_broken else ""
        with stage_progress(stage, total, "tokens", sum(manifest.num_tokens for manifest in manifests), remark):
            for start in range(0, len(todo), _SHARDS_AT_ONCE):
                futures = {
                    index: score_shard.submit(config.storage, corpus_id, entry, index, config.scoring, stage)
                    for index in todo[start : start + _SHARDS_AT_ONCE]
                }
                manifests += _collect(futures, role)
        release_model()
    return StageRecord(
        name=f"score {role}",
        seconds=sum(manifest.seconds for manifest in manifests),
        reused=not todo,
        num_units=sum(manifest.num_tokens for manifest in manifests),
        unit="tokens",
    )


def _collect(futures: dict[int, PrefectFuture[ScoreShardManifest]], role: str) -> list[ScoreShardManifest]:
    wait(list(futures.values()))
    manifests, failures = [], {}
    for index, future in futures.items():
        result = future.result(raise_on_failure=False)
        if isinstance(result, ScoreShardManifest):
            manifests.append(result)
        else:
            failures[index] = result
    if failures:
        reasons = [f"{layout.shard_name(index)}: {type(error).__name__}: {error}" for index, error in failures.items()]
        options = "".join(f" --shard {index}" for index in list(failures)[:10])
        message = (
            f"{len(failures)} of {len(futures)} shards could not be scored by the {role}: {list_offenders(reasons)}. "
            f"The others are kept. Run `miniplm score CONFIG --model {role}{options}` when the reason is gone"
        )
        is_told = all(isinstance(error, (ConfigError, MiniplmError)) for error in failures.values())
        raise (ScoreError if is_told else RunFailedError)(message) from next(iter(failures.values()))
    return manifests

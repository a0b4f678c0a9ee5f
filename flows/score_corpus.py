"""One model scores the candidate shards that have no verified score yet: the fan-out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NoReturn

from prefect import flow, get_run_logger
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from miniplm import layout
from miniplm.artifacts import CorpusManifest, ModelEntry, ScoreShardManifest
from miniplm.config import RunConfig
from miniplm.corpus.reader import load_corpus
from miniplm.errors import ConfigError, MiniplmError, RunFailedError, ScoreError, list_offenders
from miniplm.run_record import StageRecord
from miniplm.scoring.shards import ShardScoreState, check_score_shard
from miniplm.storage import Storage
from tasks.progress import stage_progress
from tasks.scoring import load_model, release_model, score_shard

# Prefect's server loses task runs when ten thousand come at once; two thousand were complete.
_SHARDS_AT_ONCE = 1000


# Two shards at a time: one has the device, the other is read or written meanwhile.
@flow(
    name="score-corpus",
    flow_run_name="score {corpus_id} {role} {entry.model_id}",
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # type: ignore[arg-type]
)
def score_corpus(
    config: RunConfig,
    corpus_id: str,
    entry: ModelEntry,
    role: Literal["teacher", "reference"],
    shard_indices: Sequence[int] | None = None,
    again: bool = False,
) -> StageRecord:
    """Scores what is not scored yet of the given shards (default: all), or all of them `again`; neighbours of one that fails go on.

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
    wanted = sorted(set(shard_indices or shards))
    if again:
        for index in wanted:
            storage.delete(layout.score_shard_manifest(shards[index].corpus_id, entry.model_id, index))
    states = [check_score_shard(storage, shards[index], entry.model_id) for index in wanted]
    manifests = [state.manifest for state in states if state.manifest is not None]
    todo = [state.shard_index for state in states if state.manifest is None]
    if todo:
        manifests += _score_shards(config, corpus, entry, role, states)
    return StageRecord(
        name=f"score {role}",
        seconds=sum(manifest.seconds for manifest in manifests),
        reused=not todo,
        num_units=sum(manifest.num_tokens for manifest in manifests),
        unit="tokens",
    )


def _score_shards(
    config: RunConfig, corpus: CorpusManifest, entry: ModelEntry, role: str, states: list[ShardScoreState]
) -> list[ScoreShardManifest]:
    """Maps the shards that are not done, some at a time, and gathers what came of all of them."""
    todo = [state.shard_index for state in states if state.manifest is None]
    broken = [state for state in states if state.state == "broken"]
    for state in broken:
        get_run_logger().warning("%s of %s is scored again: %s", layout.shard_name(state.shard_index), role, state.reason)
    load_model(config.storage, entry, config.scoring, corpus.sequence_length, role)
    stage = f"score {role}"
    num_tokens = {shard.shard_index: shard.num_tokens for shard in corpus.split_shards("candidate")}
    total = sum(num_tokens[state.shard_index] for state in states)
    done = total - sum(num_tokens[index] for index in todo)
    remark = f"{len(broken)} broken shards are scored again" if broken else ""
    outcomes: dict[int, object] = {}
    try:
        with stage_progress(stage, total, "tokens", done, remark):
            for start in range(0, len(todo), _SHARDS_AT_ONCE):
                futures = {
                    index: score_shard.submit(config.storage, corpus.corpus_id, entry, index, config.scoring, stage)
                    for index in todo[start : start + _SHARDS_AT_ONCE]
                }
                wait(list(futures.values()))
                outcomes |= {index: future.result(raise_on_failure=False) for index, future in futures.items()}
    finally:
        release_model()
    failures = {index: outcome for index, outcome in outcomes.items() if not isinstance(outcome, ScoreShardManifest)}
    if failures:
        _raise_failures(failures, len(todo), role)
    return [outcome for outcome in outcomes.values() if isinstance(outcome, ScoreShardManifest)]


def _raise_failures(failures: dict[int, object], num_shards: int, role: str) -> NoReturn:
    reasons = [f"{layout.shard_name(index)}: {type(error).__name__}: {error}" for index, error in failures.items()]
    options = "".join(f" --shard {index}" for index in list(failures)[:10])
    message = (
        f"{len(failures)} of {num_shards} shards could not be scored by the {role}: {list_offenders(reasons)}. "
        f"The others are kept. Run `miniplm score CONFIG --model {role}{options}` when the reason is gone"
    )
    is_told = all(isinstance(error, (ConfigError, MiniplmError)) for error in failures.values())
    cause = next(iter(failures.values()))
    raise (ScoreError if is_told else RunFailedError)(message) from (cause if isinstance(cause, BaseException) else None)

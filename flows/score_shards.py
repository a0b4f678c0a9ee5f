"""One process scores a batch of shards with one load of the model; a shard that fails does not stop its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NoReturn

from prefect import flow
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from miniplm import __version__, layout
from miniplm.config.run import ScoringConfig
from miniplm.corpus.reader import load_corpus
from miniplm.errors import ConfigError, MiniplmError, RunFailedError, ScoreError, list_offenders
from miniplm.records.manifests import ModelEntry, ScoreShardManifest
from miniplm.scoring.shards import check_score_shard
from miniplm.storage.root import Storage
from tasks.progress import stage_progress
from tasks.scoring import load_model, release_model, score_shard, stop_scoring
from tasks.workers import prepare_worker

# Prefect's server loses task runs when ten thousand come at once; two thousand were complete.
_SHARDS_AT_ONCE = 1000


def name_batch(role: str, corpus_id: str, shard_indices: Sequence[int]) -> str:
    """The flow run's name, e.g. `score teacher c-1a2b3c4d5e6f shard-00016 to 00031`."""
    first, last = min(shard_indices, default=0), max(shard_indices, default=0)
    return f"score {role} {corpus_id} {layout.shard_name(first)}{f' to {last:05d}' if last > first else ''}"


def _name_run() -> str:
    parameters = flow_run.get_parameters()
    return name_batch(parameters["role"], parameters["corpus_id"], parameters["shard_indices"])


# Two shards at a time: one has the device, the other is read or written meanwhile.
@flow(
    name="score-shards",
    flow_run_name=_name_run,
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # type: ignore[arg-type]
)
def score_shards(
    storage: str,
    corpus_id: str,
    model: ModelEntry,
    role: Literal["teacher", "reference", "proxy"],
    shard_indices: Sequence[int],
    scoring: ScoringConfig,
    done_tokens: int = 0,
    remark: str = "",
    version: str = __version__,
) -> list[ScoreShardManifest]:
    """Scores the given shards but those that are scored already; returns the manifests of all.

    Raises `ScoreError` naming the shards that failed with their reasons, once all others are done; `RunFailedError`
    where one of the reasons is in no input; `VersionError` where this worker is of another version.

    Args:
        storage: fsspec URL of the storage root
        corpus_id: the corpus whose candidate shards are scored, e.g. c-1a2b3c4d5e6f
        model: the model, as its run names it
        role: what the model is in the run
        shard_indices: the shards of this batch, from 0
        scoring: how the model runs over the shards
        done_tokens: tokens that are scored already, for the progress of the whole
        remark: a remark for the progress
        version: version of miniplm that gives the work; a worker of another one refuses
    """
    prepare_worker(version)
    root = Storage(storage)
    corpus = load_corpus(root, corpus_id)
    shards = {shard.shard_index: shard for shard in corpus.split_shards("candidate")}
    check_shard_indices(corpus_id, shard_indices, len(shards))
    states = [check_score_shard(root, shards[index], model.model_id) for index in shard_indices]
    outcomes: dict[int, object] = {state.shard_index: state.manifest for state in states if state.manifest is not None}
    todo = [state.shard_index for state in states if state.manifest is None]
    total = done_tokens + sum(shards[index].num_tokens for index in shard_indices)
    done = total - sum(shards[index].num_tokens for index in todo)
    stage = f"score {role}"
    try:
        if todo:
            load_model(root, model, scoring, corpus.sequence_length, role)
            with stage_progress(stage, total, "tokens", done, remark, artifact=f"batch {role} {corpus_id}"):
                for start in range(0, len(todo), _SHARDS_AT_ONCE):
                    futures = {
                        index: score_shard.submit(root, corpus_id, model, index, scoring, stage)
                        for index in todo[start : start + _SHARDS_AT_ONCE]
                    }
                    wait(list(futures.values()))
                    outcomes |= {index: future.result(raise_on_failure=False) for index, future in futures.items()}
    except BaseException:
        # Cancelled, or told to end: threads that score would otherwise keep the process until their shard is done.
        stop_scoring()
        raise
    finally:
        release_model()
    failures = {index: outcome for index, outcome in outcomes.items() if not isinstance(outcome, ScoreShardManifest)}
    if failures:
        _raise_failures(failures, len(todo), role)
    return [outcome for outcome in outcomes.values() if isinstance(outcome, ScoreShardManifest)]


def check_shard_indices(corpus_id: str, shard_indices: Sequence[int], num_shards: int) -> None:
    """Raises `ConfigError` naming the shards that the corpus does not have."""
    unknown = sorted(index for index in set(shard_indices) if not 0 <= index < num_shards)
    if unknown:
        raise ConfigError(
            f"corpus {corpus_id} has no candidate shard {list_offenders(unknown)}; its shards are 0 to {num_shards - 1}"
        )


def _raise_failures(failures: dict[int, object], num_shards: int, role: str) -> NoReturn:
    reasons = [f"{layout.shard_name(index)}: {type(error).__name__}: {error}" for index, error in failures.items()]
    options = "".join(f" --shard {index}" for index in list(failures)[:10])
    message = (
        f"{len(failures)} of {num_shards} shards could not be scored by the {role}: {list_offenders(reasons)}. "
        f"The others are kept. Run `miniplm score CONFIG --model {role}{options}` when the reason is gone (on a fleet: "
        "`miniplm rescore RUN --failed`, or retry this flow run)"
    )
    is_told = all(isinstance(error, (ConfigError, MiniplmError)) for error in failures.values())
    cause = next(iter(failures.values()))
    raise (ScoreError if is_told else RunFailedError)(message) from (cause if isinstance(cause, BaseException) else None)

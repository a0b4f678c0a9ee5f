"""Repairs a run's scores: shards that failed, are missing or broken are scored, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from flows.parameters import RunName, StorageUrl, load_run_config
from flows.score_corpus import score_corpus
from flows.work_pool.cancellation import cancel_children
from flows.work_pool.pinning import make_portable
from flows.work_pool.subflows import crash_subflows, tagged_subflows
from miniplm.corpus.reader import load_corpus
from miniplm.errors import ConfigError, MiniplmError, ModelError, RunError, ScoreError
from miniplm.records.manifests import ModelEntry
from miniplm.records.run import RunRecord, StageRecord, load_run
from miniplm.run.plan import RunPlan, find_plan
from miniplm.run.references import find_reference
from miniplm.run.resolution import resolve
from miniplm.storage.root import Storage
from tasks.workers import use_credentials

AllFailed = Annotated[Literal["all failed"], Field(title="All failed")]
TheseShards = Annotated[Sequence[Annotated[int, Field(ge=0)]], Field(title="These shards")]


@flow(name="rescore-shards", flow_run_name="rescore {run} {model}", on_cancellation=[cancel_children], on_crashed=[crash_subflows])
def rescore_shards(
    storage: StorageUrl,
    run: RunName,
    model: Literal["both", "teacher", "reference"] = "both",
    shards: AllFailed | TheseShards = "all failed",
    again: bool = False,
) -> list[StageRecord]:
    """Scores what is missing of the given shards, by the workers of the pool where the run used them.

    Raises `RunError` for an unknown run, `ConfigError` for a shard that the corpus does not have, and `ScoreError`
    naming the shards that failed again, after both models.

    Args:
        storage: fsspec URL of the storage root, e.g. s3://bucket/prefix or /mnt/miniplm
        run: name of a run that has its record at this storage root
        model: whose scores are repaired
        shards: `all failed`: every shard without a verified score; or shard numbers, from 0
        again: score the given shards even where a verified score is there
    """
    use_credentials()
    if again and shards == "all failed":
        raise ConfigError("`again` scores shards that are fine; name them in `shards`")
    root = Storage(storage)
    record = load_run(root, run)
    if record.corpus_id is None:
        raise RunError(f"run {run} has no corpus yet, so it has no shard to repair; start it again")
    plan = _provide_plan(root, record)
    wanted = None if shards == "all failed" else [int(index) for index in shards]
    entries: dict[Literal["teacher", "reference"], ModelEntry | None] = {}
    if model != "reference":
        entries["teacher"] = record.teacher or plan.require_teacher()
    if model != "teacher":
        entries["reference"] = record.reference or find_reference(root, plan, load_corpus(root, record.corpus_id))
    stages, failures = [], []
    for role, entry in entries.items():
        if entry is None:
            if model == role:
                raise ModelError(f"run {run} has no reference model yet; start the run again, which trains it and goes on")
            continue
        try:
            with tagged_subflows(run):
                stages.append(score_corpus(plan, record.corpus_id, entry, role, wanted, again))
        except MiniplmError as error:  # the other model's shards are repaired all the same; then this is told
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ScoreError("\n".join(str(failure) for failure in failures))
    return stages


def _provide_plan(root: Storage, record: RunRecord) -> RunPlan:
    """The plan that the run was started with, at this root; where another is kept, or none, one made of its configuration."""
    plan = find_plan(root, record.run_name)
    if plan is not None and plan.config == record.config:
        return plan.model_copy(update={"key": "", "storage": root.root})
    config = load_run_config(root.root, record.run_name)
    if record.teacher is not None and record.reference is not None:
        return RunPlan.of(config, teacher_entry=record.teacher, reference_entry=record.reference)
    return resolve(make_portable(config) if config.is_on_work_pool else config, checks=False)

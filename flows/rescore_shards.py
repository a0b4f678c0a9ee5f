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
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.run import RunRecord, StageRecord, load_run
from miniplm.run.model_entries import find_reference, with_teacher
from miniplm.run.plan import RunPlan, find_plan
from miniplm.run.proxies import find_labelled_corpus, find_run_proxy
from miniplm.run.resolution import resolve
from miniplm.storage.root import Storage
from tasks.workers import use_credentials

Role = Literal["teacher", "reference", "proxy"]
# The proxy last, as it needs the scores of both.
ROLES: tuple[Role, ...] = ("teacher", "reference", "proxy")
AllFailed = Annotated[Literal["all failed"], Field(title="All failed")]
TheseShards = Annotated[Sequence[Annotated[int, Field(ge=0)]], Field(title="These shards")]


@flow(name="rescore-shards", flow_run_name="rescore {run} {model}", on_cancellation=[cancel_children], on_crashed=[crash_subflows])
def rescore_shards(
    storage: StorageUrl,
    run: RunName,
    model: Literal["both", "teacher", "reference", "proxy"] = "both",
    shards: AllFailed | TheseShards = "all failed",
    again: bool = False,
) -> list[StageRecord]:
    """Scores what is missing of the given shards, by the workers of the pool where the run used them.

    Raises `RunError` for an unknown run, `ConfigError` for a shard that the corpus does not have, and `ScoreError`
    naming the shards that failed again, after both models.

    Args:
        storage: fsspec URL of the storage root, e.g. s3://bucket/prefix or /mnt/miniplm
        run: name of a run that has its record at this storage root
        model: whose scores are repaired; `both` of a run with a proxy: the proxy's too, and of shards that are named the teacher's are left out,
            which scores a share that has shards of its own
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
    corpus = load_corpus(root, record.corpus_id)
    plan = _provide_plan(root, record, corpus)
    wanted = None if shards == "all failed" else [int(index) for index in shards]
    stages, failures = [], []
    for role in ROLES:
        if model not in ("both", role) or (role == "proxy" and model == "both" and plan.scoring.proxy is None):
            continue
        try:
            scored, entry = _find_work(root, plan, record, corpus, role)
            if scored is None or entry is None:
                if model == role:
                    raise ModelError(f"run {run} has no {role} that can score yet; start the run again, which makes it and goes on")
                continue
            if model == "both" and wanted is not None and scored.corpus_id != corpus.corpus_id:
                continue
            with tagged_subflows(run):
                stages.append(score_corpus(plan, scored.corpus_id, entry, role, wanted, again))
        except MiniplmError as error:  # the other model's shards are repaired all the same; then this is told
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ScoreError("\n".join(str(failure) for failure in failures))
    return stages


def _find_work(
    root: Storage, plan: RunPlan, record: RunRecord, corpus: CorpusManifest, role: Role
) -> tuple[CorpusManifest | None, ModelEntry | None]:
    """What a model of the run scores, and its entry; None where one is not there yet."""
    if role == "teacher":
        return find_labelled_corpus(root, plan, corpus), record.teacher or plan.require_teacher()
    reference = record.reference or find_reference(root, plan, corpus)
    if role == "reference":
        return corpus, reference
    proxy = find_run_proxy(root, plan, corpus, reference)
    return corpus, None if proxy is None else proxy.entry


def _provide_plan(root: Storage, record: RunRecord, corpus: CorpusManifest) -> RunPlan:
    """The plan that the run was started with, at this root; where another is kept, or none, one made of its configuration."""
    plan = find_plan(root, record.run_name)
    if plan is not None and plan.config == record.config:
        return plan.model_copy(update={"key": "", "storage": root.root})
    config = load_run_config(root.root, record.run_name)
    if record.teacher is not None and record.reference is not None:
        return RunPlan.of(config, teacher_entry=record.teacher, reference_entry=record.reference)
    plan = resolve(make_portable(config) if config.is_on_work_pool else config, checks=False)
    return with_teacher(root, plan, corpus)

"""Gives the shards that a model has yet to score to a work pool, in batches, until each is scored or has failed for good."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.runtime import flow_run as this_run

from flows.score_shards import name_batch
from flows.work_pool import fleet
from flows.work_pool.batches import choose_batch_size, count_room, cut_batches
from flows.work_pool.failures import is_lasting_message, strip_message
from flows.work_pool.listing import BoundedListing
from flows.work_pool.pulse import Pulse
from flows.work_pool.submission_lock import submission_lock
from miniplm import __version__, layout
from miniplm.corpus.reader import load_corpus
from miniplm.errors import ScoreError, list_offenders
from miniplm.records.manifests import CorpusManifest, ModelEntry, ScoreShardManifest, ShardEntry
from miniplm.run.plan import RunPlan
from miniplm.scoring.failures import find_failures
from miniplm.scoring.shards import ShardScoreState, check_score_shard
from miniplm.storage.root import Storage
from tasks.progress import StageProgress, stage_progress
from tasks.tables import ShardTable

DEPLOYMENT = "score-shards"

# A shard whose worker died, or whose worker failed for a passing reason, is tried this often in all.
_MOST_TRIES = 3
# So many flow runs in a row that ended without a single scored shard mean that nothing here works.
_MOST_BARREN = 6
# How many of the latest shards the batch size is made of.
_MEASURED = 16
_POLL_SECONDS = 2.0
_SECONDS_BETWEEN_REMINDERS = 300.0
_SECONDS_BETWEEN_TABLES = 60.0
# Threads that look at the files of finished batches: on an object store each look takes a while.
_VERIFIERS = 8
# The rate is judged over this time, as shards come in lumps.
_RATE_SECONDS = 900.0

Key = tuple[str, int]


def score_on_pool(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, entry: ModelEntry, role: str, states: Sequence[ShardScoreState]
) -> list[ScoreShardManifest]:
    """Has the shards among `states` that are not done scored by the workers; returns the manifests of all.

    Flow runs of `score-shards` that live already, of this run or another, are waited for and never repeated. What a
    worker that died has not finished goes to others. Raises `ScoreError` naming the shards that failed for good, each
    with its reason, and the repair, once nothing is left to wait for.
    """
    return _PoolScoring(storage, plan, corpus, entry, role, states).run()


class _PoolScoring:
    """One model over one corpus; all state but counts of failures is read anew from the server and the storage."""

    def __init__(
        self,
        storage: Storage,
        plan: RunPlan,
        corpus: CorpusManifest,
        entry: ModelEntry,
        role: str,
        states: Sequence[ShardScoreState],
    ) -> None:
        self._storage, self._plan, self._corpus, self._entry, self._role = storage, plan, corpus, entry, role
        self._shards = {shard.shard_index: shard for shard in corpus.split_shards("candidate")}
        self._wanted = [state.shard_index for state in states]
        self._done = {state.shard_index: state.manifest for state in states if state.manifest is not None}
        self._failed: dict[int, str] = {}
        self._tries: Counter[int] = Counter()
        self._num_barren = self._num_workers = 0
        self._watched: dict[UUID, tuple[FlowRun, list[int]]] = {}
        self._corpora = {corpus.corpus_id: corpus}
        self._pulse = Pulse(plan.execution.stale_seconds)
        self._log = get_run_logger()
        self._reminded_at = 0.0
        self._published = BoundedListing(self._list_published)
        self._run_tag, self._parent_tag = f"run:{plan.name}", f"parent:{this_run.get_root_flow_run_id()}"
        self._model_tag = f"model:{entry.model_id}"
        self._table = ShardTable(f"shards-{role}-{corpus.corpus_id}", f"{role} {entry.model_id} over corpus {corpus.corpus_id}")
        self._rate = _Rate(plan, corpus, role)

    def run(self) -> list[ScoreShardManifest]:
        done = sum(self._shards[index].num_tokens for index in self._done)
        total = sum(self._shards[index].num_tokens for index in self._wanted)
        artifact = f"{self._role} {self._corpus.corpus_id}"
        with stage_progress(f"score {self._role}", total, "tokens", done, artifact=artifact) as progress:
            try:
                while True:
                    self._look()
                    free = self._list_free()
                    if free:
                        self._submit(free)
                    elif not self._watched:
                        break
                    self._report(progress)
                    fleet.pause(_POLL_SECONDS)
            finally:
                self._report(progress, last=True)
        if self._failed:
            self._raise_failures()
        return [self._done[index] for index in self._wanted]

    # --- what is there ---

    def _look(self) -> None:
        """Takes in which flow runs live, and what those have done that ended since the last look."""
        live = {run.id: (run, self._list_shards(run)) for run in fleet.find_live(DEPLOYMENT, [self._model_tag])}
        live = {run_id: (run, indices) for run_id, (run, indices) in live.items() if indices}
        for run, indices in list(live.values()):
            if self._pulse.is_dead(run):
                seconds = self._plan.execution.stale_seconds
                self._log.warning("%s gave no sign of life for %d s: its unfinished shards are given to others", run.name, seconds)
                fleet.crash(run, f"no sign of life for {seconds} s: its worker or the way to it is gone")
                del live[run.id]
                self._watched[run.id] = (run, indices)
        ended = [(run_id, indices) for run_id, (_, indices) in self._watched.items() if run_id not in live]
        self._watched = live
        for run_id, indices in ended:
            found = fleet.find_run(run_id)
            if found is None:
                self._log.warning("a flow run with %d shards was deleted: what it has not scored is given to others", len(indices))
                self._verify([index for index in indices if index not in self._done])
                continue
            if found.state is None or not found.state.is_final():
                # It lives, but the list of the live ones moved on by a page while it was read.
                self._watched[run_id] = (found, indices)
                continue
            self._pulse.forget(found)
            self._settle(found, indices)

    def _list_shards(self, run: FlowRun) -> list[int]:
        """Which of the wanted shards a flow run is to score; it may be of another corpus of the same chain."""
        corpus_id, indices = run.parameters.get("corpus_id"), run.parameters.get("shard_indices", [])
        if not isinstance(corpus_id, str) or run.parameters.get("storage") != self._plan.storage:
            return []
        if corpus_id != self._corpus.corpus_id:
            if corpus_id not in self._corpora:
                self._corpora[corpus_id] = load_corpus(self._storage, corpus_id)
            theirs = {shard.shard_index: shard.corpus_id for shard in self._corpora[corpus_id].split_shards("candidate")}
            indices = [index for index in indices if index in self._shards and theirs.get(index) == self._shards[index].corpus_id]
        wanted = set(self._wanted)
        return [index for index in indices if index in wanted]

    def _list_free(self) -> list[int]:
        taken = {index for _, indices in self._watched.values() for index in indices}
        return [index for index in self._wanted if index not in self._done and index not in self._failed and index not in taken]

    # --- a flow run that ended ---

    def _settle(self, run: FlowRun, indices: list[int]) -> None:
        """Counts what an ended flow run has scored, and judges why it has not scored the rest."""
        open_before = [index for index in indices if index not in self._done]
        self._verify(open_before)
        left = [index for index in open_before if index not in self._done]
        if len(left) < len(indices):
            self._num_barren = 0
        if not left:
            return
        message = strip_message(run.state.message if run.state else "")
        state = run.state_name or "ended"
        failures = find_failures(self._storage, self._corpus, self._entry.model_id)
        own = {index: failures[index] for index in left if index in failures and failures[index].flow_run_id == str(run.id)}
        for index, failure in own.items():
            reason = f"{failure.error}: {failure.reason} (worker {failure.worker})"
            if failure.lasting:
                self._fail([index], reason)
            else:
                self._count_try([index], reason)
        rest = [index for index in left if index not in own]
        if not rest:
            return
        if run.state is not None and run.state.is_cancelled():
            if self._run_tag in run.tags:
                self._fail(rest, f"{run.name} was cancelled")
            return
        self._num_barren += len(left) == len(indices)
        # A batch's ScoreError only sums up its shards' errors; a shard without a note may have had a passing one.
        if is_lasting_message(message) and not message.startswith("ScoreError:"):
            self._fail(rest, message)
        elif run.state is not None and run.state.is_crashed():
            # It works on two at a time, in their order: those two may be what it died of.
            self._count_try(rest[:2], f"{run.name} {state.lower()}: {message}")
        else:
            self._count_try(rest, f"{run.name} {state.lower()}: {message}")
        if self._num_barren >= max(_MOST_BARREN, 2 * self._num_workers):
            reason = f"{self._num_barren} flow runs in a row scored nothing; the last, {run.name}, {state.lower()}: {message}"
            self._fail([*rest, *self._list_free()], reason)

    def _verify(self, indices: list[int]) -> None:
        def check(index: int) -> ShardScoreState:
            return check_score_shard(self._storage, self._shards[index], self._entry.model_id)

        with ThreadPoolExecutor(_VERIFIERS) as pool:
            self._done |= {state.shard_index: state.manifest for state in pool.map(check, indices) if state.manifest is not None}

    def _fail(self, indices: list[int], reason: str) -> None:
        for index in indices:
            if index not in self._failed:
                self._failed[index] = reason
                self._log.error("%s of %s failed: %s", layout.shard_name(index), self._role, reason)

    def _count_try(self, indices: list[int], reason: str) -> None:
        for index in indices:
            self._tries[index] += 1
            if self._tries[index] >= _MOST_TRIES:
                self._fail([index], f"tried {_MOST_TRIES} times; the last time: {reason}")
            else:
                self._log.warning("%s of %s is given to another worker: %s", layout.shard_name(index), self._role, reason)

    # --- new flow runs ---

    def _submit(self, free: list[int]) -> None:
        num_workers, pool = fleet.count_workers(DEPLOYMENT)
        self._num_workers = num_workers
        if num_workers == 0 and time.monotonic() - self._reminded_at > _SECONDS_BETWEEN_REMINDERS:
            self._reminded_at = time.monotonic()
            self._log.warning(
                "no worker of pool %s is online; %s of %s wait. Start one: `deployments/gpu-workers.sh --pool %s`",
                pool,
                f"{len(free)} shards",
                self._role,
                pool,
            )
        measured = list(self._done.values())[-_MEASURED:]
        if not count_room(num_workers, len(self._watched), bool(measured)):
            return
        with submission_lock():
            # Another run may have taken some since. In this order: what no longer lives has published before it ended.
            self._look()
            self._verify(sorted(set(self._list_free()) & set(self._list_published())))
            free = self._list_free()
            size = choose_batch_size(len(free), num_workers, measured, self._plan.execution.shards_per_batch)
            room = count_room(num_workers, len(self._watched), bool(measured))
            for batch in cut_batches(free, size, room):
                run = fleet.submit(
                    DEPLOYMENT, name_batch(self._role, self._corpus.corpus_id, batch), self._make_parameters(batch), self._tags
                )
                self._watched[run.id] = (run, batch)

    def _make_parameters(self, batch: list[int]) -> dict[str, Any]:
        return {
            "storage": self._plan.storage,
            "corpus_id": self._corpus.corpus_id,
            "model": self._entry.as_json(),
            "role": self._role,
            "shard_indices": batch,
            "scoring": self._plan.scoring.model_dump(mode="json"),
            "version": __version__,
        }

    @property
    def _tags(self) -> list[str]:
        return [f"corpus:{self._corpus.corpus_id}", self._model_tag, f"role:{self._role}", self._run_tag, self._parent_tag]

    # --- what people see ---

    def _report(self, progress: StageProgress, last: bool = False) -> None:
        done = self._published.look(now=last)
        num_tokens = sum(self._shards[index].num_tokens for index in done)
        num_workers = len(self._watched)
        progress.show(num_tokens, f"{len(done)} of {len(self._wanted)} shards, {num_workers} batches on the pool")
        self._rate.add(num_tokens)
        if last or self._table.is_due(_SECONDS_BETWEEN_TABLES):
            running = {index: run.name for run, indices in self._watched.values() for index in indices if run.name}
            self._verify([index for index in done if index not in self._done])
            self._table.publish([self._shards[index] for index in self._wanted], self._done, self._failed, running)

    def _list_published(self) -> list[int]:
        """The wanted shards that have a manifest, by its name alone: one listing, whose time grows with the shards."""
        names: dict[str, set[str]] = {}
        done = []
        for index in self._wanted:
            shard: ShardEntry = self._shards[index]
            if shard.corpus_id not in names:
                names[shard.corpus_id] = set(self._storage.list_names(layout.scores_folder(shard.corpus_id, self._entry.model_id)))
            if index in self._done or f"{layout.shard_name(index)}.json" in names[shard.corpus_id]:
                done.append(index)
        return done

    def _raise_failures(self) -> None:
        offenders = [f"{layout.shard_name(index)}: {reason}" for index, reason in sorted(self._failed.items())]
        raise ScoreError(
            f"{len(self._failed)} of {len(self._wanted)} shards could not be scored by the {self._role}: {list_offenders(offenders)}. "
            f"The others are kept. When the reason is gone retry this run (that alone redoes what is missing), or run "
            f"`miniplm rescore {self._plan.name} --failed --storage {self._plan.storage}`, or the deployment rescore-shards with run {self._plan.name}"
        )


class _Rate:
    """Raises the event `miniplm.throughput-low` where a model's rate over all workers falls under the configured one."""

    def __init__(self, plan: RunPlan, corpus: CorpusManifest, role: str) -> None:
        self._least = plan.execution.min_tokens_per_second
        self._corpus_id, self._role, self._run_name = corpus.corpus_id, role, plan.name
        self._began = (time.monotonic(), -1)

    def add(self, num_tokens: int) -> None:
        now = time.monotonic()
        began, tokens = self._began
        if tokens < 0:
            self._began = (now, num_tokens)
        elif now - began >= _RATE_SECONDS:
            rate = (num_tokens - tokens) / (now - began)
            self._began = (now, num_tokens)
            if self._least is not None and rate < self._least:
                emit_event(
                    "miniplm.throughput-low",
                    resource={"prefect.resource.id": f"miniplm.corpus.{self._corpus_id}", "prefect.resource.name": self._run_name},
                    payload={"role": self._role, "tokens_per_second": round(rate), "min_tokens_per_second": self._least},
                )

"""Scores shards: one model load serves all shards of a process."""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import dataclass
from typing import Literal

import psutil
from prefect import get_run_logger, task
from prefect.runtime import flow_run

from miniplm import layout
from miniplm.config.run import ScoringConfig
from miniplm.corpus.reader import load_corpus
from miniplm.errors import CorpusError, StoppedError, StorageError
from miniplm.models.devices import free_cached_memory, resolve_device
from miniplm.progress import Progress
from miniplm.proxy.prediction import ProxyScorer, predict_shard
from miniplm.records.calibrations import Calibration
from miniplm.records.manifests import CorpusManifest, ModelEntry, ScoreShardManifest, ShardEntry
from miniplm.run.scoring_models import open_proxy_scorer, open_scorer
from miniplm.scoring import shards
from miniplm.scoring.engine import Scorer
from miniplm.scoring.failures import clear_failure, record_failure
from miniplm.selection import fidelity
from miniplm.storage.root import Storage
from tasks.parts import unless_stopped
from tasks.progress import report_progress, shard_callback
from tasks.retries import TASK_OPTIONS
from tasks.workers import name_worker


@dataclass(frozen=True)
class _Loaded:
    """A model that is ready; `start_seconds` from the start of this process, or of the loading where it was at work before."""

    scorer: Scorer | ProxyScorer
    start_seconds: float


_loaded: dict[tuple[str, str, str], _Loaded] = {}
_loading = threading.Lock()
_corpora: dict[tuple[str, str], tuple[CorpusManifest, dict[int, ShardEntry]]] = {}
_stopping = threading.Event()


def _load_once(storage: Storage, entry: ModelEntry, scoring: ScoringConfig, sequence_length: int) -> _Loaded:
    """The scorer of an entry; only the last one asked for is kept, so that two models never share a device's memory."""
    with _loading:
        key = (storage.root, entry.model_id, str(resolve_device(scoring.device)))
        if key not in _loaded:
            _release()
            if storage.is_local:
                _keep_compiled(storage.path(layout.compile_cache()))
            began = time.time()
            open_one = open_scorer if entry.proxy is None else open_proxy_scorer
            scorer: Scorer | ProxyScorer = open_one(storage, entry, scoring, sequence_length)
            if not _has_loaded:
                _has_loaded.append(True)
                began = psutil.Process().create_time()
            _loaded[key] = _Loaded(scorer, time.time() - began)
        return _loaded[key]


# Whether this process has loaded a model before: only the first time the start of Python belongs to it.
_has_loaded: list[bool] = []


def _find_corpus(storage: Storage, corpus_id: str) -> tuple[CorpusManifest, dict[int, ShardEntry]]:
    """A corpus and its candidate shards by index, read once for all of them: with thousands of shards the manifest is long."""
    key = (storage.root, corpus_id)
    if key not in _corpora:
        corpus = load_corpus(storage, corpus_id)
        _corpora[key] = corpus, {shard.shard_index: shard for shard in corpus.split_shards("candidate")}
    return _corpora[key]


def _keep_compiled(folder: str) -> None:
    """Lets the next process find what this one compiles, unless the user said where. Never on a remote root: its code is not run here."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ or _is_default(os.environ["TORCHINDUCTOR_CACHE_DIR"]):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    os.environ.setdefault("TRITON_CACHE_DIR", f"{folder}/triton")


def _is_default(folder: str) -> bool:
    """Whether PyTorch has set the variable to its default by itself, as it does when its compiler is imported."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # costs a second

    return bool(folder == default_cache_dir())


def _release() -> None:
    _loaded.clear()
    gc.collect()
    free_cached_memory()


def release_model() -> None:
    """Lets go of the model that was loaded last."""
    with _loading:
        _release()
    _corpora.clear()


def stop_scoring() -> None:
    """Lets the shards of this process end at their next batch of tokens, unpublished: the run was cancelled."""
    _stopping.set()


@task(name="load-model", task_run_name="load {entry.model_id}", **TASK_OPTIONS)
def load_model(storage: Storage, entry: ModelEntry, scoring: ScoringConfig, sequence_length: int, role: str) -> None:
    """Loads, checks and compiles the model once, before any shard: what is wrong with it is said once, not by every shard."""
    started = time.perf_counter()
    _stopping.clear()
    report_progress(Progress(f"load {role}", 0, 1, "model"))
    scorer = _load_once(storage, entry, scoring, sequence_length).scorer
    detail = f"{_describe_scorer(entry, scorer)}, in {time.perf_counter() - started:.1f} s. {'; '.join(scorer.notes)}".strip()
    get_run_logger().info("%s %s: %s", role, entry.model_id, detail)
    report_progress(Progress(f"load {role}", 1, 1, "model", detail))


def _describe_scorer(entry: ModelEntry, scorer: Scorer | ProxyScorer) -> str:
    how = scorer.describe()
    if isinstance(scorer, ProxyScorer):
        return f"{how['proxy']}, from {how['num_labels']:,} labels"
    is_compiled = "compiled" if how["compiled"] else "not compiled"
    return f"{entry.dtype}, {is_compiled}, {how['layout']} batches of {how['tokens_per_batch']:,} tokens"


@task(name="score-shard", task_run_name="score {corpus_id} {entry.model_id} shard-{shard_index:05d}", **TASK_OPTIONS)
def score_shard(
    storage: Storage, corpus_id: str, entry: ModelEntry, shard_index: int, scoring: ScoringConfig, stage: str
) -> ScoreShardManifest:
    """Scores one candidate shard, or returns its manifest where it is scored already; what fails is recorded with the scores."""
    corpus, candidates = _find_corpus(storage, corpus_id)
    shard = candidates.get(shard_index)
    if shard is None:
        raise CorpusError(f"corpus {corpus_id} has no candidate shard {shard_index}; its shards are 0 to {len(candidates) - 1}")
    state = shards.check_score_shard(storage, shard, entry.model_id)
    if state.manifest is not None:
        return state.manifest
    name = layout.shard_name(shard_index)
    message = f"{name} was stopped before it was done; nothing of it is published"
    on_progress = unless_stopped(_stopping, shard_callback(stage, name), message)
    try:
        loaded = _load_once(storage, entry, scoring, corpus.sequence_length)
        on_progress(Progress(stage, 0, shard.num_tokens, "tokens"))
        rest = (on_progress, name_worker(), loaded.start_seconds)
        if isinstance(loaded.scorer, ProxyScorer):
            manifest = predict_shard(storage, corpus, shard, entry, loaded.scorer, *rest)
        else:
            manifest = shards.score_shard(storage, corpus, shard, entry, loaded.scorer, *rest)
    except Exception as error:
        if not isinstance(error, StoppedError):
            _record(storage, shard, entry, error)
        raise
    clear_failure(storage, shard, entry.model_id)
    return manifest


def _record(storage: Storage, shard: ShardEntry, entry: ModelEntry, error: Exception) -> None:
    try:
        record_failure(storage, shard, entry, error, name_worker(), flow_run.get_id() or "")
    except (StorageError, OSError) as unrecorded:
        error.add_note(f"(and that could not be recorded: {unrecorded})")


@task(
    name="calibrate-dtypes", task_run_name="calibrate {teacher.dtype} and {reference.dtype} on {corpus.corpus_id}", **TASK_OPTIONS
)
def calibrate_dtypes(
    storage: Storage,
    corpus: CorpusManifest,
    teacher: ModelEntry,
    reference: ModelEntry,
    scoring: ScoringConfig,
    num_sequences: int,
    within: Literal["corpus", "domain"],
) -> Calibration:
    """Scores some candidates by both models in their dtypes and in float32, and keeps what came of it with the scores."""

    def open_one(entry: ModelEntry) -> Scorer:
        release_model()
        # The dtype is measured as it will run, compiled or not; float32 is not worth the compiling.
        how = scoring.model_copy(update={"compile": False}) if entry.dtype == "float32" else scoring
        with _loading:
            began = time.time()
            scorer = open_scorer(storage, entry, how, corpus.sequence_length, emulated=True)
            _loaded[(storage.root, entry.model_id, entry.dtype)] = _Loaded(scorer, time.time() - began)
            return scorer

    try:
        return fidelity.calibrate(storage, corpus, teacher, reference, num_sequences, open_one, report_progress, within)
    finally:
        release_model()

"""Scores shards: one model load serves all shards of a process."""

from __future__ import annotations

import threading

import torch
from prefect import task

from miniplm import layout
from miniplm.artifacts import ModelEntry, ScoreShardManifest
from miniplm.config import ScoringConfig
from miniplm.corpus.reader import load_corpus
from miniplm.errors import CorpusError
from miniplm.models.devices import resolve_device
from miniplm.models.loading import LoadedModel
from miniplm.models.opening import open_model
from miniplm.scoring import shards
from miniplm.scoring.batches import resolve_tokens_per_batch
from miniplm.storage import Storage
from tasks.progress import shard_callback
from tasks.retries import TASK_OPTIONS

_loaded: dict[tuple[str, str, str], LoadedModel] = {}
_loading = threading.Lock()


def _load_once(storage: Storage, entry: ModelEntry, device: torch.device) -> LoadedModel:
    """The model of an entry; only the last one asked for is kept, so that two models never share a device's memory."""
    key = (storage.root, entry.model_id, str(device))
    with _loading:
        if key not in _loaded:
            _loaded.clear()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            _loaded[key] = open_model(storage, entry, device)
        return _loaded[key]


def release_model() -> None:
    """Lets go of the model that was loaded last."""
    with _loading:
        _loaded.clear()


@task(name="load-model", task_run_name="load {entry.model_id}", **TASK_OPTIONS)
def load_model(storage_url: str, entry: ModelEntry, scoring: ScoringConfig) -> None:
    """Loads and checks the model once, before any shard: what is wrong with it is said once, not by every shard."""
    _load_once(Storage(storage_url), entry, resolve_device(scoring.device))


@task(name="score-shard", task_run_name="score {corpus_id} {entry.model_id} shard-{shard_index:05d}", **TASK_OPTIONS)
def score_shard(
    storage_url: str, corpus_id: str, entry: ModelEntry, shard_index: int, scoring: ScoringConfig, stage: str
) -> ScoreShardManifest:
    """Scores one candidate shard, or returns its manifest where it is scored already."""
    storage = Storage(storage_url)
    corpus = load_corpus(storage, corpus_id)
    shard = next((shard for shard in corpus.split_shards("candidate") if shard.shard_index == shard_index), None)
    if shard is None:
        num_shards = len(corpus.split_shards("candidate"))
        raise CorpusError(f"corpus {corpus_id} has no candidate shard {shard_index}; its shards are 0 to {num_shards - 1}")
    state = shards.check_score_shard(storage, shard, entry.model_id)
    if state.manifest is not None:
        return state.manifest
    device = resolve_device(scoring.device)
    return shards.score_shard(
        storage,
        corpus,
        shard,
        entry,
        _load_once(storage, entry, device),
        resolve_tokens_per_batch(scoring.tokens_per_batch, device.type),
        shard_callback(stage, layout.shard_name(shard_index)),
    )

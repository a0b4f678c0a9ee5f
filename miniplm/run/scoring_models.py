"""The two models that score: made here where they are not given, and opened."""

from __future__ import annotations

from pathlib import Path

from miniplm import layout
from miniplm.config.run import ScoringConfig
from miniplm.corpus.reader import load_corpus
from miniplm.models.devices import describe_device, device_errors, resolve_device, resolve_dtype, use_device
from miniplm.models.opening import open_model
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.proxy.features import PoolStates
from miniplm.proxy.prediction import ProxyScorer, load_proxy, open_proxy
from miniplm.records.manifests import CorpusManifest, ModelEntry, TrainingManifest
from miniplm.run.model_entries import name_trained, name_tuned
from miniplm.run.plan import RunPlan
from miniplm.run.training_plans import plan_reference, plan_teacher
from miniplm.scoring.engine import Scorer
from miniplm.scoring.pooling import pool_states
from miniplm.storage.root import Storage
from miniplm.training.exports import export_model
from miniplm.training.processes.launch import launch_training


def open_scorer(
    storage: Storage, entry: ModelEntry, scoring: ScoringConfig, sequence_length: int, emulated: bool = False
) -> Scorer:
    """The model of an entry, loaded, compiled where that pays, and ready to score sequences of up to `sequence_length` targets.

    Raises what `open_model` raises, `ConfigError` where the device cannot compute in the entry's dtype.
    """
    device = resolve_device(scoring.device)
    resolve_dtype(entry.dtype, device, emulated)
    cache_folder = Path(storage.path(layout.compile_cache())) if storage.is_local else None
    with use_device(device), device_errors(device, f"loading model {entry.model_id}"):
        model = open_model(storage, entry, device, will_compile=scoring.compile is True)
        scorer = Scorer(model, scoring.tokens_per_batch, entry.attention, scoring.compile, cache_folder)
        scorer.warm_up(sequence_length)
    return scorer


def pool_by(scorer: Scorer, eos_token_id: int) -> PoolStates:
    """The mean hidden states of sequences, by a scorer that is open."""
    return lambda sequences: pool_states(scorer, sequences, eos_token_id)


def open_proxy_scorer(storage: Storage, entry: ModelEntry, scoring: ScoringConfig, sequence_length: int) -> ProxyScorer:
    """The proxy of an entry, with the reference beside it where it reads its states. Raises `ProxyError` where it is not fitted, and as `open_scorer`."""
    manifest = load_proxy(storage, entry.model_id)
    if manifest.kind == "linear":
        return open_proxy(storage, manifest)
    scorer = open_scorer(storage, manifest.reference, scoring, sequence_length)
    eos_token_id = load_corpus(storage, manifest.corpus_id).tokenizer.eos_token_id
    return open_proxy(storage, manifest, pool_by(scorer, eos_token_id), describe_device(scorer.model.device), scorer.forward.notes)


def train_reference(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, on_progress: ProgressCallback = ignore_progress
) -> tuple[ModelEntry, TrainingManifest]:
    """Trains the reference on the reference split and publishes it at `models/MODEL_ID`; what is done is not done again."""
    training = launch_training(storage, plan_reference(plan, corpus), on_progress, plan.execution.launcher)
    entry = name_trained(plan, training)
    export_model(storage, training, layout.model_folder(entry.model_id))
    return entry, training


def tune_teacher(
    storage: Storage, plan: RunPlan, reference: ModelEntry, on_progress: ProgressCallback = ignore_progress
) -> tuple[ModelEntry, TrainingManifest]:
    """Tunes the reference on the target text, which is prepared, and publishes it as the teacher; what is done is not done again."""
    training = launch_training(storage, plan_teacher(storage, plan, reference), on_progress, plan.execution.launcher)
    entry = name_tuned(plan, training)
    export_model(storage, training, layout.model_folder(entry.model_id))
    return entry, training

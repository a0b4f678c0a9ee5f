"""The two models that score: the teacher is given, the reference is given or trained here on the reference split."""

from __future__ import annotations

from pathlib import Path

from miniplm import layout
from miniplm.artifacts import CorpusManifest, ModelEntry, TrainingManifest
from miniplm.config import RunConfig, ScoringConfig
from miniplm.errors import ModelError
from miniplm.models.devices import device_errors, resolve_device, resolve_dtype, resolve_scoring_dtype, use_device
from miniplm.models.files import locate_model
from miniplm.models.identity import identify_model, name_model
from miniplm.models.opening import open_model
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.scoring.engine import Scorer
from miniplm.storage import Storage
from miniplm.training.exports import export_model, find_export
from miniplm.training.launch import launch_training
from miniplm.training.loop import find_training
from miniplm.training.recipe import TrainingPlan, plan_training


def identify_teacher(config: RunConfig, emulated: bool = False) -> ModelEntry:
    """The teacher's entry; `emulated` allows a dtype that the device has not, for a calibration.

    Raises `ModelError` where its files are not there or not whole.
    """
    teacher = config.teacher
    dtype = _resolve_dtype(config, teacher.dtype, emulated)
    folder = locate_model(teacher.model, teacher.revision)
    return identify_model(folder, teacher.model, dtype, teacher.revision, teacher.trust_remote_code, config.scoring.attention)


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


def plan_reference(config: RunConfig, corpus: CorpusManifest) -> TrainingPlan:
    """The training of the reference model, of a configuration that has one trained."""
    reference = config.reference
    assert reference.architecture is not None
    assert reference.training is not None
    return plan_training(
        corpus,
        "reference",
        reference.architecture,
        reference.training,
        vocab_size=reference.vocab_size,
        device=config.planning_device,
        trust_remote_code=reference.trust_remote_code,
        trust_tokenizer_code=config.corpus.trust_remote_code,
    )


def find_reference(storage: Storage, config: RunConfig, corpus: CorpusManifest, emulated: bool = False) -> ModelEntry | None:
    """The reference's entry: of the given model, or of the one trained here; None where it is yet to be trained."""
    reference = config.reference
    if reference.model is not None:
        folder = locate_model(reference.model, reference.revision)
        return identify_model(
            folder,
            reference.model,
            _reference_dtype(config, emulated),
            reference.revision,
            reference.trust_remote_code,
            config.scoring.attention,
        )
    training = find_training(storage, plan_reference(config, corpus).training_id)
    if training is None:
        return None
    entry = _trained_entry(config, training, emulated)
    return entry if find_export(storage, layout.model_folder(entry.model_id)) == training else None


def require_reference(storage: Storage, config: RunConfig, corpus: CorpusManifest, emulated: bool = False) -> ModelEntry:
    """As `find_reference`; a training that is finished is published under this dtype's id too. `ModelError` where there is none yet."""
    entry = find_reference(storage, config, corpus, emulated)
    if entry is not None:
        return entry
    training = find_training(storage, plan_reference(config, corpus).training_id)
    if training is None:
        raise ModelError(
            f"the reference model of corpus {corpus.corpus_id} is not trained yet; run `miniplm train-reference CONFIG`"
        )
    entry = _trained_entry(config, training, emulated)
    export_model(storage, training, layout.model_folder(entry.model_id))
    return entry


def train_reference(
    storage: Storage, config: RunConfig, corpus: CorpusManifest, on_progress: ProgressCallback = ignore_progress
) -> tuple[ModelEntry, TrainingManifest]:
    """Trains the reference on the reference split and publishes it at `models/MODEL_ID`; what is done is not done again."""
    training = launch_training(storage, plan_reference(config, corpus), on_progress, config.execution.launcher)
    entry = _trained_entry(config, training)
    export_model(storage, training, layout.model_folder(entry.model_id))
    return entry, training


def _reference_dtype(config: RunConfig, emulated: bool = False) -> str:
    return _resolve_dtype(config, config.reference.dtype, emulated)


def _resolve_dtype(config: RunConfig, dtype: str, emulated: bool) -> str:
    # Whether the workers of a pool have fp8 is for them to say, when they load the model.
    return resolve_scoring_dtype(dtype, resolve_device(config.planning_device), emulated or config.is_on_work_pool)


def _trained_entry(config: RunConfig, training: TrainingManifest, emulated: bool = False) -> ModelEntry:
    dtype, attention = _reference_dtype(config, emulated), config.scoring.attention
    return ModelEntry(
        model_id=name_model(training.num_parameters, training.weights_digest, training.recipe["architecture"], dtype, attention),
        source=training.training_id,
        stored=True,
        trust_remote_code=config.reference.trust_remote_code,
        dtype=dtype,
        attention=attention,
        weights_digest=training.weights_digest,
        num_parameters=training.num_parameters,
    )

"""The two models that score: the teacher is given, the reference is given or trained here on the reference split."""

from __future__ import annotations

from miniplm import layout
from miniplm.artifacts import CorpusManifest, ModelEntry, TrainingManifest
from miniplm.config import ReferenceConfig, RunConfig
from miniplm.errors import ModelError
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.files import locate_model
from miniplm.models.identity import identify_model, name_model
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.storage import Storage
from miniplm.training.exports import export_model, find_export
from miniplm.training.loop import find_training, train_model
from miniplm.training.recipe import TrainingPlan, plan_training


def identify_teacher(config: RunConfig) -> ModelEntry:
    """The teacher's entry. Raises `ModelError` where its files are not there or not whole."""
    teacher = config.teacher
    dtype = resolve_dtype(teacher.dtype, resolve_device(config.scoring.device))
    folder = locate_model(teacher.model, teacher.revision)
    return identify_model(folder, teacher.model, dtype, teacher.revision, teacher.trust_remote_code)


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
        device=config.scoring.device,
        trust_remote_code=reference.trust_remote_code,
        trust_tokenizer_code=config.corpus.trust_remote_code,
    )


def find_reference(storage: Storage, config: RunConfig, corpus: CorpusManifest) -> ModelEntry | None:
    """The reference's entry: of the given model, or of the one trained here; None where it is yet to be trained."""
    reference = config.reference
    if reference.model is not None:
        folder = locate_model(reference.model, reference.revision)
        return identify_model(folder, reference.model, _reference_dtype(config), reference.revision, reference.trust_remote_code)
    training = find_training(storage, plan_reference(config, corpus).training_id)
    if training is None:
        return None
    entry = _trained_entry(reference, training, _reference_dtype(config))
    return entry if find_export(storage, layout.model_folder(entry.model_id)) == training else None


def require_reference(storage: Storage, config: RunConfig, corpus: CorpusManifest) -> ModelEntry:
    """As `find_reference`; `ModelError` where the reference is yet to be trained."""
    entry = find_reference(storage, config, corpus)
    if entry is None:
        raise ModelError(
            f"the reference model of corpus {corpus.corpus_id} is not trained yet; run `miniplm train-reference CONFIG`"
        )
    return entry


def train_reference(
    storage: Storage, config: RunConfig, corpus: CorpusManifest, on_progress: ProgressCallback = ignore_progress
) -> tuple[ModelEntry, TrainingManifest]:
    """Trains the reference on the reference split and publishes it at `models/MODEL_ID`; what is done is not done again."""
    training = train_model(storage, plan_reference(config, corpus), on_progress)
    entry = _trained_entry(config.reference, training, _reference_dtype(config))
    export_model(storage, training, layout.model_folder(entry.model_id))
    return entry, training


def _reference_dtype(config: RunConfig) -> str:
    return resolve_dtype(config.reference.dtype, resolve_device(config.scoring.device))


def _trained_entry(reference: ReferenceConfig, training: TrainingManifest, dtype: str) -> ModelEntry:
    return ModelEntry(
        model_id=name_model(training.num_parameters, training.weights_digest, training.recipe["architecture"], dtype),
        source=training.training_id,
        stored=True,
        trust_remote_code=reference.trust_remote_code,
        dtype=dtype,
        weights_digest=training.weights_digest,
        num_parameters=training.num_parameters,
    )

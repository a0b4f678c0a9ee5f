"""The reference model of a run, as its files at the storage root say: given, trained and published, or yet to be trained."""

from __future__ import annotations

from miniplm import layout
from miniplm.errors import ModelError
from miniplm.models.identity import name_model
from miniplm.records.manifests import CorpusManifest, ModelEntry, TrainingManifest
from miniplm.run.plan import RunPlan
from miniplm.run.trainings import know_reference
from miniplm.storage.root import Storage
from miniplm.training.exports import export_model, find_export
from miniplm.training.records import find_training


def find_reference(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> ModelEntry | None:
    """The reference's entry: of the given model, or of the one trained here; None where it is yet to be trained."""
    if plan.reference.model is not None:
        return plan.reference_entry
    training = find_training(storage, know_reference(storage, plan, corpus).training_id)
    if training is None:
        return None
    entry = name_trained(plan, training)
    return entry if find_export(storage, layout.model_folder(entry.model_id)) == training else None


def require_reference(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> ModelEntry:
    """As `find_reference`; a training that is finished is published under this dtype's id too. `ModelError` where there is none yet."""
    entry = find_reference(storage, plan, corpus)
    if entry is not None:
        return entry
    training = find_training(storage, know_reference(storage, plan, corpus).training_id)
    if training is None:
        raise ModelError(
            f"the reference model of corpus {corpus.corpus_id} is not trained yet; run `miniplm train-reference CONFIG`"
        )
    entry = name_trained(plan, training)
    export_model(storage, training, layout.model_folder(entry.model_id))
    return entry


def name_trained(plan: RunPlan, training: TrainingManifest) -> ModelEntry:
    """The entry of a reference model that was trained here."""
    return make_entry(plan, training, plan.reference_dtype, plan.reference.trust_remote_code)


def make_entry(plan: RunPlan, training: TrainingManifest, dtype: str, trust_remote_code: bool) -> ModelEntry:
    """A model that was trained here as it scores in `dtype`."""
    attention = plan.scoring.attention
    return ModelEntry(
        model_id=name_model(training.num_parameters, training.weights_digest, training.recipe["architecture"], dtype, attention),
        source=training.training_id,
        stored=True,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        attention=attention,
        weights_digest=training.weights_digest,
        num_parameters=training.num_parameters,
    )

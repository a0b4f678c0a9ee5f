"""The entries of the two models that score, as their files at the storage root say: given, made here and published, or yet to be made.

The reference is trained here where none is given; the teacher may be the reference, tuned on target text (CoLoR-Filter, arXiv 2406.10670).
"""

from __future__ import annotations

from miniplm import layout
from miniplm.corpus.reader import find_corpus
from miniplm.errors import ModelError
from miniplm.models.identity import name_model
from miniplm.records.manifests import CorpusManifest, ModelEntry, TrainingManifest
from miniplm.run.outside_texts import resolve_target_id
from miniplm.run.plan import RunPlan
from miniplm.run.trainings import know_reference, know_teacher
from miniplm.storage.root import Storage
from miniplm.training.exports import export_model, find_export
from miniplm.training.records import find_training


def find_reference(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> ModelEntry | None:
    """The reference's entry: of the given model, or of the one trained here; None where it is yet to be trained."""
    if plan.reference.model is not None:
        return plan.reference_entry
    training = find_training(storage, know_reference(storage, plan, corpus).training_id)
    return None if training is None else _find_published(storage, training, name_trained(plan, training))


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


def find_tuned(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> ModelEntry | None:
    """The entry of a teacher that is tuned here; None where it, or what it is tuned from or on, is yet to be made."""
    reference = find_reference(storage, plan, corpus)
    if reference is None or find_corpus(storage, resolve_target_id(storage, plan)) is None:
        return None
    training = find_training(storage, know_teacher(storage, plan, reference).training_id)
    return None if training is None else _find_published(storage, training, name_tuned(plan, training))


def with_teacher(storage: Storage, plan: RunPlan, corpus: CorpusManifest | None) -> RunPlan:
    """The plan with the teacher that it has tuned; as it is where the teacher is given, known already, or not tuned yet."""
    if plan.teacher.tuned_on is None or plan.teacher_entry is not None or corpus is None:
        return plan
    return plan.model_copy(update={"teacher_entry": find_tuned(storage, plan, corpus)})


def name_trained(plan: RunPlan, training: TrainingManifest) -> ModelEntry:
    """The entry of a reference model that was trained here."""
    return _make_entry(plan, training, plan.reference_dtype)


def name_tuned(plan: RunPlan, training: TrainingManifest) -> ModelEntry:
    """The entry of a teacher that was tuned here."""
    return _make_entry(plan, training, plan.teacher_dtype)


def _make_entry(plan: RunPlan, training: TrainingManifest, dtype: str) -> ModelEntry:
    """A model that was trained here as it scores in `dtype`."""
    attention = plan.scoring.attention
    return ModelEntry(
        model_id=name_model(training.num_parameters, training.weights_digest, training.recipe["architecture"], dtype, attention),
        source=training.training_id,
        stored=True,
        trust_remote_code=plan.reference.trust_remote_code,
        dtype=dtype,
        attention=attention,
        weights_digest=training.weights_digest,
        num_parameters=training.num_parameters,
    )


def _find_published(storage: Storage, training: TrainingManifest, entry: ModelEntry) -> ModelEntry | None:
    return entry if find_export(storage, layout.model_folder(entry.model_id)) == training else None

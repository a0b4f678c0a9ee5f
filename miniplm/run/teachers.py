"""The teacher of a run where it is made here: the reference, tuned on target text (CoLoR-Filter, arXiv 2406.10670)."""

from __future__ import annotations

from miniplm import layout
from miniplm.corpus.identity import plan_corpus
from miniplm.corpus.reader import find_corpus
from miniplm.records.manifests import CorpusManifest, ModelEntry, TrainingManifest
from miniplm.run.plan import RunPlan
from miniplm.run.references import find_reference, make_entry
from miniplm.run.targets import resolve_target_id
from miniplm.run.trainings import know_teacher
from miniplm.storage.root import Storage
from miniplm.training.exports import find_export
from miniplm.training.records import find_training


def with_teacher(storage: Storage, plan: RunPlan) -> RunPlan:
    """The plan with the teacher that it has tuned; as it is where the teacher is given, known already, or not tuned yet."""
    if plan.teacher.tuned_on is None or plan.teacher_entry is not None:
        return plan
    corpus = find_corpus(storage, plan_corpus(storage, plan.corpus, plan.tokenizer).corpus_id)
    entry = None if corpus is None else find_tuned(storage, plan, corpus)
    return plan if entry is None else plan.model_copy(update={"teacher_entry": entry})


def find_tuned(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> ModelEntry | None:
    """The entry of the tuned teacher; None where it, or what it is tuned from or on, is yet to be made."""
    reference = find_reference(storage, plan, corpus)
    if reference is None or find_corpus(storage, resolve_target_id(storage, plan)) is None:
        return None
    training = find_training(storage, know_teacher(storage, plan, reference).training_id)
    if training is None:
        return None
    entry = name_tuned(plan, training)
    return entry if find_export(storage, layout.model_folder(entry.model_id)) == training else None


def name_tuned(plan: RunPlan, training: TrainingManifest) -> ModelEntry:
    """The entry of a teacher that was tuned here."""
    return make_entry(plan, training, plan.teacher_dtype, plan.reference.trust_remote_code)

"""What is known of the trainings of a run: each is planned once, and kept with the run's plan."""

from __future__ import annotations

from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.selections import SelectionManifest
from miniplm.run.outside_texts import find_text, list_texts, resolve_target_id
from miniplm.run.plan import PlannedTraining, RunPlan
from miniplm.storage.root import Storage


def know_reference(storage: Storage, plan: RunPlan, corpus: CorpusManifest) -> PlannedTraining:
    """The training of the reference model, of a run that has one trained."""
    key = f"reference of {corpus.corpus_id}"
    if key in plan.trainings:
        return plan.trainings[key]
    from miniplm.run.training_plans import plan_reference  # imports torch

    training = plan_reference(plan, corpus)
    return plan.learn(storage, key, PlannedTraining(training_id=training.training_id, steps=training.config.steps))


def know_teacher(storage: Storage, plan: RunPlan, reference: ModelEntry) -> PlannedTraining:
    """The training that makes the reference the teacher, of a run whose target text is prepared."""
    key = f"teacher of {reference.weights_digest} on {resolve_target_id(storage, plan)}"
    if key in plan.trainings:
        return plan.trainings[key]
    from miniplm.run.training_plans import plan_teacher  # imports torch

    training = plan_teacher(storage, plan, reference)
    return plan.learn(storage, key, PlannedTraining(training_id=training.training_id, steps=training.config.steps))


def know_student(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> PlannedTraining:
    """The training of a student on this selection, and what is to be derived for it."""
    # The plan's own key says nothing of the selection, and its id nothing of the seed, which only some students draw by.
    key = f"student {student_name} of {corpus.corpus_id} {selection.selection_id} seed {plan.selection.seed}"
    # Nor of held-out text from elsewhere, of which a student needs its own tokens once it is prepared.
    for text in list_texts(storage, plan, corpus) if plan.evaluation.sources else ():
        if find_text(storage, text, corpus) is not None:
            key += f" {text.split} {text.corpus_id}"
    if key in plan.trainings:
        return plan.trainings[key]
    from miniplm.run.training_plans import describe_training  # imports torch

    return plan.learn(storage, key, describe_training(storage, plan, corpus, selection, student_name))

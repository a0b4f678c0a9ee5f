"""The students of a run as their files at the storage root say: which are trained, and what is measured of them."""

from __future__ import annotations

from miniplm import layout
from miniplm.errors import TrainingError
from miniplm.evaluation.accuracies import find_task_results
from miniplm.evaluation.milestones import find_evaluation, is_measured
from miniplm.evaluation.tasks import resolve_tasks
from miniplm.records.manifests import CorpusManifest, Evaluation, SelectionManifest, TrainingManifest
from miniplm.records.run import StudentRecord
from miniplm.run.plan import RunPlan
from miniplm.run.trainings import know_student
from miniplm.storage.root import Storage
from miniplm.training.exports import find_export
from miniplm.training.flops import count_unmatched_steps
from miniplm.training.records import find_training


def find_student(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> StudentRecord | None:
    """The record of a student that is trained and in its folder, with its evaluation where there is one; else None."""
    training = find_training(storage, know_student(plan, corpus, selection, student_name).training_id)
    if training is None or find_export(storage, layout.student_folder(plan.name, student_name)) != training:
        return None
    return make_record(plan, student_name, training, find_kept_evaluation(storage, plan, corpus, training))


def require_student(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> StudentRecord:
    """As `find_student`; `TrainingError` where the student is yet to be trained."""
    record = find_student(storage, plan, corpus, selection, student_name)
    if record is None:
        raise TrainingError(
            f"student {student_name} of run {plan.name} is not trained yet; run `miniplm train CONFIG --student {student_name}`"
        )
    return record


def list_needed_sets(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> tuple[str, ...]:
    """The ids of the derived sets that a student still needs: for its training until it is trained, for its measurement until that is done."""
    training = know_student(plan, corpus, selection, student_name)
    needed: tuple[str, ...] = ()
    if training.derived_ids and find_training(storage, training.training_id) is None:
        needed = training.derived_ids
    if training.heldout_id is not None:
        student = find_student(storage, plan, corpus, selection, student_name)
        if student is None or student.evaluation is None:
            needed += (training.heldout_id,)
    return needed


def is_evaluated(storage: Storage, plan: RunPlan, corpus: CorpusManifest, student_name: str, student: StudentRecord) -> bool:
    """Whether all that the run wants to know of a student is measured, so that `evaluate_student` would compute nothing."""
    training = find_training(storage, student.training_id)
    if training is None or student.evaluation is None:
        return False
    if set(resolve_tasks(plan.evaluation.tasks)) - set(student.evaluation.tasks):
        return False
    return is_measured(storage, corpus.corpus_id, training, milestone_every_steps(plan, student_name))


def milestone_every_steps(plan: RunPlan, student_name: str) -> int | None:
    """Optimizer steps between the checkpoints that are measured too; None where only the final model is."""
    return plan.find_student(student_name).training.milestone_every_steps if plan.evaluation.milestones else None


def find_kept_evaluation(storage: Storage, plan: RunPlan, corpus: CorpusManifest, training: TrainingManifest) -> Evaluation | None:
    """The kept evaluation of these weights on this corpus, with those of the run's tasks that are done; else None."""
    evaluation = find_evaluation(storage, corpus.corpus_id, training)
    if evaluation is None:
        return None
    return evaluation.model_copy(update={"tasks": find_task_results(storage, plan.evaluation, training)})


def make_record(plan: RunPlan, student_name: str, training: TrainingManifest, evaluation: Evaluation | None) -> StudentRecord:
    """The record of a student that was trained."""
    student = plan.find_student(student_name)
    num_unmatched_steps = None
    if student.flop_matched:
        teacher = training.recipe["data"]["teacher"]
        num_unmatched_steps = count_unmatched_steps(
            student.training, training.num_steps, training.num_parameters, teacher["num_parameters"]
        )
    return StudentRecord(
        training_id=training.training_id,
        method=student.method,
        architecture=student.architecture,
        num_parameters=training.num_parameters,
        num_steps=training.num_steps,
        num_unmatched_steps=num_unmatched_steps,
        num_tokens=training.num_tokens,
        final_loss=training.final_loss,
        folder=layout.student_folder(plan.name, student_name),
        evaluation=evaluation,
    )

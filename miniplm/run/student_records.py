"""The students of a run as their files at the storage root say: which are trained, and what is measured of them."""

from __future__ import annotations

from miniplm import layout
from miniplm.errors import TrainingError
from miniplm.evaluation.accuracies import find_task_results
from miniplm.evaluation.milestones import find_evaluation, is_measured
from miniplm.evaluation.tasks import resolve_tasks
from miniplm.records.manifests import CorpusManifest, Evaluation, TrainingManifest
from miniplm.records.run import StudentRecord
from miniplm.records.selections import SelectionManifest
from miniplm.records.texts import MeasuredText
from miniplm.run.outside_texts import list_texts
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
    training = find_training(storage, know_student(storage, plan, corpus, selection, student_name).training_id)
    if training is None or find_export(storage, layout.student_folder(plan.name, student_name)) != training:
        return None
    return make_record(plan, student_name, training, *find_kept_evaluations(storage, plan, corpus, training))


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
    training = know_student(storage, plan, corpus, selection, student_name)
    needed: tuple[str, ...] = ()
    if training.derived_ids and find_training(storage, training.training_id) is None:
        needed = training.derived_ids
    if training.heldout_ids:
        student = find_student(storage, plan, corpus, selection, student_name)
        if student is None or student.evaluation is None or (_has_two_texts(plan) and student.on_split is None):
            needed += training.heldout_ids
    return needed


def is_evaluated(storage: Storage, plan: RunPlan, corpus: CorpusManifest, student_name: str, student: StudentRecord) -> bool:
    """Whether all that the run wants to know of a student is measured, so that `evaluate_student` would compute nothing."""
    training = find_training(storage, student.training_id)
    if training is None or student.evaluation is None or (_has_two_texts(plan) and student.on_split is None):
        return False
    if set(resolve_tasks(plan.evaluation.tasks)) - set(student.evaluation.tasks):
        return False
    texts = list_texts(storage, plan, corpus)
    return all(is_measured(storage, text, training, milestone_every_steps(plan, student_name, text, texts)) for text in texts)


def milestone_every_steps(plan: RunPlan, student_name: str, text: MeasuredText, texts: list[MeasuredText]) -> int | None:
    """Optimizer steps between the checkpoints that are measured on a text too; None where only the final model is: on all texts but the first."""
    if not plan.evaluation.milestones or text != texts[0]:
        return None
    return plan.find_student(student_name).training.milestone_every_steps


def find_kept_evaluations(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, training: TrainingManifest
) -> tuple[Evaluation | None, Evaluation | None]:
    """The kept evaluations of these weights on the run's first text, with those of its tasks that are done, and on its second; None where there are none."""
    texts = list_texts(storage, plan, corpus)
    found = [find_evaluation(storage, text, training) for text in texts]
    evaluation = found[0]
    if evaluation is not None:
        evaluation = evaluation.model_copy(update={"tasks": find_task_results(storage, plan.evaluation, training)})
    return evaluation, found[1] if len(found) > 1 else None


def _has_two_texts(plan: RunPlan) -> bool:
    return plan.evaluation.heldout and bool(plan.evaluation.sources)


def make_record(
    plan: RunPlan, student_name: str, training: TrainingManifest, evaluation: Evaluation | None, on_split: Evaluation | None = None
) -> StudentRecord:
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
        on_split=on_split,
    )

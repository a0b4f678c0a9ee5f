"""Trains and evaluates students."""

from __future__ import annotations

from prefect import task

from miniplm.corpus.reader import load_corpus
from miniplm.records.run import StageRecord, StudentRecord
from miniplm.run import stages
from miniplm.run.plan import RunPlan
from miniplm.run.trainings import know_student
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage
from tasks.progress import report_progress, training_progress
from tasks.retries import TASK_OPTIONS


@task(name="train-student", task_run_name="train {student_name} on {selection_id}", **TASK_OPTIONS)
def train_student(plan: RunPlan, corpus_id: str, selection_id: str, student_name: str) -> tuple[StudentRecord, StageRecord]:
    """Trains one student from scratch, from its last checkpoint where there is one."""
    storage = Storage(plan.storage)
    corpus, selection = load_corpus(storage, corpus_id), load_selection(storage, selection_id)
    training_id = know_student(plan, corpus, selection, student_name).training_id
    with training_progress(f"train {student_name}", f"train {student_name} {training_id}") as on_progress:
        return stages.train(plan, corpus, selection, student_name, on_progress)


@task(name="evaluate-student", task_run_name="evaluate {student_name} on {corpus_id}", **TASK_OPTIONS)
def evaluate_student(plan: RunPlan, corpus_id: str, student_name: str, student: StudentRecord) -> tuple[StudentRecord, StageRecord]:
    """Measures a student and its milestones on the held-out split, and by the run's tasks; adds the results to its record."""
    return stages.evaluate(plan, load_corpus(Storage(plan.storage), corpus_id), student_name, student, report_progress)

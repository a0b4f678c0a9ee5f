"""Trains and evaluates students."""

from __future__ import annotations

from prefect import task

from miniplm import students
from miniplm.corpus.reader import load_corpus
from miniplm.run_plan import RunPlan
from miniplm.run_record import StageRecord, StudentRecord
from miniplm.selection.ranking import load_selection
from miniplm.storage import Storage
from miniplm.student_records import is_evaluated
from miniplm.training.records import find_training
from tasks.progress import report_as, training_progress
from tasks.retries import TASK_OPTIONS


@task(name="train-student", task_run_name="train {student_name} on {selection_id}", **TASK_OPTIONS)
def train_student(plan: RunPlan, corpus_id: str, selection_id: str, student_name: str) -> tuple[StudentRecord, StageRecord]:
    """Trains one student from scratch, from its last checkpoint where there is one."""
    storage = Storage(plan.storage)
    corpus, selection = load_corpus(storage, corpus_id), load_selection(storage, selection_id)
    training_id = plan.plan_student(corpus, selection, student_name).training_id
    reused = find_training(storage, training_id) is not None
    with training_progress(f"train {student_name}", f"train {student_name} {training_id}") as on_progress:
        record, training = students.train_student(storage, plan, corpus, selection, student_name, on_progress)
    return record, StageRecord(
        name=f"train {student_name}", seconds=training.seconds, reused=reused, num_units=training.num_tokens, unit="tokens"
    )


@task(name="evaluate-student", task_run_name="evaluate {student_name} on {corpus_id}", **TASK_OPTIONS)
def evaluate_student(plan: RunPlan, corpus_id: str, student_name: str, student: StudentRecord) -> tuple[StudentRecord, StageRecord]:
    """Measures a student and its milestones on the held-out split, and by the run's tasks; adds the results to its record."""
    storage = Storage(plan.storage)
    corpus = load_corpus(storage, corpus_id)
    reused = is_evaluated(storage, plan, corpus, student_name, student)
    on_loss, on_tasks = report_as(f"evaluate {student_name}"), report_as(f"zero-shot {student_name}")
    record = students.evaluate_student(storage, plan, corpus, student_name, student, on_loss, on_tasks)
    evaluation = record.evaluation
    assert evaluation is not None
    return record, StageRecord(
        name=f"evaluate {student_name}",
        seconds=evaluation.seconds,
        reused=reused,
        num_units=evaluation.overall.num_scored_tokens,
        unit="tokens",
    )

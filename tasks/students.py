"""Trains and evaluates students."""

from __future__ import annotations

from prefect import task

from miniplm import student_plans, students
from miniplm.config import RunConfig
from miniplm.corpus.reader import load_corpus
from miniplm.run_record import StageRecord, StudentRecord
from miniplm.selection.ranking import load_selection
from miniplm.storage import Storage
from miniplm.training.loop import find_training
from tasks.progress import report_as, training_progress
from tasks.retries import TASK_OPTIONS


@task(name="train-student", task_run_name="train {student_name} on {selection_id}", **TASK_OPTIONS)
def train_student(config: RunConfig, corpus_id: str, selection_id: str, student_name: str) -> tuple[StudentRecord, StageRecord]:
    """Trains one student from scratch, from its last checkpoint where there is one."""
    storage = Storage(config.storage)
    corpus, selection = load_corpus(storage, corpus_id), load_selection(storage, selection_id)
    training_id = student_plans.plan_student(config, corpus, selection, student_name).training_id
    earlier = find_training(storage, training_id)
    with training_progress(f"train {student_name}", f"train {student_name} {training_id}") as on_progress:
        record = students.train_student(storage, config, corpus, selection, student_name, on_progress)
    training = find_training(storage, training_id)
    assert training is not None
    return record, StageRecord(
        name=f"train {student_name}",
        seconds=training.seconds,
        reused=earlier is not None,
        num_units=training.num_tokens,
        unit="tokens",
    )


@task(name="evaluate-student", task_run_name="evaluate {student_name} on {corpus_id}", **TASK_OPTIONS)
def evaluate_student(
    config: RunConfig, corpus_id: str, student_name: str, student: StudentRecord
) -> tuple[StudentRecord, StageRecord]:
    """Measures a student and its milestones on the held-out split, and by the run's tasks; adds the results to its record."""
    storage = Storage(config.storage)
    corpus = load_corpus(storage, corpus_id)
    reused = students.is_evaluated(storage, config, corpus, student_name, student)
    on_loss, on_tasks = report_as(f"evaluate {student_name}"), report_as(f"zero-shot {student_name}")
    record = students.evaluate_student(storage, config, corpus, student_name, student, on_loss, on_tasks)
    evaluation = record.evaluation
    assert evaluation is not None
    return record, StageRecord(
        name=f"evaluate {student_name}",
        seconds=evaluation.seconds,
        reused=reused,
        num_units=evaluation.overall.num_scored_tokens,
        unit="tokens",
    )

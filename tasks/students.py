"""Trains and evaluates students."""

from __future__ import annotations

from prefect import task

from miniplm import students
from miniplm.config import RunConfig
from miniplm.corpus.reader import load_corpus
from miniplm.run_record import StageRecord, StudentRecord
from miniplm.selection.ranking import load_selection
from miniplm.storage import Storage
from tasks.progress import report_progress
from tasks.retries import TASK_OPTIONS


@task(name="train-student", task_run_name="train {student_name} on {selection_id}", **TASK_OPTIONS)
def train_student(config: RunConfig, corpus_id: str, selection_id: str, student_name: str) -> tuple[StudentRecord, StageRecord]:
    """Trains one student from scratch, from its last checkpoint where there is one."""
    storage = Storage(config.storage)
    return students.train_student(
        storage, config, load_corpus(storage, corpus_id), load_selection(storage, selection_id), student_name, report_progress
    )


@task(name="evaluate-student", task_run_name="evaluate {student_name} on {corpus_id}", **TASK_OPTIONS)
def evaluate_student(config: RunConfig, corpus_id: str, student_name: str, student: StudentRecord) -> tuple[StudentRecord, StageRecord]:
    """Measures a student on the held-out split and adds the result to its record."""
    storage = Storage(config.storage)
    return students.evaluate_student(storage, config, load_corpus(storage, corpus_id), student_name, student, report_progress)

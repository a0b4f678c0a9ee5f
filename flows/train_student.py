"""A selection and a student's configuration become a trained, evaluated student."""

from __future__ import annotations

from prefect import flow

from miniplm.config import RunConfig
from miniplm.run_record import StageRecord, StudentRecord
from tasks import students


@flow(name="train-student", flow_run_name="train {student_name} of {config.name}")
def train_student(config: RunConfig, corpus_id: str, selection_id: str, student_name: str) -> tuple[StudentRecord, StageRecord]:
    """Trains one student of a run."""
    return students.train_student(config, corpus_id, selection_id, student_name)

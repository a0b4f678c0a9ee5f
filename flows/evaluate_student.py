"""A student is measured on the held-out split and by zero-shot tasks."""

from __future__ import annotations

from prefect import flow

from miniplm.run_plan import RunPlan
from miniplm.run_record import StageRecord, StudentRecord
from tasks import students


@flow(name="evaluate-student", flow_run_name="evaluate {student_name} of {plan.name}")
def evaluate_student(plan: RunPlan, corpus_id: str, student_name: str, student: StudentRecord) -> tuple[StudentRecord, StageRecord]:
    """Evaluates one student of a run."""
    return students.evaluate_student(plan, corpus_id, student_name, student)

"""The stages that are one task each, as flows: so that the UI shows them, and each has its own timeline."""

from __future__ import annotations

from prefect import flow

from miniplm.records.manifests import CorpusManifest, ModelEntry, SelectionManifest
from miniplm.records.run import StageRecord, StudentRecord
from miniplm.run.plan import RunPlan
from tasks import corpora, reports, selections, students


@flow(name="prepare-corpus", flow_run_name="prepare {plan.name}")
def prepare_corpus(plan: RunPlan) -> tuple[CorpusManifest, StageRecord]:
    """Prepares the corpus of a run."""
    return corpora.prepare_corpus(plan)


@flow(name="select-sequences", flow_run_name="select {plan.selection.ratio} of {corpus_id}")
def select_sequences(plan: RunPlan, corpus_id: str, reference: ModelEntry) -> tuple[SelectionManifest, StageRecord]:
    """Selects the sequences of a run."""
    return selections.select_sequences(plan, corpus_id, reference)


@flow(name="evaluate-student", flow_run_name="evaluate {student_name} of {plan.name}")
def evaluate_student(plan: RunPlan, corpus_id: str, student_name: str, student: StudentRecord) -> tuple[StudentRecord, StageRecord]:
    """Evaluates one student of a run."""
    return students.evaluate_student(plan, corpus_id, student_name, student)


@flow(name="write-report", flow_run_name="report {run_name}")
def write_report(storage_url: str, run_name: str) -> str:
    """Writes `report.html` of a run; returns where it lies."""
    return reports.write_report(storage_url, run_name)

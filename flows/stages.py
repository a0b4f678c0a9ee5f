"""The stages that are one task each, as flows: so that the UI shows them, and each has its own timeline."""

from __future__ import annotations

from prefect import flow

from flows.work_pool.preparing import prepare_on_pool
from miniplm.corpus.reader import open_corpus
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.run import StageRecord, StudentRecord
from miniplm.records.selections import SelectionManifest
from miniplm.run.plan import RunPlan
from miniplm.storage.root import Storage
from tasks import stages


@flow(name="prepare-corpus", flow_run_name="prepare {plan.name}")
def prepare_corpus(plan: RunPlan) -> tuple[CorpusManifest, StageRecord]:
    """Prepares the corpus of a run, in this process, or has its files read and tokenised by the workers of its pool."""
    make_parts = prepare_on_pool(plan) if plan.prepares_on_workers else None
    return stages.prepare_corpus(Storage(plan.storage), plan, make_parts)


@flow(name="select-sequences", flow_run_name="select {plan.selection.title} of {corpus_id}")
def select_sequences(plan: RunPlan, corpus_id: str, reference: ModelEntry) -> tuple[SelectionManifest, StageRecord]:
    """Selects the sequences of a run."""
    storage, corpus = open_corpus(plan.storage, corpus_id)
    return stages.select_sequences(storage, plan, corpus, reference)


@flow(name="evaluate-student", flow_run_name="evaluate {student_name} of {plan.name}")
def evaluate_student(plan: RunPlan, corpus_id: str, student_name: str, student: StudentRecord) -> tuple[StudentRecord, StageRecord]:
    """Evaluates one student of a run."""
    storage, corpus = open_corpus(plan.storage, corpus_id)
    return stages.evaluate_student(storage, plan, corpus, student_name, student)


@flow(name="write-report", flow_run_name="report {run_name}")
def write_report(storage_url: str, run_name: str) -> str:
    """Writes `report.html` of a run; returns where it lies."""
    return stages.write_report(Storage(storage_url), run_name)

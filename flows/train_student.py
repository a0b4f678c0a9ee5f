"""A selection and a student's configuration become a trained student."""

from __future__ import annotations

from prefect import flow

from flows.derive_sequences import derive_sequences
from flows.work_pool.single import run_on_pool
from flows.work_pool.subflows import cancel_subflows, crash_subflows, tagged_subflows
from miniplm import __version__
from miniplm.corpus.reader import load_corpus
from miniplm.records.run import StageRecord, StudentRecord
from miniplm.run.plan import RunPlan
from miniplm.run.student_records import find_student, is_evaluated, list_needed_sets
from miniplm.run.trainings import know_student
from miniplm.selection.ranking import load_selection
from miniplm.storage.root import Storage
from tasks import students, workers


@flow(
    name="train-student",
    flow_run_name="train {student_name} of {plan.name}",
    on_cancellation=[cancel_subflows],
    on_crashed=[crash_subflows],
)
def train_student(
    plan: RunPlan,
    corpus_id: str,
    selection_id: str,
    student_name: str,
    evaluate: bool = False,
    version: str = __version__,
) -> tuple[StudentRecord, StageRecord]:
    """Trains one student of a run, from its last checkpoint; on a work pool a worker does, and measures it.

    Args:
        plan: the run's plan
        corpus_id: the prepared corpus
        selection_id: the selection, made of that corpus
        student_name: which student of the configuration
        evaluate: measure the student on the held-out split when it is trained
        version: version of miniplm that gives the work; a worker of another one refuses
    """
    workers.prepare_worker(version)
    if plan.is_on_work_pool:
        _train_on_pool(plan, corpus_id, selection_id, student_name)
    else:
        _derive_first(plan, corpus_id, selection_id, student_name)
    record, stage = students.train_student(plan, corpus_id, selection_id, student_name)
    if evaluate:
        record, _ = students.evaluate_student(plan, corpus_id, student_name, record)
    return record, stage


def _derive_first(plan: RunPlan, corpus_id: str, selection_id: str, student_name: str) -> None:
    """Makes the sequences that the student is trained and measured on, where they are not those of the corpus."""
    storage = Storage(plan.storage)
    corpus, selection = load_corpus(storage, corpus_id), load_selection(storage, selection_id)
    if list_needed_sets(storage, plan, corpus, selection, student_name):
        with tagged_subflows(plan.name):
            derive_sequences(plan, corpus_id, selection_id, student_name)


def _train_on_pool(plan: RunPlan, corpus_id: str, selection_id: str, student_name: str) -> None:
    """Has a worker train the student, and measure it where the run wants that, unless both are done."""
    storage = Storage(plan.storage)
    corpus, selection = load_corpus(storage, corpus_id), load_selection(storage, selection_id)
    found = find_student(storage, plan, corpus, selection, student_name)
    if found is not None and (not plan.evaluation.measures_losses or is_evaluated(storage, plan, corpus, student_name, found)):
        return
    parameters = {
        "plan": plan.for_worker().as_json(),
        "corpus_id": corpus_id,
        "selection_id": selection_id,
        "student_name": student_name,
        "evaluate": plan.evaluation.measures_losses,
        "version": __version__,
    }
    tag = f"training:{know_student(plan, corpus, selection, student_name).training_id}"
    run_on_pool("train-student", f"train {student_name} of {plan.name}", parameters, plan, tag)

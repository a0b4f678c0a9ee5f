"""Compares the dtypes that the two models score in with float32, before they may score: the fidelity gate."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.work_pool.single import run_on_pool
from miniplm import __version__
from miniplm.corpus.reader import load_corpus
from miniplm.errors import PoolWorkError
from miniplm.records.calibrations import Calibration
from miniplm.records.manifests import ModelEntry
from miniplm.run.plan import RunPlan
from miniplm.selection.fidelity import find_calibration
from miniplm.storage.root import Storage
from tasks import scoring, workers


@flow(name="calibrate-dtypes", flow_run_name="calibrate {teacher.dtype} and {reference.dtype} on {corpus_id}")
def calibrate_dtypes(
    plan: RunPlan,
    corpus_id: str,
    teacher: ModelEntry,
    reference: ModelEntry,
    num_sequences: Annotated[int, Field(ge=2)],
    version: str = __version__,
) -> Calibration:
    """Scores `num_sequences` candidates in both precisions; what it says is judged by whoever uses it.

    Args:
        plan: the run's plan
        corpus_id: the prepared corpus
        teacher: the teacher, as its run names it
        reference: the reference model, as its run names it
        num_sequences: candidate sequences to score in both precisions
        version: version of miniplm that gives the work; a worker of another one refuses
    """
    workers.prepare_worker(version)
    storage, within = Storage(plan.storage), plan.selection.within
    if not plan.is_on_work_pool:
        corpus = load_corpus(storage, corpus_id)
        return scoring.calibrate_dtypes(storage, corpus, teacher, reference, plan.scoring, num_sequences, within)
    parameters = {
        "plan": plan.for_worker().as_json(),
        "corpus_id": corpus_id,
        "teacher": teacher.as_json(),
        "reference": reference.as_json(),
        "num_sequences": num_sequences,
    }
    tag = f"calibration:{corpus_id}:{teacher.model_id}:{reference.model_id}:{within}:{num_sequences}"
    run_on_pool("calibrate-dtypes", f"calibrate {teacher.dtype} and {reference.dtype} on {corpus_id}", parameters, plan, tag)
    calibration = find_calibration(storage, corpus_id, teacher.model_id, reference.model_id, within)
    if calibration is None:
        raise PoolWorkError(f"a worker compared the dtypes on corpus {corpus_id}, but {plan.storage} does not show the result here")
    return calibration

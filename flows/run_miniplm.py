"""The whole road: corpus in, refined corpus, students and a report out."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import flow, task
from prefect.runtime import flow_run

from flows.calibrate_dtypes import calibrate_dtypes
from flows.export_selection import export_selection
from flows.fit_proxy import fit_proxy
from flows.parameters import ConfigUrl, InlineConfig, resolve_parameter
from flows.score_corpus import score_corpus
from flows.stages import evaluate_student, prepare_corpus, select_sequences, write_report
from flows.train_reference import train_reference
from flows.train_student import train_student
from flows.tune_teacher import tune_teacher
from flows.work_pool import fleet
from flows.work_pool.cancellation import cancel_children
from flows.work_pool.pinning import check_storage_is_kept, make_portable, pin_to_workers
from flows.work_pool.subflows import crash_subflows, tagged_subflows
from miniplm import layout
from miniplm.corpus.token_parts import delete_late_parts
from miniplm.errors import MiniplmError, ScoreError
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.run import RunRecord, StageRecord
from miniplm.run.fidelity_gate import check_fidelity, find_sufficient
from miniplm.run.log import RunLog
from miniplm.run.outside_texts import name_text
from miniplm.run.plan import RunPlan
from miniplm.run.proxies import judge_proxy, provide_labelled_corpus
from miniplm.selection.fidelity import needs_calibration
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage
from tasks.retries import TASK_OPTIONS
from tasks.stages import resolve_plan
from tasks.workers import rename_run, use_credentials

_SECONDS_OF_A_DAY = 86400.0


def _name_run() -> str:
    config = flow_run.get_parameters()["config"]
    if isinstance(config, str):
        return f"run {config.rsplit('/', 1)[-1].rsplit('.', 1)[0]}"
    return f"run {config['name'] if isinstance(config, dict) else config.name}"


@flow(name="run-miniplm", flow_run_name=_name_run, on_cancellation=[cancel_children], on_crashed=[crash_subflows])
def run_miniplm(
    config: ConfigUrl | InlineConfig,
    overrides: Sequence[str] = (),
) -> RunRecord:
    """Refines a corpus and trains the students on it; whatever is finished at the storage root is not done again.

    Args:
        config: a run's configuration: the URL of its YAML file, or all of it here
        overrides: fields to change, as FIELD=VALUE, e.g. selection.ratio=0.3
    """
    use_credentials()
    config = resolve_parameter(config, overrides)
    rename_run(f"run {config.name}")
    check_storage_is_kept(config)
    plan = resolve_plan(make_portable(config) if config.is_on_work_pool else config)
    storage = Storage(plan.storage)
    # A worker may report a death late, when the next attempt is at work already; a server that hears of it starts one more beside it.
    attempt_of = flow_run.get_root_flow_run_id()
    with exclusive(storage, layout.run_folder(plan.name), f"run {plan.name}", attempt_of), tagged_subflows(plan.name):
        storage.delete_temporary_files("", older_than_seconds=_SECONDS_OF_A_DAY)
        delete_late_parts(storage)
        log = RunLog(storage, plan)
        corpus, stage = prepare_corpus(plan)
        log.add_stage(stage, corpus_id=corpus.corpus_id)
        plan = name_text(storage, plan)
        if plan.is_on_work_pool:
            plan = pin_to_workers(storage, plan)
            log.set_plan(plan)
        if plan.teacher.tuned_on is not None:
            reference, stage = train_reference(plan, corpus.corpus_id)
            log.add_stage(stage, reference=reference)
            plan, stage = tune_teacher(plan, corpus.corpus_id, reference)
            log.add_stage(stage, teacher=plan.require_teacher())
        teacher = plan.require_teacher()
        if needs_calibration(teacher.dtype, plan.reference.dtype):
            # The gate compares difference scores, so it needs the reference before the teacher's hours are spent.
            reference, stage = train_reference(plan, corpus.corpus_id)
            if find_sufficient(storage, corpus, teacher, reference, plan) is None:
                calibrate_dtypes(plan, corpus.corpus_id, teacher, reference, plan.scoring.calibration_sequences)
            check_fidelity(storage, corpus, teacher, reference, plan)
        reference = _score(storage, plan, corpus, log)
        selection, stage = select_sequences(plan, corpus.corpus_id, reference)
        log.add_stage(stage, selection_id=selection.selection_id)
        for export in plan.exports:
            _, stage = export_selection(plan, corpus.corpus_id, selection.selection_id, export)
            log.add_stage(stage)
        for student in plan.students:
            record, stage = train_student(plan, corpus.corpus_id, selection.selection_id, student.name)
            log.add_stage(stage)
            log.add_student(student.name, record)
            if plan.evaluation.measures_losses:
                record, stage = evaluate_student(plan, corpus.corpus_id, student.name, record)
                log.add_stage(stage)
                log.add_student(student.name, record)
        log.finish()
        write_report(plan.storage, plan.name)
        return log.record


def _score(storage: Storage, plan: RunPlan, corpus: CorpusManifest, log: RunLog) -> ModelEntry:
    """Both models score the corpus, the teacher a share of it where a proxy stands in its place: on a work pool at the same time, here one
    after the other. Returns the reference."""
    by_teacher, teacher = None, plan.require_teacher()
    labels_id = provide_labelled_corpus(storage, plan, corpus).corpus_id
    fleet.start_waiting()
    if plan.is_on_work_pool:
        by_teacher = _score_beside.submit(plan, labels_id, teacher)
    else:
        log.add_stage(score_corpus(plan, labels_id, teacher, "teacher"), teacher=teacher)
    try:
        reference, stage = train_reference(plan, corpus.corpus_id)
        check_fidelity(storage, corpus, teacher, reference, plan)
        by_reference = score_corpus(plan, corpus.corpus_id, reference, "reference")
        if by_teacher is not None:
            log.add_stage(by_teacher.result(), teacher=teacher)
    except Exception as error:
        # The teacher's shards are waited for all the same: what they cost is not thrown away, and what failed of them is told too.
        other = None if by_teacher is None else by_teacher.result(raise_on_failure=False)
        if isinstance(error, MiniplmError) and isinstance(other, MiniplmError) and str(other) != str(error):
            raise ScoreError(f"{other}\n{error}") from error
        raise
    except BaseException:  # told to end: the thread that waits for the teacher's shards must not hold the process
        fleet.stop_waiting()
        raise
    if log.record.reference is None:  # a tuned teacher needed it before
        log.add_stage(stage, reference=reference)
    log.add_stage(by_reference)
    if plan.scoring.proxy is not None:
        manifest = fit_proxy(plan, corpus.corpus_id, reference)
        # Before it predicts: what it would select is known already.
        judge_proxy(storage, manifest, plan)
        log.add_stage(score_corpus(plan, corpus.corpus_id, manifest.entry, "proxy"), proxy=manifest.entry)
    return reference


@task(name="score-beside", task_run_name="score by {entry.model_id}, beside the reference", **TASK_OPTIONS)
def _score_beside(plan: RunPlan, corpus_id: str, entry: ModelEntry) -> StageRecord:
    return score_corpus(plan, corpus_id, entry, "teacher")

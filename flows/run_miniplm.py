"""The whole road: corpus in, refined corpus, students and a report out."""

from __future__ import annotations

from prefect import flow

from flows.calibrate_dtypes import calibrate_dtypes
from flows.evaluate_student import evaluate_student
from flows.prepare_corpus import prepare_corpus
from flows.score_corpus import score_corpus
from flows.select_sequences import select_sequences
from flows.train_reference import train_reference
from flows.train_student import train_student
from flows.write_report import write_report
from miniplm import layout
from miniplm.config import RunConfig
from miniplm.corpus.reader import load_corpus
from miniplm.locks import exclusive
from miniplm.run_log import RunLog
from miniplm.run_record import RunRecord
from miniplm.scoring.calibration import check_fidelity, find_sufficient, needs_calibration
from miniplm.storage import Storage
from tasks.models import check_inputs, identify_teacher

_SECONDS_OF_A_DAY = 86400.0


@flow(name="run-miniplm", flow_run_name="run {config.name}")
def run_miniplm(config: RunConfig) -> RunRecord:
    """Refines a corpus and trains the students on it; whatever is finished at the storage root is not done again."""
    check_inputs(config)
    storage = Storage(config.storage)
    with exclusive(storage, layout.run_folder(config.name), f"run {config.name}"):
        storage.delete_temporary_files("", older_than_seconds=_SECONDS_OF_A_DAY)
        log = RunLog(storage, config)
        corpus_id, stage = prepare_corpus(config)
        log.add_stage(stage, corpus_id=corpus_id)
        teacher = identify_teacher(config)
        if needs_calibration(teacher.dtype, config.reference.dtype):
            # The gate compares difference scores, so it needs the reference before the teacher's hours are spent.
            reference, stage = train_reference(config, corpus_id)
            if find_sufficient(storage, load_corpus(storage, corpus_id), teacher, reference, config) is None:
                calibrate_dtypes(config, corpus_id, teacher, reference, config.scoring.calibration_sequences)
            check_fidelity(storage, load_corpus(storage, corpus_id), teacher, reference, config)
        log.add_stage(score_corpus(config, corpus_id, teacher, "teacher"), teacher=teacher)
        reference, stage = train_reference(config, corpus_id)
        log.add_stage(stage, reference=reference)
        check_fidelity(storage, load_corpus(storage, corpus_id), teacher, reference, config)
        log.add_stage(score_corpus(config, corpus_id, reference, "reference"))
        selection_id, stage = select_sequences(config, corpus_id, teacher, reference)
        log.add_stage(stage, selection_id=selection_id)
        for student in config.students:
            record, stage = train_student(config, corpus_id, selection_id, student.name)
            log.add_stage(stage)
            log.add_student(student.name, record)
            if config.evaluation.heldout:
                record, stage = evaluate_student(config, corpus_id, student.name, record)
                log.add_stage(stage)
                log.add_student(student.name, record)
        log.finish()
        write_report(config.storage, config.name)
        return log.record

"""The students of a run: trained on what their method chooses, measured on the held-out split, kept in the run's folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import ValidationError

from miniplm import layout
from miniplm.artifacts import CorpusManifest, Evaluation, SelectionManifest, TrainingManifest
from miniplm.config import RunConfig, StudentConfig
from miniplm.errors import ConfigError, DamagedFileError, TrainingError
from miniplm.evaluation import evaluate_heldout
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.loading import load_model
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.run_record import StudentRecord
from miniplm.scorers import identify_teacher
from miniplm.scoring.engine import Scorer
from miniplm.storage import Storage
from miniplm.training.exports import export_model, find_export
from miniplm.training.launch import launch_training
from miniplm.training.loop import find_training
from miniplm.training.methods import METHODS
from miniplm.training.model_card import write_model_card
from miniplm.training.recipe import TrainingPlan, plan_training

# Beside a student's transformers files in its folder.
EVALUATION = "evaluation.json"


def plan_student(config: RunConfig, corpus: CorpusManifest, selection: SelectionManifest, student_name: str) -> TrainingPlan:
    """The training of one student. Raises `ConfigError` where the run has no such student."""
    student = _find_config(config, student_name)
    return plan_training(
        corpus,
        student.method,
        student.architecture,
        student.training,
        vocab_size=student.vocab_size,
        selection=selection,
        selection_seed=config.selection.seed,
        teacher=identify_teacher(config) if METHODS[student.method].needs_teacher else None,
        distillation=student.distillation,
        generation=student.generation,
        device=config.planning_device,
        trust_tokenizer_code=config.corpus.trust_remote_code,
    )


def train_student(
    storage: Storage,
    config: RunConfig,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    student_name: str,
    on_progress: ProgressCallback = ignore_progress,
) -> StudentRecord:
    """Trains one student, from its last checkpoint where there is one, and publishes it at `runs/RUN/students/NAME`."""
    plan = plan_student(config, corpus, selection, student_name)
    training = launch_training(storage, plan, on_progress, config.execution.launcher)
    folder = layout.student_folder(config.name, student_name)
    evaluation = _read_evaluation(storage, corpus, training)
    export_model(storage, training, folder)
    if evaluation is not None:
        storage.write_json(f"{folder}/{EVALUATION}", evaluation.as_json())
        write_model_card(storage, folder, training, evaluation)
    return _make_record(config, student_name, training, evaluation)


def find_student(
    storage: Storage, config: RunConfig, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> StudentRecord | None:
    """The record of a student that is trained and in its folder, with its evaluation where there is one; else None."""
    training = find_training(storage, plan_student(config, corpus, selection, student_name).training_id)
    if training is None or find_export(storage, layout.student_folder(config.name, student_name)) != training:
        return None
    return _make_record(config, student_name, training, _read_evaluation(storage, corpus, training))


def require_student(
    storage: Storage, config: RunConfig, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> StudentRecord:
    """As `find_student`; `TrainingError` where the student is yet to be trained."""
    record = find_student(storage, config, corpus, selection, student_name)
    if record is None:
        raise TrainingError(
            f"student {student_name} of run {config.name} is not trained yet; run `miniplm train CONFIG --student {student_name}`"
        )
    return record


def evaluate_student(
    storage: Storage,
    config: RunConfig,
    corpus: CorpusManifest,
    student_name: str,
    student: StudentRecord,
    on_progress: ProgressCallback = ignore_progress,
) -> StudentRecord:
    """Measures a trained student on the held-out split; its evaluation is kept with its training, and read where it is there.

    Raises `TrainingError` where the training is not there any more, and what `evaluate_heldout` raises.
    """
    training = find_training(storage, student.training_id)
    if training is None:
        raise TrainingError(
            f"student {student_name}: its training {student.training_id} is not at {storage.root}; run `miniplm train CONFIG`"
        )
    evaluation = _read_evaluation(storage, corpus, training)
    if evaluation is None:
        device = resolve_device(config.scoring.device)
        dtype = resolve_dtype("auto", device)
        with tempfile.TemporaryDirectory(prefix="miniplm-student-") as folder:
            model = load_model(
                storage.download(layout.student_folder(config.name, student_name), Path(folder) / student_name), dtype, device
            )
        scorer = Scorer(model, config.scoring.tokens_per_batch, compile=False)
        evaluation = evaluate_heldout(storage, corpus, scorer, training.weights_digest, on_progress)
        storage.write_json(layout.training_evaluation(training.training_id), evaluation.as_json())
    folder_of_student = layout.student_folder(config.name, student_name)
    storage.write_json(f"{folder_of_student}/{EVALUATION}", evaluation.as_json())
    write_model_card(storage, folder_of_student, training, evaluation)
    return student.model_copy(update={"evaluation": evaluation})


def _find_config(config: RunConfig, student_name: str) -> StudentConfig:
    for student in config.students:
        if student.name == student_name:
            return student
    names = ", ".join(student.name for student in config.students) or "none"
    raise ConfigError(f"run {config.name} has no student {student_name!r}; its students are {names}")


def _read_evaluation(storage: Storage, corpus: CorpusManifest, training: TrainingManifest) -> Evaluation | None:
    """The kept evaluation of these weights on this corpus; none where it is of others, or damaged."""
    path = layout.training_evaluation(training.training_id)
    if not storage.exists(path):
        return None
    try:
        evaluation = Evaluation.model_validate(storage.read_json(path))
    except (ValidationError, DamagedFileError):
        return None
    matches = (evaluation.corpus_id, evaluation.weights_digest) == (corpus.corpus_id, training.weights_digest)
    return evaluation if matches else None


def _make_record(config: RunConfig, student_name: str, training: TrainingManifest, evaluation: Evaluation | None) -> StudentRecord:
    student = _find_config(config, student_name)
    return StudentRecord(
        training_id=training.training_id,
        method=student.method,
        architecture=student.architecture,
        num_parameters=training.num_parameters,
        num_steps=training.num_steps,
        num_tokens=training.num_tokens,
        final_loss=training.final_loss,
        folder=layout.student_folder(config.name, student_name),
        evaluation=evaluation,
    )

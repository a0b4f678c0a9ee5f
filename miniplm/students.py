"""The students of a run: trained on what their method chooses, measured on the held-out split, kept in the run's folder."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from miniplm import layout
from miniplm.architectures import build_empty_model, count_parameters, resolve_vocab_size
from miniplm.artifacts import CorpusManifest, Evaluation, ModelEntry, SelectionManifest, TrainingManifest
from miniplm.config import RunConfig, StudentConfig, TrainingConfig
from miniplm.derived.conversion import ConversionJob
from miniplm.derived.needs import plan_heldout
from miniplm.derived.sets import make_set
from miniplm.errors import ConfigError, DamagedFileError, TrainingError
from miniplm.evaluation import evaluate_heldout
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.loading import load_model
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.run_record import StudentRecord
from miniplm.scorers import identify_teacher
from miniplm.scoring.engine import Scorer
from miniplm.storage import Storage
from miniplm.tokenization import CorpusTokenizer, load_tokenizer
from miniplm.training.exports import export_model, find_export
from miniplm.training.flops import count_unmatched_steps, match_training
from miniplm.training.launch import launch_training
from miniplm.training.loop import find_training
from miniplm.training.methods import METHODS
from miniplm.training.recipe import TrainingPlan, is_tokenizer_of, plan_training

# Beside a student's transformers files in its folder.
EVALUATION = "evaluation.json"


def plan_student(config: RunConfig, corpus: CorpusManifest, selection: SelectionManifest, student_name: str) -> TrainingPlan:
    """The training of one student. Raises `ConfigError` where the run has no such student."""
    student = _find_config(config, student_name)
    teacher = identify_teacher(config) if METHODS[student.method].needs_teacher else None
    return plan_training(
        corpus,
        student.method,
        student.architecture,
        _match_training(student, corpus, teacher),
        vocab_size=student.vocab_size,
        selection=selection,
        selection_seed=config.selection.seed,
        teacher=teacher,
        distillation=student.distillation,
        generation=student.generation,
        device=config.planning_device,
        trust_tokenizer_code=config.corpus.trust_remote_code,
        own_tokenizer=load_own_tokenizer(config, student),
    )


def load_own_tokenizer(config: RunConfig, student: StudentConfig) -> CorpusTokenizer | None:
    """The tokenizer that a student's configuration names, None where it has the corpus's. Raises `TokenizerError`."""
    if student.tokenizer is None:
        return None
    field = f"eos_token of student {student.name}"
    return load_tokenizer(student.tokenizer, student.eos_token, config.corpus.trust_remote_code, field)


def plan_heldout_conversion(config: RunConfig, corpus: CorpusManifest, student_name: str) -> ConversionJob | None:
    """The held-out split in a student's own tokens; None where it has the corpus's."""
    own = load_own_tokenizer(config, _find_config(config, student_name))
    return None if own is None or is_tokenizer_of(corpus, own) else plan_heldout(corpus, own, config.corpus.trust_remote_code)


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
    on_progress = _remark_matching(_find_config(config, student_name), on_progress)
    training = launch_training(storage, plan, on_progress, config.execution.launcher)
    folder = layout.student_folder(config.name, student_name)
    evaluation = _read_evaluation(storage, corpus, training)
    export_model(storage, training, folder)
    if evaluation is not None:
        storage.write_json(f"{folder}/{EVALUATION}", evaluation.as_json())
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
        job = plan_heldout_conversion(config, corpus, student_name)
        converted = None if job is None else make_set(storage, job, config.scoring.device, on_progress)
        evaluation = evaluate_heldout(storage, corpus, scorer, training.weights_digest, on_progress, converted)
        storage.write_json(layout.training_evaluation(training.training_id), evaluation.as_json())
    storage.write_json(f"{layout.student_folder(config.name, student_name)}/{EVALUATION}", evaluation.as_json())
    return student.model_copy(update={"evaluation": evaluation})


def _find_config(config: RunConfig, student_name: str) -> StudentConfig:
    for student in config.students:
        if student.name == student_name:
            return student
    names = ", ".join(student.name for student in config.students) or "none"
    raise ConfigError(f"run {config.name} has no student {student_name!r}; its students are {names}")


def _match_training(student: StudentConfig, corpus: CorpusManifest, teacher: ModelEntry | None) -> TrainingConfig:
    """The training as it will be: of a FLOP-matched student shorter by what the teacher costs."""
    if not student.flop_matched:
        return student.training
    assert teacher is not None, "only methods with a teacher are FLOP-matched"
    vocab_size = resolve_vocab_size(student.vocab_size, corpus.tokenizer.vocab_size)
    model = build_empty_model(student.architecture, vocab_size, corpus.sequence_length + 1)
    return match_training(student.training, count_parameters(model), teacher.num_parameters)


def _remark_matching(student: StudentConfig, on_progress: ProgressCallback) -> ProgressCallback:
    """Says with all progress of a FLOP-matched student of how many steps or epochs its own are what is left."""
    if not student.flop_matched:
        return on_progress
    training = student.training
    amount = f"{training.epochs:g} epochs" if training.steps is None else f"{training.steps:,} steps"

    def remark(progress: Progress) -> None:
        on_progress(replace(progress, detail=f"{progress.detail}, of {amount}: FLOP-matched".removeprefix(", ")))

    return remark


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
    num_unmatched_steps = None
    if student.flop_matched:
        teacher = training.recipe["data"]["teacher"]
        num_unmatched_steps = count_unmatched_steps(
            student.training, training.num_steps, training.num_parameters, teacher["num_parameters"]
        )
    return StudentRecord(
        training_id=training.training_id,
        method=student.method,
        architecture=student.architecture,
        num_parameters=training.num_parameters,
        num_steps=training.num_steps,
        num_unmatched_steps=num_unmatched_steps,
        num_tokens=training.num_tokens,
        final_loss=training.final_loss,
        folder=layout.student_folder(config.name, student_name),
        evaluation=evaluation,
    )

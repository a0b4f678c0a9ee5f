"""The students of a run: trained on what their method chooses, measured on the held-out split, kept in the run's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from miniplm import layout
from miniplm.artifacts import CorpusManifest, Evaluation, SelectionManifest, TrainingManifest
from miniplm.checkpoint_evaluation import evaluate_checkpoints, find_checkpoint_evaluations, find_evaluation, is_measured
from miniplm.config import RunConfig, StudentConfig
from miniplm.derived.sets import make_set
from miniplm.errors import TrainingError
from miniplm.evaluation import find_heldout
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.loading import load_model
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.run_record import StudentRecord
from miniplm.scoring.engine import Scorer
from miniplm.storage import Storage
from miniplm.student_plans import find_student_config, plan_heldout_conversion, plan_student
from miniplm.training.exports import export_model, find_export
from miniplm.training.flops import count_unmatched_steps
from miniplm.training.launch import launch_training
from miniplm.training.loop import find_training
from miniplm.training.model_card import write_model_card
from miniplm.training.tracking import publish_heldout_events
from miniplm.zero_shot.results import find_task_results, measure_tasks
from miniplm.zero_shot.tasks import resolve_tasks

# Beside a student's transformers files in its folder.
EVALUATION = "evaluation.json"


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
    on_progress = _remark_matching(find_student_config(config, student_name), on_progress)
    training = launch_training(storage, plan, on_progress, config.execution.launcher)
    folder = layout.student_folder(config.name, student_name)
    evaluation = _find_evaluation(storage, config, corpus, training)
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
    return _make_record(config, student_name, training, _find_evaluation(storage, config, corpus, training))


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
    on_task_progress: ProgressCallback = ignore_progress,
) -> StudentRecord:
    """Measures a trained student and its milestones on the held-out split, and the student by the run's zero-shot tasks.

    All results are kept with its training, and read where they are there. Raises `TrainingError` where the training is
    not there any more, and what `evaluate_checkpoints` and `measure_tasks` raise.
    """
    training = find_training(storage, student.training_id)
    if training is None:
        raise TrainingError(
            f"student {student_name}: its training {student.training_id} is not at {storage.root}; run `miniplm train CONFIG`"
        )
    folder = layout.student_folder(config.name, student_name)
    job = plan_heldout_conversion(config, corpus, student_name)
    converted = None if job is None else make_set(storage, job, config.scoring.device, on_progress)
    evaluation = evaluate_checkpoints(
        storage,
        find_heldout(storage, corpus, converted),
        training,
        folder,
        _milestone_every_steps(config, student_name),
        lambda model_folder: _open_scorer(model_folder, config),
        on_progress,
    )
    tasks = measure_tasks(
        storage,
        config.evaluation,
        training,
        folder,
        resolve_device(config.scoring.device),
        trust_remote_code=config.corpus.trust_remote_code,
        on_progress=on_task_progress,
    )
    evaluation = evaluation.model_copy(update={"tasks": tasks})
    storage.write_json(f"{folder}/{EVALUATION}", evaluation.as_json())
    write_model_card(storage, folder, training, evaluation)
    publish_heldout_events(
        storage, training.training_id, find_checkpoint_evaluations(storage, corpus.corpus_id, training.training_id)
    )
    return student.model_copy(update={"evaluation": evaluation})


def is_evaluated(storage: Storage, config: RunConfig, corpus: CorpusManifest, student_name: str, student: StudentRecord) -> bool:
    """Whether all that the run wants to know of a student is measured, so that `evaluate_student` would compute nothing."""
    training = find_training(storage, student.training_id)
    if training is None or student.evaluation is None:
        return False
    if set(resolve_tasks(config.evaluation.tasks)) - set(student.evaluation.tasks):
        return False
    return is_measured(storage, corpus.corpus_id, training, _milestone_every_steps(config, student_name))


def _milestone_every_steps(config: RunConfig, student_name: str) -> int | None:
    return find_student_config(config, student_name).training.milestone_every_steps if config.evaluation.milestones else None


def _open_scorer(folder: Path, config: RunConfig) -> Scorer:
    device = resolve_device(config.scoring.device)
    return Scorer(load_model(folder, resolve_dtype("auto", device), device), config.scoring.tokens_per_batch, compile=False)


def _remark_matching(student: StudentConfig, on_progress: ProgressCallback) -> ProgressCallback:
    """Says with all progress of a FLOP-matched student of how many steps or epochs its own are what is left."""
    if not student.flop_matched:
        return on_progress
    training = student.training
    amount = f"{training.epochs:g} epochs" if training.steps is None else f"{training.steps:,} steps"

    def remark(progress: Progress) -> None:
        on_progress(replace(progress, detail=f"{progress.detail}, of {amount}: FLOP-matched".removeprefix(", ")))

    return remark


def _find_evaluation(storage: Storage, config: RunConfig, corpus: CorpusManifest, training: TrainingManifest) -> Evaluation | None:
    """The kept evaluation of these weights on this corpus, with those of the run's tasks that are done; else None."""
    evaluation = find_evaluation(storage, corpus.corpus_id, training)
    if evaluation is None:
        return None
    return evaluation.model_copy(update={"tasks": find_task_results(storage, config.evaluation, training)})


def _make_record(config: RunConfig, student_name: str, training: TrainingManifest, evaluation: Evaluation | None) -> StudentRecord:
    student = find_student_config(config, student_name)
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

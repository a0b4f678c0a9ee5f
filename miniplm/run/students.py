"""The students of a run: trained on what their method chooses, measured on held-out text, kept in the run's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from miniplm import layout
from miniplm.config.run import StudentConfig
from miniplm.derived.sets import DerivedJob, make_set
from miniplm.errors import TrainingError
from miniplm.evaluation.accuracies import measure_tasks
from miniplm.evaluation.heldout import find_heldout
from miniplm.evaluation.milestones import evaluate_checkpoints, find_checkpoint_evaluations
from miniplm.models.devices import resolve_device, resolve_dtype
from miniplm.models.loading import load_model
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, TrainingManifest
from miniplm.records.run import StudentRecord
from miniplm.records.selections import SelectionManifest
from miniplm.run.outside_texts import list_texts, load_text
from miniplm.run.plan import RunPlan
from miniplm.run.student_records import find_kept_evaluations, list_needed_sets, make_record, milestone_every_steps
from miniplm.run.training_plans import list_text_conversions, plan_student, plan_text_conversion
from miniplm.scoring.engine import Scorer
from miniplm.storage.root import Storage
from miniplm.training.exports import export_model
from miniplm.training.model_card import write_model_card
from miniplm.training.needs import list_derived_jobs
from miniplm.training.processes.launch import launch_training
from miniplm.training.records import find_training
from miniplm.training.tracking import publish_heldout_events

# Beside a student's transformers files in its folder.
EVALUATION = "evaluation.json"


def list_pending_jobs(
    storage: Storage, plan: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, student_name: str
) -> list[DerivedJob]:
    """The sets that a student needs, in the order in which they are to be made; of a student that is trained, or measured, none any more.

    A set among them may be made already; `check_shards` tells.
    """
    needed = list_needed_sets(storage, plan, corpus, selection, student_name)
    if not needed:
        return []
    jobs = list_derived_jobs(plan_student(plan, corpus, selection, student_name))
    return [job for job in [*jobs, *list_text_conversions(storage, plan, corpus, student_name)] if job.derived_id in needed]


def train_student(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    selection: SelectionManifest,
    student_name: str,
    on_progress: ProgressCallback = ignore_progress,
) -> tuple[StudentRecord, TrainingManifest]:
    """Trains one student, from its last checkpoint where there is one, and publishes it at `runs/RUN/students/NAME`."""
    on_progress = _remark_matching(plan.find_student(student_name), on_progress)
    training = launch_training(storage, plan_student(plan, corpus, selection, student_name), on_progress, plan.execution.launcher)
    folder = layout.student_folder(plan.name, student_name)
    evaluation, on_split = find_kept_evaluations(storage, plan, corpus, training)
    export_model(storage, training, folder)
    if evaluation is not None:
        storage.write_json(f"{folder}/{EVALUATION}", evaluation.as_json())
        write_model_card(storage, folder, training, evaluation)
    return make_record(plan, student_name, training, evaluation, on_split), training


def evaluate_student(
    storage: Storage,
    plan: RunPlan,
    corpus: CorpusManifest,
    student_name: str,
    student: StudentRecord,
    on_progress: ProgressCallback = ignore_progress,
    on_task_progress: ProgressCallback = ignore_progress,
) -> StudentRecord:
    """Measures a trained student and its milestones on the run's held-out text, and the student by its zero-shot tasks.

    Of two texts, from elsewhere and the corpus's own split, milestones are measured on the first alone.

    All results are kept with its training, and read where they are there. Raises `TrainingError` where the training is
    not there any more, and what `evaluate_checkpoints` and `measure_tasks` raise.
    """
    training = find_training(storage, student.training_id)
    if training is None:
        raise TrainingError(
            f"student {student_name}: its training {student.training_id} is not at {storage.root}; run `miniplm train CONFIG`"
        )
    folder = layout.student_folder(plan.name, student_name)
    texts = list_texts(storage, plan, corpus)
    evaluations = []
    for text in texts:
        whole = load_text(storage, text, corpus)
        job = plan_text_conversion(plan, whole, text, student_name)
        converted = None if job is None else make_set(storage, job, plan.scoring.device, on_progress)
        evaluations.append(
            evaluate_checkpoints(
                storage,
                find_heldout(storage, whole, converted, text.split),
                training,
                folder,
                milestone_every_steps(plan, student_name, text, texts),
                lambda model_folder: _open_scorer(model_folder, plan),
                on_progress,
            )
        )
    tasks = measure_tasks(
        storage,
        plan.evaluation,
        training,
        folder,
        resolve_device(plan.scoring.device),
        trust_remote_code=plan.corpus.trust_remote_code,
        on_progress=on_task_progress,
    )
    evaluation = evaluations[0].model_copy(update={"tasks": tasks})
    storage.write_json(f"{folder}/{EVALUATION}", evaluation.as_json())
    write_model_card(storage, folder, training, evaluation)
    publish_heldout_events(storage, training.training_id, find_checkpoint_evaluations(storage, texts[0], training.training_id))
    return student.model_copy(update={"evaluation": evaluation, "on_split": evaluations[1] if len(evaluations) > 1 else None})


def _open_scorer(folder: Path, plan: RunPlan) -> Scorer:
    device = resolve_device(plan.scoring.device)
    return Scorer(load_model(folder, resolve_dtype("auto", device), device), plan.scoring.tokens_per_batch, compile=False)


def _remark_matching(student: StudentConfig, on_progress: ProgressCallback) -> ProgressCallback:
    """Says with all progress of a FLOP-matched student of how many steps or epochs its own are what is left."""
    if not student.flop_matched:
        return on_progress
    training = student.training
    amount = f"{training.epochs:g} epochs" if training.steps is None else f"{training.steps:,} steps"

    def remark(progress: Progress) -> None:
        on_progress(replace(progress, detail=f"{progress.detail}, of {amount}: FLOP-matched".removeprefix(", ")))

    return remark

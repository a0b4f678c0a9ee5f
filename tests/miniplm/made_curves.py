"""Students with held-out losses on the way, made up after laws that are known: onto a run of `report_fixtures`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miniplm import layout
from miniplm.evaluation.curves import student_flops_per_token
from miniplm.evaluation.scaling import ScalingLaw
from miniplm.records.manifests import DomainLoss, Evaluation, TaskResult
from miniplm.records.run import RunRecord, StudentRecord, save_run
from miniplm.storage.root import Storage

TOKENS_PER_STEP = 800


@dataclass(frozen=True)
class MadeStudent:
    """A student measured every `milestone_every_steps`; its losses follow `law` but for `noise`, a share of the loss."""

    law: ScalingLaw
    method: str = "miniplm"
    num_steps: int = 2000
    milestone_every_steps: int = 100
    noise: float = 0.0
    standard_error: float | None = 0.021
    accuracies: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    architecture: str = "qwen-tiny"
    num_unmatched_steps: int | None = None


def law_through(loss: float, flops: float, exponent: float = 0.3, loss_floor: float = 3.0) -> ScalingLaw:
    """The law with a given loss at given FLOPs."""
    return ScalingLaw(math.log(loss - loss_floor) + exponent * math.log(flops), exponent, loss_floor)


def add_students(storage: Storage, record: RunRecord, students: dict[str, MadeStudent], **changes: Any) -> RunRecord:
    """Puts made-up students in place of those of a run, with metrics, evaluations and configuration; `changes` are of the record."""
    configured = [
        {"name": name, "method": student.method, "training": {"seed": 3}, **student.settings} for name, student in students.items()
    ]
    record = record.model_copy(update={"config": {**record.config, "students": configured}, **changes})
    record = record.model_copy(
        update={"students": {name: _make_record(record, name, student) for name, student in students.items()}}
    )
    finished = {name: _write_curve(storage, record, name, student) for name, student in students.items()}
    record = record.model_copy(update={"students": finished})
    save_run(storage, record)
    return record


def _make_record(record: RunRecord, name: str, student: MadeStudent) -> StudentRecord:
    return StudentRecord(
        training_id=f"training-{name}",
        method=student.method,
        architecture=student.architecture,
        num_parameters=6_300_000,
        num_steps=student.num_steps,
        num_unmatched_steps=student.num_unmatched_steps,
        num_tokens=student.num_steps * TOKENS_PER_STEP,
        final_loss=4.0,
        folder=layout.student_folder(record.run_name, name),
    )


def _write_curve(storage: Storage, record: RunRecord, name: str, student: MadeStudent) -> StudentRecord:
    random = np.random.default_rng(len(name))
    rows = [
        {
            "step": step,
            "loss": 4.0 + 3.0 * math.exp(-step / 300) + random.normal(0, 0.1),
            "learning_rate": 6e-4,
            "gradient_norm": 1.0,
            "num_tokens": TOKENS_PER_STEP,
            "seconds": 0.1,
        }
        for step in range(1, student.num_steps + 1)
    ]
    made = record.students[name]
    storage.write_bytes(f"{made.folder}/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    flops_per_step = student_flops_per_token(record, name) * TOKENS_PER_STEP
    steps = range(student.milestone_every_steps, student.num_steps + 1, student.milestone_every_steps)
    for step in steps:
        loss = student.law.predict_loss(flops_per_step * step) * math.exp(random.normal(0, student.noise))
        evaluation = make_evaluation(record, loss, student)
        path = layout.checkpoint_evaluation(made.training_id, step)
        storage.write_json(path, evaluation.as_json())
    return made.model_copy(update={"evaluation": evaluation})


def make_evaluation(record: RunRecord, loss: float, student: MadeStudent) -> Evaluation:
    overall = DomainLoss(
        nats_per_token=loss,
        bits_per_byte=loss / 2.5,
        num_scored_tokens=2_000,
        num_sequences=10,
        nats_standard_error=student.standard_error,
    )
    tasks = {
        task: TaskResult(
            accuracy=accuracy,
            standard_error=math.sqrt(accuracy * (1 - accuracy) / 500),
            metric="acc_norm",
            num_documents=500,
        )
        for task, accuracy in student.accuracies.items()
    }
    domains = {
        name: overall.model_copy(update={"nats_per_token": loss + change})
        for name, change in (("documentation", -0.4), ("licence", 0.3), ("standard-library", 0.1))
    }
    return Evaluation(
        corpus_id=record.corpus_id or "", weights_digest="sha256:w", overall=overall, domains=domains, seconds=1.0, tasks=tasks
    )

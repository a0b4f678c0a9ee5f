"""A student is measured by all that its run asks for, and only by what is not there yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from miniplm import layout
from miniplm.config.files import check_config
from miniplm.config.run import RunConfig
from miniplm.errors import ConfigError
from miniplm.progress import Progress
from miniplm.records.manifests import CorpusManifest
from miniplm.records.run import StudentRecord
from miniplm.run.pinning import make_absolute
from miniplm.run.plan import RunPlan
from miniplm.run.student_records import is_evaluated
from miniplm.run.students import evaluate_student
from miniplm.storage.root import Storage
from miniplm.training.exports import export_model
from miniplm.training.loop import train_model
from tests.miniplm.evaluation.test_accuracies import CHOICE, DOCUMENTS, add_task
from tests.miniplm.made_trainings import make_plan, make_training_corpus

TRAINING = {"steps": 4, "batch_size": 4, "checkpoint_every_steps": 2, "keep_checkpoints": 9, "milestone_every_steps": 2}


def make_plan_of(root: Path, **evaluation: Any) -> RunPlan:
    return RunPlan.of(make_config(root, **evaluation))


def make_config(root: Path, **evaluation: Any) -> RunConfig:
    content = {
        "name": "r",
        "storage": str(root),
        "corpus": {"sources": [{"path": "x.jsonl", "domain_name": "a"}], "tokenizer": "t"},
        "teacher": {"model": "t"},
        "reference": {"model": "t"},
        "students": [{"name": "s", "architecture": "qwen-tiny", "training": TRAINING}],
        "scoring": {"device": "cpu"},
        "evaluation": evaluation,
    }
    return check_config(content, "test")


def train_student(storage: Storage, corpus: CorpusManifest) -> StudentRecord:
    training = train_model(storage, make_plan(corpus, **TRAINING))
    export_model(storage, training, layout.student_folder("r", "s"))
    return StudentRecord(
        training_id=training.training_id,
        method="miniplm",
        architecture="qwen-tiny",
        num_parameters=1,
        num_steps=4,
        num_tokens=1,
        final_loss=1.0,
        folder=layout.student_folder("r", "s"),
    )


def test_what_is_measured_is_kept_and_the_rest_is_measured(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "data"))
    corpus = make_training_corpus(storage, heldout=(8,))
    student = train_student(storage, corpus)
    told: list[Progress] = []

    def evaluate(plan: RunPlan, student: StudentRecord) -> StudentRecord:
        told.clear()
        return evaluate_student(storage, plan, corpus, "s", student, told.append, told.append)

    plain = make_plan_of(tmp_path / "data", milestones=False)
    assert not is_evaluated(storage, plain, corpus, "s", student)
    student = evaluate(plain, student)
    assert is_evaluated(storage, plain, corpus, "s", student)
    assert student.evaluation is not None
    assert student.evaluation.tasks == {}
    steps = storage.list_names(layout.checkpoint_evaluations_folder(student.training_id))
    assert steps == ["step-00000004.json"]

    folder = tmp_path / "tasks"
    add_task(folder, "choose", DOCUMENTS, **CHOICE)
    whole = make_plan_of(tmp_path / "data", tasks=["choose"], task_folder=str(folder))
    assert not is_evaluated(storage, whole, corpus, "s", student)
    student = evaluate(whole, student)
    assert student.evaluation is not None
    assert student.evaluation.tasks["choose"].num_documents == 12
    assert {progress.unit for progress in told} == {"tokens", "tasks"}
    # Of the held-out losses only the milestone's was missing.
    assert max(progress.total or 0 for progress in told) == corpus.split_counts("heldout").num_tokens
    steps = storage.list_names(layout.checkpoint_evaluations_folder(student.training_id))
    assert steps == ["step-00000002.json", "step-00000004.json"]
    assert json.loads(Path(storage.path(f"{student.folder}/evaluation.json")).read_text()) == student.evaluation.as_json()
    assert is_evaluated(storage, whole, corpus, "s", student)
    assert evaluate(whole, student) == student
    assert told == []


def test_tasks_need_the_heldout_loss(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.tasks are measured with the held-out loss: turn evaluation.heldout on"):
        make_config(tmp_path, heldout=False, tasks=["piqa"])


def test_workers_find_the_task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_absolute(make_config(tmp_path, tasks=["piqa"], task_folder="tasks"))
    assert config.evaluation.task_folder == str(tmp_path / "tasks")
    assert make_absolute(make_config(tmp_path)).evaluation.task_folder is None


def test_the_corpus_of_another_run_is_another_evaluation(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    corpus = make_training_corpus(storage, heldout=(8,))
    other: CorpusManifest = corpus.model_copy(update={"corpus_id": "other"})
    student = train_student(storage, corpus)
    plan = make_plan_of(tmp_path, milestones=False)
    student = evaluate_student(storage, plan, corpus, "s", student)
    assert is_evaluated(storage, plan, corpus, "s", student)
    assert not is_evaluated(storage, plan, other, "s", student)

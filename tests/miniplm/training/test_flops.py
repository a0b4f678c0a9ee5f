"""How many steps with a teacher cost what a training without one costs: the published numbers, and what a run does and says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from miniplm.config.run import RunConfig, TrainingConfig
from miniplm.models.architectures import build_empty_model, count_parameters, resolve_vocab_size
from miniplm.models.identity import identify_model
from miniplm.progress import Progress
from miniplm.records.manifests import CorpusManifest, ModelEntry
from miniplm.records.selections import SelectionManifest
from miniplm.run import cost as plan
from miniplm.run import status as run_status
from miniplm.run.plan import RunPlan
from miniplm.run.resolution import resolve
from miniplm.run.student_records import find_student
from miniplm.run.students import train_student
from miniplm.run.training_plans import plan_student
from miniplm.storage.root import Storage
from miniplm.training.flops import (
    count_unmatched_steps,
    match_training,
    matched_share,
    training_flops_per_token,
)
from tests.miniplm.made_models import make_llama, save_model
from tests.miniplm.made_trainings import save_tokenizer
from tests.tiny_runs import make_tiny_run


def training(**fields: object) -> TrainingConfig:
    return TrainingConfig(**{"learning_rate": 1e-3, **({} if "epochs" in fields else {"steps": 100_000}), **fields})


@pytest.mark.parametrize(("num_parameters", "published"), [(200e6, 25_000), (500e6, 45_000), (1.2e9, 65_000)])
def test_steps_of_the_published_students_rounded_down_to_five_thousand_as_published(num_parameters: float, published: int) -> None:
    matched = match_training(training(), int(num_parameters), int(1.8e9))
    assert matched.steps is not None
    assert matched.steps // 5_000 * 5_000 == published


def test_matched_trainings_cost_the_same() -> None:
    # 3 * 6 / (3 * 6 + 12) of 1000 steps
    assert match_training(training(steps=1000), 6, 12).steps == 600
    assert 600 * training_flops_per_token(6, 12) == 1000 * training_flops_per_token(6) == 36_000
    assert matched_share(6, 12) * 5 == 3


def test_steps_are_rounded_down_and_at_least_one() -> None:
    assert match_training(training(steps=7), 1, 3).steps == 3
    assert match_training(training(steps=10), 1, 10**6).steps == 1
    # where a float is a little less than the whole number that it should be
    assert match_training(training(steps=30), 1, 27).steps == 3


def test_nothing_but_the_length_of_the_training_is_changed() -> None:
    given = training(steps=1000, warmup_steps=100, batch_size=64, seed=5)
    assert match_training(given, 6, 12) == given.model_copy(update={"steps": 600})


def test_a_warm_up_longer_than_what_is_left_takes_all_of_it() -> None:
    matched = match_training(training(steps=1000, warmup_steps=700), 1, 3)
    assert (matched.steps, matched.warmup_steps) == (500, 500)


def test_epochs_are_matched_by_the_same_share() -> None:
    matched = match_training(training(epochs=4), 6, 12)
    assert (matched.steps, matched.epochs) == (None, 2.4)
    assert count_unmatched_steps(training(epochs=4), 600, 6, 12) == 1000
    assert count_unmatched_steps(training(steps=1001), 600, 6, 12) == 1001


@pytest.fixture
def teacher(tmp_path: Path) -> ModelEntry:
    save_tokenizer(tmp_path / "teacher")
    save_model(make_llama(vocab_size=64), tmp_path / "teacher")
    return identify_model(tmp_path / "teacher", str(tmp_path / "teacher"), "float32")


@pytest.fixture
def run(tmp_path: Path, teacher: ModelEntry) -> RunPlan:
    steps = {"steps": 12, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 12, "checkpoint_every_steps": 100}
    epochs = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2}
    distilled = {"architecture": "qwen-tiny", "method": "vanilla-kd"}
    config = RunConfig.model_validate(
        {
            "name": "matched",
            "execution": {"launcher": "inline"},
            "storage": str(tmp_path / "root"),
            "corpus": {"sources": [{"path": "none", "domain_name": "a"}], "tokenizer": teacher.source},
            "teacher": {"model": teacher.source},
            "reference": {"model": teacher.source},
            "students": [
                {"name": "plain", **distilled, "training": steps},
                {"name": "matched", **distilled, "flop_matched": True, "training": steps},
                {"name": "by-epochs", **distilled, "flop_matched": True, "training": epochs},
            ],
        }
    )
    return RunPlan.of(config, teacher_entry=teacher, reference_entry=teacher)


def test_a_matched_student_trains_so_many_steps_and_says_so(
    run: RunPlan, storage: Storage, corpus: CorpusManifest, selection: SelectionManifest, teacher: ModelEntry
) -> None:
    plans = {student.name: plan_student(run, corpus, selection, student.name) for student in run.students}
    assert plans["plain"].config.steps == 12
    moments: list[Progress] = []
    record, _ = train_student(storage, run, corpus, selection, "matched", moments.append)
    wanted = 12 * 3 * record.num_parameters // (3 * record.num_parameters + teacher.num_parameters)
    assert wanted == 11
    assert plans["matched"].config.steps == plans["matched"].recipe.training["steps"] == record.num_steps == wanted
    assert plans["matched"].training_id != plans["plain"].training_id
    assert record.describe_steps() == f"{wanted} of 12 steps: FLOP-matched"
    assert all(moment.detail.endswith("of 12 steps: FLOP-matched") and moment.total == wanted for moment in moments)
    assert find_student(storage, run, corpus, selection, "matched") == record


def test_a_student_matched_by_epochs_sees_a_smaller_share_of_its_data(
    run: RunPlan, storage: Storage, corpus: CorpusManifest, selection: SelectionManifest, teacher: ModelEntry
) -> None:
    moments: list[Progress] = []
    record, _ = train_student(storage, run, corpus, selection, "by-epochs", moments.append)
    share = matched_share(record.num_parameters, teacher.num_parameters)
    planned = plan_student(run, corpus, selection, "by-epochs")
    assert planned.config.epochs == pytest.approx(float(2 * share))
    assert planned.recipe.training["epochs"] == planned.config.epochs
    num_sequences = sum(shard.num_sequences for shard in planned.method.list_shards(storage, planned.inputs))
    assert record.num_steps == -(-2 * share * num_sequences // 4)
    assert record.num_unmatched_steps == round(record.num_steps / share)
    assert moments[-1].detail.endswith("of 2 epochs: FLOP-matched")


def test_a_plan_tells_the_matched_length_and_counts_the_teacher_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_PROBE_SECONDS", 0.01)
    path = make_tiny_run(tmp_path)
    content = yaml.safe_load(path.read_text())
    student = {"architecture": "qwen-tiny", "method": "miniplm+vanilla-kd", "flop_matched": True}
    content["students"] = [
        {"name": "by-steps", **student, "training": {"steps": 1000, "batch_size": 4}},
        {"name": "by-epochs", **student, "training": {"epochs": 3, "batch_size": 4}},
    ]
    planned = plan.plan_run(resolve(RunConfig.model_validate(content), checks=False))
    num_teacher = identify_model(tmp_path / "teacher", "teacher", "float32").num_parameters
    num_parameters = count_parameters(build_empty_model("qwen-tiny", resolve_vocab_size(None, 400)))
    steps = match_training(training(steps=1000), num_parameters, num_teacher).steps
    assert steps is not None
    assert steps < 1000
    assert f"by-steps: {steps} of 1,000 steps: FLOP-matched" in planned.notes
    assert f"by-epochs: {3 * steps / 1000:.3g} of 3 epochs: FLOP-matched" in planned.notes
    stages = {stage.name: stage for stage in planned.stages}
    assert stages["train by-steps"].num_tokens == steps * 4 * 64
    assert stages["train by-steps"].tokens_per_second < stages["score teacher"].tokens_per_second


def test_status_of_an_untrained_student_counts_the_matched_steps(
    run: RunPlan, corpus: CorpusManifest, selection: SelectionManifest, teacher: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = run_status._later_stages(Storage(run.storage), run, None, None)
    totals = {stage.name: stage.num_total for stage in stages}
    assert (totals["train plain"], totals["train matched"]) == (12, 0)
    monkeypatch.setattr(run_status, "_find_selection", lambda *_: selection)
    stages = run_status._later_stages(Storage(run.storage), run, corpus, None)
    totals = {stage.name: stage.num_total for stage in stages}
    assert totals["train plain"] == 12
    assert totals["train matched"] == plan_student(run, corpus, selection, "matched").config.steps

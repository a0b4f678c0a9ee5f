"""The curves of a run's students: which checkpoints are taken at which FLOPs, and savings against the right baseline."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from miniplm import layout
from miniplm.errors import RunError
from miniplm.evaluation.baselines import rank_baselines
from miniplm.evaluation.curves import StudentCurve, describe_curve
from miniplm.evaluation.curves import gather_curves as gather_all
from miniplm.records.run import RunRecord
from miniplm.storage.root import Storage
from tests.miniplm.made_curves import TOKENS_PER_STEP, MadeStudent, add_students, law_through
from tests.miniplm.report_fixtures import CORPUS_ID, TEACHER

FLOPS_PER_TOKEN = 6 * 6_300_000.0
FINAL_FLOPS = FLOPS_PER_TOKEN * 2000 * TOKENS_PER_STEP
BASELINE_LAW = law_through(4.8, FINAL_FLOPS)
# Everywhere where the baseline comes with 1.5 times the FLOPs.
BETTER_LAW = law_through(BASELINE_LAW.predict_loss(1.5 * FINAL_FLOPS), FINAL_FLOPS)


def make_record(storage: Storage, students: dict[str, MadeStudent], **changes: Any) -> RunRecord:
    record = RunRecord(
        run_name="demo", config={"name": "demo"}, corpus_id=CORPUS_ID, teacher=TEACHER, started_at="2026-11-02T09:00:00+00:00"
    )
    return add_students(storage, record, students, **changes)


def gather_curves(storage: Storage, record: RunRecord) -> dict[str, StudentCurve]:
    return gather_all(storage, record, num_samples=10)


def test_points_are_at_the_flops_of_the_tokens_so_far_and_those_of_the_warm_up_are_not_fitted(storage: Storage) -> None:
    record = make_record(storage, {"miniplm": MadeStudent(BETTER_LAW, settings={"training": {"warmup_steps": 300}})})
    curve = gather_curves(storage, record)["miniplm"]
    assert [point.step for point in curve.points] == list(range(100, 2001, 100))
    assert [point.is_fitted for point in curve.points] == [False] * 3 + [True] * 17
    assert curve.points[4].num_tokens == 500 * 800
    assert curve.points[4].flops == FLOPS_PER_TOKEN * 400_000 == 1.512e13
    assert curve.points[4].loss == pytest.approx(BETTER_LAW.predict_loss(1.512e13))
    assert curve.points[4].standard_error == 0.021
    assert curve.fit is not None
    assert curve.fit.num_points == 17
    assert curve.fit.law.exponent == pytest.approx(0.3, abs=1e-3)
    assert curve.fit.law.loss_floor == pytest.approx(3.0, abs=2e-3)
    assert curve.no_saving == "no student of method pretrain with the same architecture and tokenizer is there to compare with"


def test_warm_up_is_that_of_the_training_where_none_is_given(storage: Storage) -> None:
    record = make_record(storage, {"miniplm": MadeStudent(BETTER_LAW)})
    curve = gather_curves(storage, record)["miniplm"]
    assert [point.step for point in curve.points if not point.is_fitted] == [100, 200]  # a tenth of 2,000 steps


def test_savings_against_the_baseline_of_the_same_architecture(storage: Storage) -> None:
    record = make_record(
        storage,
        {
            "other": MadeStudent(BASELINE_LAW, "pretrain", architecture="qwen-104m"),
            "random": MadeStudent(BASELINE_LAW, "pretrain"),
            "chosen": MadeStudent(BETTER_LAW),
        },
        config={"name": "demo", "evaluation": {"extrapolate_tokens": [1e9]}},
    )
    curves = gather_curves(storage, record)
    assert list(curves) == ["other", "random", "chosen"]
    assert (curves["random"].saving, curves["random"].no_saving) == (None, None)
    saving = curves["chosen"].saving
    assert saving is not None
    assert saving.baseline == "random"
    assert saving.loss == pytest.approx(BETTER_LAW.predict_loss(FINAL_FLOPS), abs=1e-3)
    assert saving.compute == pytest.approx(1.5, rel=5e-3)
    assert saving.data == saving.compute
    assert saving.measured_compute == pytest.approx(1.5, rel=5e-3)
    assert saving.times_beyond == pytest.approx(1.5, rel=5e-3)
    (extrapolation,) = curves["chosen"].extrapolations
    assert extrapolation.flops == FLOPS_PER_TOKEN * 1e9
    assert extrapolation.loss == pytest.approx(BETTER_LAW.predict_loss(FLOPS_PER_TOKEN * 1e9), abs=2e-3)
    assert extrapolation.times_beyond == pytest.approx(1e9 / (2000 * 800))


def test_a_teacher_in_training_costs_compute_but_not_data(storage: Storage) -> None:
    """The teacher has 134.5 M parameters: a token costs (6 * 6.3 + 2 * 134.5) / (6 * 6.3) = 8.117 times as much."""
    with_teacher = FLOPS_PER_TOKEN + 2 * TEACHER.num_parameters
    final = with_teacher * 2000 * TOKENS_PER_STEP
    law = law_through(BASELINE_LAW.predict_loss(1.5 * FINAL_FLOPS), final)
    students = {"pretrain": MadeStudent(BASELINE_LAW, "pretrain"), "taught": MadeStudent(law, "vanilla-kd")}
    saving = gather_curves(storage, make_record(storage, students))["taught"].saving
    assert saving is not None
    assert with_teacher / FLOPS_PER_TOKEN == pytest.approx(8.117, abs=1e-3)
    assert saving.data == pytest.approx(1.5, rel=5e-3)
    assert saving.compute == pytest.approx(1.5 / 8.117, rel=5e-3)
    with pytest.raises(RunError, match="student taught was trained by vanilla-kd, but the run's record names no teacher"):
        gather_curves(storage, make_record(storage, students).model_copy(update={"teacher": None}))


def test_a_loss_that_the_baseline_never_reaches(storage: Storage) -> None:
    students = {
        "pretrain": MadeStudent(law_through(4.8, FINAL_FLOPS, exponent=1.5, loss_floor=4.7), "pretrain"),
        "miniplm": MadeStudent(law_through(4.5, FINAL_FLOPS)),
    }
    curve = gather_curves(storage, make_record(storage, students))["miniplm"]
    assert curve.saving is not None
    assert curve.saving.compute == curve.saving.data == curve.saving.times_beyond == math.inf
    facts = json.loads(json.dumps(describe_curve(curve), allow_nan=False))
    assert facts["saving"]["compute"] is None
    assert facts["saving"]["compute_interval"] == [None, None]
    assert facts["fit"]["exponent"] == pytest.approx(0.3, abs=1e-3)
    assert len(facts["points"]) == 20
    assert [row["num_tokens"] for row in facts["extrapolations"]] == [1e12, 1e13]


def test_without_enough_checkpoints_it_says_what_to_do(storage: Storage) -> None:
    record = make_record(
        storage,
        {"pretrain": MadeStudent(BASELINE_LAW, "pretrain", milestone_every_steps=2000), "miniplm": MadeStudent(BETTER_LAW)},
    )
    curves = gather_curves(storage, record)
    assert curves["pretrain"].fit is None
    assert "losses of 1 checkpoints are known" in (curves["pretrain"].no_fit or "")
    assert "training.milestone_every_steps" in (curves["pretrain"].no_fit or "")
    assert curves["miniplm"].saving is None
    assert curves["miniplm"].no_saving == "the curve of the baseline pretrain has no fit"


def test_evaluations_of_another_corpus_and_damaged_ones_do_not_count(storage: Storage) -> None:
    record = make_record(storage, {"miniplm": MadeStudent(BETTER_LAW)})
    damaged = layout.checkpoint_evaluation("training-miniplm", 500)
    storage.write_bytes(damaged, storage.read_bytes(damaged)[:50])
    other = layout.checkpoint_evaluation("training-miniplm", 700)
    storage.write_json(other, {**storage.read_json(other), "corpus_id": "corpus-2"})
    storage.write_json(layout.checkpoint_evaluation("training-miniplm", 700).replace("700", "700.old"), {})
    steps = [point.step for point in gather_curves(storage, record)["miniplm"].points]
    assert steps == [step for step in range(100, 2001, 100) if step not in (500, 700)]


def test_same_state_gives_the_same_curves(storage: Storage) -> None:
    students = {"pretrain": MadeStudent(BASELINE_LAW, "pretrain", noise=2e-3), "miniplm": MadeStudent(BETTER_LAW, noise=2e-3)}
    record = make_record(storage, students)
    assert gather_curves(storage, record) == gather_curves(storage, record)


def test_the_most_alike_baseline_comes_first_and_savings_need_one_of_the_same_tokenizer(storage: Storage) -> None:
    def student(method: str, seed: int, architecture: str = "qwen-tiny", **settings: Any) -> MadeStudent:
        return MadeStudent(
            BASELINE_LAW, method, 20, 20, architecture=architecture, settings={"training": {"seed": seed}, **settings}
        )

    record = make_record(
        storage,
        {
            "random-0": student("pretrain", 0),
            "random-1": student("pretrain", 1),
            "large": student("pretrain", 1, "qwen-104m"),
            "foreign": student("pretrain", 1, tokenizer="gpt2"),
            "chosen-1": student("miniplm", 1),
            "chosen-foreign": student("miniplm", 5, tokenizer="gpt2"),
        },
    )
    assert rank_baselines(record, "chosen-1") == ["random-1", "random-0", "large", "foreign"]
    assert rank_baselines(record, "chosen-foreign")[0] == "foreign"
    assert rank_baselines(record, "random-0") == []
    curves = gather_curves(storage, record)
    assert [curves[name].no_saving for name in ("chosen-1", "chosen-foreign")] == ["its own curve has no fit"] * 2
    # Laws are fitted to nats a token: one of other tokens is no baseline for a saving, even where there is no other.
    students = {name: student for name, student in record.students.items() if name in ("foreign", "chosen-1")}
    alone = gather_curves(storage, record.model_copy(update={"students": students}))["chosen-1"]
    assert alone.saving is None
    assert alone.no_saving == "no student of method pretrain with the same architecture and tokenizer is there to compare with"

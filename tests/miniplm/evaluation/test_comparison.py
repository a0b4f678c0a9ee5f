"""Students against their baseline: paired where they read the same sequences, in bits where their tokens differ."""

from __future__ import annotations

import numpy as np
import pytest

from miniplm.evaluation.baselines import find_baselines
from miniplm.evaluation.comparison import compare_students
from miniplm.evaluation.losses import SequenceLosses, write_losses
from miniplm.records.manifests import DomainLoss, Evaluation, TaskResult
from miniplm.records.run import RunRecord, StudentRecord
from miniplm.storage.root import Storage

DOMAINS = np.array(["a", "a", "b", "b"])


def make_student(
    method: str, evaluation: Evaluation | None, architecture: str = "qwen-200m", num_tokens: int = 100
) -> StudentRecord:
    return StudentRecord(
        training_id=f"{method}-t",
        method=method,
        architecture=architecture,
        num_parameters=1,
        num_steps=1,
        num_tokens=num_tokens,
        final_loss=1.0,
        folder="",
        evaluation=evaluation,
    )


def make_losses(nll_sum: list[float], counts: tuple[int, ...] = (1, 1, 2, 4)) -> SequenceLosses:
    return SequenceLosses(np.arange(4), DOMAINS, np.array([0, 1, 2, 2]), np.array(counts), np.array(nll_sum))


def measure(storage: Storage, method: str, losses: SequenceLosses, bits_per_nat: float = 0.5, kept: bool = True) -> StudentRecord:
    def loss(part: SequenceLosses) -> DomainLoss:
        nats = float(part.nll_sum.sum() / part.num_scored_tokens.sum())
        return DomainLoss(
            nats_per_token=nats,
            bits_per_byte=nats * bits_per_nat,
            num_scored_tokens=int(part.num_scored_tokens.sum()),
            num_sequences=len(part.nll_sum),
            nats_standard_error=part.standard_error(),
        )

    evaluation = Evaluation(
        corpus_id="c",
        weights_digest="w",
        overall=loss(losses),
        domains={domain: loss(losses.of_domain(domain)) for domain in ("a", "b")},
        seconds=1.0,
        losses_digest=write_losses(storage, f"{method}-t", losses) if kept else None,
    )
    return make_student(method, evaluation)


def make_run(students: dict[str, StudentRecord], **settings: dict[str, object]) -> RunRecord:
    """A run of these students; `settings` are parts of their configuration, by name with `_` for a space."""
    config = {"students": [{"name": name, **settings.get(name.replace(" ", "_"), {})} for name in students]}
    return RunRecord(run_name="r", config=config, students=students, started_at="")


def test_the_same_sequences_are_subtracted_one_by_one(storage: Storage) -> None:
    """Differences -1, -3, 0, -4 of 1, 1, 2, 4 tokens: d = -1; documents (-1, -3, -4) of (1, 1, 6), e = (0, -2, 2)."""
    students = {
        "ours": measure(storage, "miniplm", make_losses([2, 1, 6, 8])),
        "base": measure(storage, "pretrain", make_losses([3, 4, 6, 12])),
    }
    comparison = compare_students(storage, make_run(students))["ours"]
    assert comparison.baseline == "base"
    overall = comparison.overall
    assert overall is not None
    assert overall.paired
    assert overall.nats_per_token == -1
    assert overall.nats_standard_error == pytest.approx((3 / 2 * 8) ** 0.5 / 8)
    assert overall.bits_per_byte == -0.5
    assert overall.bits_standard_error == pytest.approx((3 / 2 * 8) ** 0.5 / 16)
    # Domain a: documents (-1, -3) of one token each: d = -2, e = (1, -1); domain b is one document.
    assert comparison.domains["a"].nats_per_token == -2
    assert comparison.domains["a"].nats_standard_error == pytest.approx(1.0)
    assert comparison.domains["b"].nats_per_token == pytest.approx(-4 / 6)
    assert comparison.domains["b"].nats_standard_error is None
    assert compare_students(storage, make_run(students))["base"].baseline is None


def test_without_the_losses_of_sequences_the_errors_are_taken_as_independent(storage: Storage) -> None:
    students = {
        "ours": measure(storage, "miniplm", make_losses([2, 1, 6, 8]), kept=False),
        "base": measure(storage, "pretrain", make_losses([3, 4, 6, 12])),
    }
    overall = compare_students(storage, make_run(students))["ours"].overall
    assert overall is not None
    assert not overall.paired
    assert overall.nats_per_token == -1
    errors = [student.evaluation.overall.nats_standard_error for student in students.values() if student.evaluation]
    assert overall.nats_standard_error == pytest.approx((errors[0] ** 2 + errors[1] ** 2) ** 0.5)  # type: ignore[operator]


def test_students_with_other_tokens_are_compared_in_bits(storage: Storage) -> None:
    students = {
        "ours": measure(storage, "miniplm", make_losses([2, 1, 6, 8], counts=(2, 2, 2, 2)), bits_per_nat=0.75),
        "base": measure(storage, "pretrain", make_losses([3, 4, 6, 12])),
    }
    overall = compare_students(storage, make_run(students))["ours"].overall
    assert overall is not None
    assert (overall.nats_per_token, overall.nats_standard_error, overall.paired) == (None, None, False)
    assert overall.bits_per_byte == pytest.approx(17 / 8 * 0.75 - 25 / 8 * 0.5)
    assert overall.bits_standard_error is not None


def test_the_baseline_is_the_one_most_like_the_student(storage: Storage) -> None:
    evaluation = measure(storage, "pretrain", make_losses([1, 1, 1, 1])).evaluation
    students = {
        "other family": make_student("pretrain", evaluation, "mamba-130m"),
        "longer": make_student("pretrain", evaluation, num_tokens=200),
        "alike": make_student("pretrain", evaluation, num_tokens=110),
        "not measured": make_student("pretrain", None),
        "ours": make_student("miniplm", evaluation),
    }
    assert find_baselines(make_run(students)).get("ours") == "alike"
    assert find_baselines(make_run(students)).get("alike") is None
    seeds = {"longer": {"training": {"seed": 1}}, "ours": {"training": {"seed": 1}}}
    assert find_baselines(make_run(students, **seeds)).get("ours") == "longer"
    # One with other tokens is taken only where there is no other.
    other = {name: {"tokenizer": "own"} for name in ("longer", "alike", "not_measured")}
    assert find_baselines(make_run(students, **other)).get("ours") == "other family"
    other["other_family"] = {"tokenizer": "own"}
    assert find_baselines(make_run(students, **other)).get("ours") == "alike"
    alone = make_run({"ours": students["ours"]})
    assert find_baselines(alone).get("ours") is None
    assert compare_students(storage, alone)["ours"].overall is None
    assert "not measured" not in compare_students(storage, make_run(students))


def test_average_accuracy_is_over_the_students_tasks(storage: Storage) -> None:
    student = measure(storage, "pretrain", make_losses([1, 1, 1, 1]))
    assert compare_students(storage, make_run({"s": student}))["s"].average_accuracy is None
    results = {
        name: TaskResult(accuracy=accuracy, standard_error=0.03, metric="acc", num_documents=9)
        for name, accuracy in (("x", 0.25), ("y", 0.75))
    }
    assert student.evaluation is not None
    student = student.model_copy(update={"evaluation": student.evaluation.model_copy(update={"tasks": results})})
    comparison = compare_students(storage, make_run({"s": student}))["s"]
    assert comparison.average_accuracy == 0.5
    assert comparison.average_accuracy_standard_error == pytest.approx(0.03 / 2**0.5)

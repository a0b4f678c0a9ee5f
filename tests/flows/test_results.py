"""The tables over students that `evaluate` and `run` end with."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.cli.results import describe_results, print_results
from miniplm.artifacts import TaskResult
from miniplm.run_record import StudentRecord
from miniplm.storage import Storage
from tests.miniplm.test_comparison import make_losses, make_run, measure


def make_students(storage: Storage, counts: tuple[int, ...] = (1, 1, 2, 4)) -> dict[str, StudentRecord]:
    return {
        "ours": measure(storage, "miniplm", make_losses([2, 1, 6, 8], counts)),
        "base": measure(storage, "pretrain", make_losses([3, 4, 6, 12])),
    }


def show(storage: Storage, students: dict[str, StudentRecord]) -> list[list[str]]:
    """The words of each line that is printed."""
    console = Console(width=120, highlight=False, markup=False, file=io.StringIO())
    print_results(console, storage, make_run(students))
    return [line.split() for line in console.file.getvalue().splitlines() if line.strip(" ─━")]


def join(lines: list[list[str]]) -> str:
    """What is printed as one line, for what is wrapped."""
    return " ".join(word for line in lines for word in line)


def test_losses_differences_and_their_errors_are_shown(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    lines = show(storage, make_students(storage))
    assert ["Held-out", "loss,", "nats", "a", "token"] in lines
    assert ["domain", "ours", "base"] in lines
    # Domain a of ours: 3 nats over 2 tokens of two documents, e = (0.5, -0.5): sqrt(2 * 0.5) / 2 = 0.5.
    assert ["a", "1.500", "±", "0.500", "3.500", "±", "0.500"] in lines
    # Domain b is one document, which has no standard error.
    assert ["b", "2.333", "3.000"] in lines
    assert "Loss less that of base, nats a token" in join(lines)
    assert ["all", "-1.000", "±", "0.433"] in lines
    assert ["b", "-0.667"] in lines
    assert not any("Zero-shot" in line for line in lines)


def test_students_with_other_tokens_are_shown_in_bits(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    lines = show(storage, make_students(storage, counts=(2, 2, 2, 2)))
    assert "Loss less that of base, bits a byte" in join(lines)
    # 2.125 and 3.125 nats at half a bit a byte each; sqrt(0.5185^2 + 0.0887^2).
    assert ["all", "-0.500", "±", "0.526"] in lines
    assert "Not of the same sequences as its baseline, and so less sure: ours" in join(lines)


def test_accuracies_are_shown_in_percent_with_their_average(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    students = make_students(storage)
    for name, accuracies in (("ours", (0.5, 0.25)), ("base", (0.4, 0.2))):
        tasks = {
            task: TaskResult(accuracy=accuracy, standard_error=0.03, metric=metric, num_documents=60)
            for task, metric, accuracy in zip(("piqa", "winogrande"), ("acc_norm", "acc"), accuracies, strict=True)
        }
        evaluation = students[name].evaluation
        assert evaluation is not None
        students[name] = students[name].model_copy(update={"evaluation": evaluation.model_copy(update={"tasks": tasks})})
    lines = show(storage, students)
    assert ["piqa", "(acc_norm)", "50.0", "±", "3.0", "40.0", "±", "3.0"] in lines
    assert ["average", "37.5", "±", "2.1", "30.0", "±", "2.1"] in lines
    assert "by lm-evaluation-harness, 0-shot, 60 documents a task" in join(lines)
    facts = describe_results(storage, make_run(students), ["ours"])
    assert list(facts) == ["ours"]
    assert facts["ours"]["comparison"]["baseline"] == "base"
    assert facts["ours"]["comparison"]["average_accuracy"] == pytest.approx(0.375)
    assert facts["ours"]["evaluation"]["tasks"]["piqa"]["accuracy"] == 0.5


def test_without_an_evaluated_student_nothing_is_shown(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    students = {name: student.model_copy(update={"evaluation": None}) for name, student in make_students(storage).items()}
    assert show(storage, students) == []

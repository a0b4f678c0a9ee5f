"""The tables over students that `evaluate` and `run` end with."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.cli.results import describe_results, print_results
from miniplm.evaluation.comparison import compare_students
from miniplm.records.manifests import TaskResult
from miniplm.records.run import RunRecord, StudentRecord
from miniplm.report.content import ReportContent
from miniplm.report.heldout import render_heldout
from miniplm.storage.root import Storage
from tests.miniplm.evaluation.test_comparison import make_losses, make_run, measure


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


def make_content(storage: Storage, record: RunRecord) -> ReportContent:
    """What the page shows of a run with students alone."""
    nothing: dict[str, Any] = {"corpus": None, "selection": None, "histogram": None}
    empty: dict[str, Any] = {"domains": [], "most_wanted": [], "least_wanted": [], "curves": {}, "scaling": {}}
    return ReportContent(record=record, comparisons=compare_students(storage, record), **nothing, **empty)


@pytest.mark.parametrize(
    ("tokenizers", "unevaluated", "baselines", "unit"),
    [
        ({}, (), {"ours": "base", "own": "base"}, "nats a token"),
        # The corpus's tokenizer by its name is no other one.
        ({"own": "theirs", "own_base": "theirs"}, (), {"ours": "base", "own": "base"}, "nats a token"),
        ({"own": "small", "own_base": "small"}, (), {"ours": "base", "own": "own base"}, "nats a token"),
        # A baseline with other tokens where there is no other, or the other is not measured: in bits a byte, for all.
        ({"own": "small"}, (), {"ours": "base", "own": "base"}, "bits a byte"),
        ({"own": "small", "own_base": "small"}, ("own base",), {"ours": "base", "own": "base"}, "bits a byte"),
        ({"base": "small", "own_base": "small"}, (), {"ours": "base", "own": "base"}, "bits a byte"),
        ({"own": "small"}, ("base", "own base"), {}, "nats a token"),
    ],
)
def test_terminal_report_and_json_hold_each_student_against_the_same_baseline(
    tmp_path: Path, tokenizers: dict[str, str], unevaluated: tuple[str, ...], baselines: dict[str, str], unit: str
) -> None:
    storage = Storage(str(tmp_path))
    students = {
        "ours": measure(storage, "miniplm", make_losses([2, 1, 6, 8])),
        "own": measure(storage, "seqkd", make_losses([3, 2, 6, 9]), bits_per_nat=0.75),
        "base": measure(storage, "pretrain", make_losses([3, 4, 6, 12])),
    }
    students["own base"] = students["base"].model_copy(update={"num_tokens": 101})
    students |= {name: students[name].model_copy(update={"evaluation": None}) for name in unevaluated}
    record = make_run(students, **{name: {"tokenizer": tokenizer} for name, tokenizer in tokenizers.items()})
    record = record.model_copy(update={"config": record.config | {"corpus": {"tokenizer": "theirs"}}})

    measured = [name for name, student in students.items() if student.evaluation is not None]
    told = {name: value["comparison"] for name, value in describe_results(storage, record, measured).items()}
    assert {name: value["baseline"] for name, value in told.items() if value["baseline"]} == baselines

    console = Console(width=120, highlight=False, markup=False, file=io.StringIO())
    print_results(console, storage, record)
    printed = " ".join(console.file.getvalue().split())
    page = render_heldout(make_content(storage, record))
    assert re.findall(r"than the baseline ([\w ]+);", page) == list(baselines.values())
    different = {tokenizers.get(name.replace(" ", "_"), "theirs") for name in measured}
    assert ("students with different tokenizers compare by bits a byte only" in printed) == (len(different) > 1)
    if not baselines:
        assert "Loss less that of" not in printed
        return
    key = unit.split()[0]
    which = next(iter(baselines.values())) if len(set(baselines.values())) == 1 else "the baseline"
    assert f"Loss less that of {which}, {unit}" in printed
    assert page.count(f"{unit} less or more than the baseline") == len(baselines)
    shown = re.findall(r"<span class='(?:better|worse|)'>([^<]+)</span>(?:&nbsp;<small>±&nbsp;([\d.]+))?", page)
    wanted = [
        (value[f"{key}_per_{'token' if key == 'nats' else 'byte'}"], value[f"{key}_standard_error"])
        for row in ("overall", "a", "b")
        for name in baselines
        for value in [told[name]["overall"] if row == "overall" else told[name]["domains"][row]]
    ]
    assert [(float(value.replace("−", "-")), error) for value, error in shown] == [
        (round(value, 3), "" if error is None else f"{error:.3f}") for value, error in wanted
    ]
    for value, error in wanted[: len(baselines)]:
        assert f"{value:+.3f}" + ("" if error is None else f" ± {error:.3f}") in printed

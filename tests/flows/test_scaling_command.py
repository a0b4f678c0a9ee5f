"""`miniplm scaling`: what it prints for people and for machines, of a run whose curves are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli.app import app
from flows.cli.scaling import format_tokens, scaling
from miniplm.errors import RunError
from miniplm.records.run import RunRecord
from miniplm.storage.root import Storage
from tests.miniplm.made_curves import TOKENS_PER_STEP, MadeStudent, add_students, law_through
from tests.miniplm.report_fixtures import CORPUS_ID, TEACHER

FINAL_FLOPS = 6 * 6_300_000 * 2000.0 * TOKENS_PER_STEP
BASELINE_LAW = law_through(4.8, FINAL_FLOPS)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The storage root of a run whose student needs 1.5 times less than the baseline; one more was measured at its end only."""
    monkeypatch.setattr("flows.cli.options.start_quietly", lambda verbose: None)  # it sets up the whole process
    monkeypatch.setenv("COLUMNS", "200")
    config: dict[str, Any] = {
        "name": "demo",
        "storage": str(tmp_path),
        "corpus": {"sources": [{"path": "a.jsonl", "domain_name": "a"}], "tokenizer": "t"},
        "teacher": {"model": "t"},
        "reference": {"model": "r"},
        "evaluation": {"extrapolate_tokens": [1e9, 1e12]},
    }
    settings = {"architecture": "qwen-tiny", "training": {"steps": 2000, "seed": 3}}
    better = law_through(BASELINE_LAW.predict_loss(1.5 * FINAL_FLOPS), FINAL_FLOPS)
    students = {
        "pretrain": MadeStudent(BASELINE_LAW, "pretrain", settings=settings),
        "x": MadeStudent(better, "seqkd", milestone_every_steps=2000, settings=settings),
        "miniplm": MadeStudent(better, settings=settings),
    }
    record = RunRecord(run_name="demo", config=config, corpus_id=CORPUS_ID, teacher=TEACHER, started_at="2026-11-02T09:00:00+00:00")
    add_students(Storage(str(tmp_path)), record, students)
    return str(tmp_path)


def test_people_read_constants_losses_and_savings(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    scaling("demo", storage=root)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "student measured at 1 B tokens at 1 T tokens" in lines
    constants = next(line for line in lines if line.startswith("miniplm 3.000 [3.000, 3.000]"))
    assert "0.300 [0.300, 0.300] 18" in constants
    (saved,) = [line for line in lines if line.startswith("miniplm pretrain")]
    assert saved == "miniplm pretrain 4.594 1.5x [1.5, 1.5] 1.5x [1.5, 1.5] 1.5x beyond"
    assert any(line.startswith("x: the held-out losses of 1 checkpoints are known") for line in lines)
    assert "x: its own curve has no fit" in lines


def test_machines_read_the_same_and_overrides_change_what_is_told(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    scaling("demo", overrides=["evaluation.extrapolate_tokens=[2.0e9]"], storage=root, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["run"] == "demo"
    assert sorted(facts["students"]) == ["miniplm", "pretrain", "x"]
    student = facts["students"]["miniplm"]
    assert student["saving"]["compute"] == pytest.approx(1.5, rel=5e-3)
    assert student["fit"]["exponent"] == pytest.approx(0.3, abs=1e-3)
    assert [row["num_tokens"] for row in student["extrapolations"]] == [2e9]
    assert student["extrapolations"][0]["flops"] == 2e9 * 6 * 6_300_000
    assert facts["students"]["x"]["fit"] is None


def test_an_unknown_run_is_refused_with_the_runs_there_are(root: str) -> None:
    with pytest.raises(RunError, match="has no run 'other'; the runs there are: demo"):
        scaling("other", storage=root)


def test_it_is_a_command_and_tokens_are_written_in_words() -> None:
    assert "scaling" in {command.name for command in app.registered_commands}
    assert [format_tokens(number) for number in (1e13, 2.5e9, 52e6, 900)] == [
        "10 T tokens",
        "2.5 B tokens",
        "52 M tokens",
        "900 tokens",
    ]

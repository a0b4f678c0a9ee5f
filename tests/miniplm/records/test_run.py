"""The record of a run: stored whole, read whole, refused clearly."""

from __future__ import annotations

from pathlib import Path

import pytest

from miniplm import layout
from miniplm.errors import RunError, StorageError
from miniplm.records.run import RunRecord, StageRecord, list_runs, load_run, save_run
from miniplm.storage.root import Storage
from tests.miniplm.report_fixtures import REFERENCE, TEACHER

STAGE = StageRecord(name="score", seconds=4.0, reused=False, num_units=100, unit="tokens")
RECORD = RunRecord(
    run_name="demo",
    config={"name": "demo", "list": [1]},
    teacher=TEACHER,
    reference=REFERENCE,
    stages=(STAGE,),
    started_at="2026-11-02T09:00:00Z",
)


def test_record_is_read_as_it_was_saved(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    save_run(storage, RECORD)
    assert load_run(storage, "demo") == RECORD


def test_throughput_counts_only_work_that_was_done() -> None:
    assert STAGE.units_per_second == 25.0
    assert STAGE.model_copy(update={"reused": True}).units_per_second is None
    assert STAGE.model_copy(update={"seconds": 0.0}).units_per_second is None


def test_unknown_run_names_the_runs_there_are(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(RunError, match="has no run 'x'; there is no run yet"):
        load_run(storage, "x")
    for name in ("b", "a"):
        save_run(storage, RECORD.model_copy(update={"run_name": name}))
    (tmp_path / "runs" / "unfinished").mkdir()
    assert list_runs(storage) == ["a", "b"]
    for name in ("x", "unfinished", "", "../runs/a"):
        with pytest.raises(RunError, match="the runs there are: a, b"):
            load_run(storage, name)


def test_damaged_record_is_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_json(layout.run_record("demo"), {**RECORD.as_json(), "stages": "none"})
    with pytest.raises(RunError, match=r"run.json is not a run record: stages: .*1 problems in all"):
        load_run(storage, "demo")
    storage.write_bytes(layout.run_record("demo"), b"{")
    with pytest.raises(StorageError, match="not valid JSON"):
        load_run(storage, "demo")

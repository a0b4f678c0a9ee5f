"""A sweep over a finished run: what is there is not computed again, and all results stand in one table and on one page."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from miniplm.records.run import load_run
from miniplm.records.sweep import load_sweep
from miniplm.run.sweep import describe_sweep
from miniplm.storage.root import Storage
from tests.command_line import run_miniplm


def test_a_sweep_redoes_nothing_and_goes_on_after_a_run_that_fails(finished_run, tmp_path, prefect_server) -> None:
    shutil.copytree(finished_run.data, tmp_path / "data")
    content = yaml.safe_load(finished_run.config.read_text()) | {"storage": str(tmp_path / "data")}
    content["students"] = content["students"][:1]
    config = tmp_path / "swept.yaml"
    config.write_text(yaml.safe_dump(content))
    scores = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "scores").rglob("*")}
    result = run_miniplm("sweep", str(config), "--set", "selection.ratio=0.5,0.0001", prefect=prefect_server)
    assert result.returncode == 2, result.stderr
    assert "1 of 2 runs failed; the others are kept" in result.stderr
    assert "tiny-ratio-0.0001: ScoreJoinError: ratio 0.0001 of " in result.stderr
    assert "sweep.html" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "scores").rglob("*")} == scores
    storage = Storage(str(tmp_path / "data"))
    sweep = load_sweep(storage, "tiny")
    finished, failed = describe_sweep(storage, sweep)
    assert [run.values for run in sweep.runs] == [{"selection.ratio": "0.5"}, {"selection.ratio": "0.0001"}]
    assert (finished.run_name, finished.is_finished, failed.is_finished) == ("tiny-ratio-0.5", True, False)
    # The run that was there before the sweep had trained this student.
    (student,) = finished.students
    trained = load_run(storage, "tiny").students["miniplm"]
    assert load_run(storage, finished.run_name).students["miniplm"].training_id == trained.training_id
    assert student.loss == trained.evaluation.overall
    page = Path(tmp_path / "data" / "runs" / "tiny" / "sweep.html").read_text()
    assert "1 of 2 runs are finished, over selection.ratio" in page
    assert page.count("../tiny-ratio-0.5/report.html") == 1
    assert "../tiny-ratio-0.0001/report.html" not in page

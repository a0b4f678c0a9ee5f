"""A sweep over a finished run: what is there is not computed again, and all results stand in one table and on one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from miniplm.records.run import load_run
from miniplm.records.sweep import load_sweep
from miniplm.storage.root import Storage
from tests.command_line import run_miniplm


def test_ratios_share_the_scores_and_a_sweep_goes_on_after_a_failure(finished_run, tmp_path, embedded_prefect) -> None:
    shutil.copytree(finished_run.data, tmp_path / "data")
    content = yaml.safe_load(finished_run.config.read_text()) | {"storage": str(tmp_path / "data")}
    content["students"] = content["students"][:1]
    config = tmp_path / "swept.yaml"
    config.write_text(yaml.safe_dump(content))
    scores = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "scores").rglob("*")}
    settings = ("--set", "selection.ratio=0.5,0.0001,0.9")
    first = run_miniplm("sweep", str(config), *settings, prefect=embedded_prefect)
    assert first.returncode == 2, first.stderr
    assert "1 of 3 runs failed; the others are kept" in first.stderr
    assert "tiny-ratio-0.0001: ScoreJoinError: ratio 0.0001 of " in first.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "scores").rglob("*")} == scores
    storage = Storage(str(tmp_path / "data"))
    trained = {name: load_run(storage, name).students["miniplm"] for name in ("tiny-ratio-0.5", "tiny-ratio-0.9")}
    assert load_run(storage, "tiny").students["miniplm"].training_id == trained["tiny-ratio-0.5"].training_id
    assert [run.values for run in load_sweep(storage, "tiny").runs] == [
        {"selection.ratio": value} for value in ("0.5", "0.0001", "0.9")
    ]

    again = run_miniplm("sweep", str(config), "--set", "selection.ratio=0.5,0.9", "--json", prefect=embedded_prefect)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)["runs"]
    assert [(run["run_name"], run["is_finished"]) for run in told] == [("tiny-ratio-0.5", True), ("tiny-ratio-0.9", True)]
    for run in told:
        name = run["run_name"]
        assert load_run(storage, name).students["miniplm"] == trained[name]
        (student,) = run["students"]
        assert student["loss"]["nats_per_token"] == trained[name].evaluation.overall.nats_per_token
    page = Path(tmp_path / "data" / "runs" / "tiny" / "sweep.html").read_text()
    assert "2 of 2 runs are finished, over selection.ratio" in page

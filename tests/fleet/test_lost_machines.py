"""A fleet of which parts go away in the middle of the work: a machine for good, the server for a while."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml

from tests.fleet.local_fleet import LocalFleet
from tests.fleet.pool_runs import list_manifests, make_run, read_parquet, read_scores
from tests.tiny_runs import FinishedRun

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class LostMachine:
    """A run that has lost a machine in the middle of a batch, and its parent too; beside it the same run, which nobody disturbs."""

    run: str
    data: Path
    undisturbed: BaseProcess
    undisturbed_data: Path
    undisturbed_log: Path
    finished: dict[str, bytes]


@pytest.fixture(scope="package")
def lost_machine(started_fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> LostMachine:
    """It happens to a run before the other tests of the fleet: the minutes in which the fleet gets over it are theirs."""
    fleet = started_fleet
    folder = tmp_path_factory.mktemp("lost-machine")
    training = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3}
    config = make_run(
        folder,
        "killed",
        scoring={"device": "auto", "tokens_per_batch": 64},
        reference={"architecture": "qwen-tiny", "training": training},
        students=[{"name": "small", "architecture": "qwen-tiny", "training": training}],
    )
    data, undisturbed_data, log = folder / "data", folder / "undisturbed", folder / "undisturbed.log"
    run = fleet.submit("run-miniplm", config=str(config))
    # In the middle of a batch: more shards than its first one, which only measures. Whichever worker comes to that first.
    counts: Counter[str] = Counter()

    def is_at_work() -> bool:
        counts.clear()
        counts.update(manifest["worker"] for manifest in list_manifests(data))
        return max(counts.values(), default=0) >= 3

    fleet.wait_until(is_at_work, 400, 0.2)
    fleet.kill_machine(counts.most_common(1)[0][0])
    # And what waits for it, of which its own worker tells the server, twice; an automation starts it again.
    fleet.find_engine(run).kill()
    finished = read_scores(data)
    fleet.fork_engines()
    fleet.start_worker("late")
    undisturbed = fleet.start_miniplm(
        "run", str(config), "--set", f"storage={undisturbed_data}", "--set", "execution.fan_out=local", out=log
    )
    return LostMachine(run, data, undisturbed, undisturbed_data, log, finished)


def test_a_machine_dies_in_the_middle_of_a_batch(lost_machine: LostMachine) -> None:
    """First of all tests of the fleet; what became of it is told after the others."""
    assert len(list_pairs(lost_machine.finished)) >= 3


def test_a_machine_that_dies_costs_nothing_but_time(fleet: LocalFleet, lost_machine: LostMachine) -> None:
    run, data, before = lost_machine.run, lost_machine.data, lost_machine.finished
    # Half a minute until the parent is started again, a minute until it finds the dead machine's batch silent.
    fleet.wait_until(lambda: fleet.read(run)["state"]["type"] in ("COMPLETED", "FAILED"), 400)
    ended = fleet.read(run)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]["message"]
    assert ended["run_count"] == 2
    lost_machine.undisturbed.join(240)
    assert lost_machine.undisturbed.exitcode == 0, lost_machine.undisturbed_log.read_text()
    assert read_parquet(data, "selections") == read_parquet(lost_machine.undisturbed_data, "selections")
    assert read_parquet(data, "scores") == read_parquet(lost_machine.undisturbed_data, "scores")
    after = read_scores(data)
    pairs = list_pairs(before)
    assert {path: before[path] for path in pairs} == {path: after[path] for path in pairs}, "a finished shard was scored again"
    assert "late" in {manifest["worker"] for manifest in list_manifests(data)} or len(pairs) > len(after) // 2 - 6
    crashed = [child for child in fleet.list_runs("score-shards", "run:killed") if child["state"]["type"] == "CRASHED"]
    assert len(crashed) == 1
    assert "no sign of life for 60 s" in crashed[0]["state"]["message"]


def list_pairs(scores: dict[str, bytes]) -> list[str]:
    """The manifests whose shard is there too."""
    return [path for path in scores if path.endswith(".json") and path.replace(".json", ".parquet") in scores]


def test_two_runs_share_the_work_on_s3_while_the_server_is_started_again(fleet: LocalFleet, tmp_path: Path) -> None:
    config = make_run(
        tmp_path, "first", storage="s3://miniplm/shared", scoring={"tokens_per_batch": 64}, execution={"prepare": "workers"}
    )
    logs = tmp_path / "first.log", tmp_path / "second.log"
    first = fleet.start_miniplm("run", str(config), out=logs[0])
    second = fleet.start_miniplm("run", str(config), "--set", "name=second", "--set", "selection.ratio=0.3", out=logs[1])
    # The reference is the teacher, so the shards are given out in either role.
    fleet.wait_until(lambda: any(fleet.list_runs("score-shards", f"run:{name}") for name in ("first", "second")), 120)
    fleet.restart_server(seconds_away=5)
    try:
        for process in (first, second):
            process.join(300)
    finally:
        for process in (first, second):
            process.kill()  # where it did not end: it would disturb the tests that follow
            process.join()
    told = [log.read_text() for log in logs]
    assert None not in (first.exitcode, second.exitcode), told
    if [first.exitcode, second.exitcode] != [0, 0]:
        # What the README promises: nothing is lost, and one action goes on.
        for name, process in (("first", first), ("second", second)):
            if process.exitcode:
                again = fleet.run_miniplm("run", name, "--storage", "s3://miniplm/shared")
                assert again.returncode == 0, told
    for deployment, kind in (("score-shards", "shard"), ("prepare-parts", "part")):
        children = [child for name in ("first", "second") for child in fleet.list_runs(deployment, f"run:{name}")]
        given = [
            index for child in children if child["state"]["type"] == "COMPLETED" for index in child["parameters"][f"{kind}_indices"]
        ]
        assert given, f"nothing of {deployment}"
        assert len(given) == len(set(given)), f"a {kind} of {deployment} was given out twice"
    local = tmp_path / "local"
    embedded = fleet.run_miniplm("run", str(config), "--set", f"storage={local}", "--set", "execution.fan_out=local")
    assert embedded.returncode == 0, embedded.stderr
    listed = fleet.run_miniplm("status", "first", "--storage", "s3://miniplm/shared", "--json")
    ours = json.loads(listed.stdout)
    assert ours["complete"], ours
    theirs = json.loads(fleet.run_miniplm("status", "first", "--storage", str(local), "--json").stdout)
    # A selection's id is made of the digests of all scores.
    assert ours["stages"][4]["detail"] == theirs["stages"][4]["detail"]


def test_an_export_whose_worker_is_killed_has_the_bytes_of_an_undisturbed_one(
    fleet: LocalFleet, finished_run: FinishedRun, tmp_path: Path
) -> None:
    """From a finished selection, so that all of it is the export; the process on a worker dies when some of its files are made."""
    shutil.copytree(finished_run.data, tmp_path / "data")
    content = yaml.safe_load(finished_run.config.read_text()) | {
        "storage": str(tmp_path / "data"),
        "students": [],
        "scoring": {"device": "cpu"},
        "execution": {"fan_out": "work-pool", "stale_seconds": 60, "shards_per_batch": 40},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    export = ("export", str(config), "--format", "hf", "--shard-tokens", "150", "--to")
    parent = fleet.start_miniplm(*export, str(tmp_path / "out"), out=tmp_path / "log")
    parts = tmp_path / "out" / ".miniplm-export" / "parts"
    killed: list[str] = []

    def kill_one() -> bool:
        for child in fleet.list_runs("export-parts", "run:tiny"):
            made = [index for index in child["parameters"]["part_indices"] if (parts / f"part-{index:05d}.json").exists()]
            in_the_middle = 2 <= len(made) < len(child["parameters"]["part_indices"])
            if child["state"]["type"] == "RUNNING" and in_the_middle and child["id"] in fleet.list_engines():
                fleet.find_engine(child["id"]).kill()
                killed.append(child["id"])
        return bool(killed) or not parent.is_alive()

    fleet.wait_until(kill_one, 120, 0.1)
    parent.join(240)
    assert parent.exitcode == 0, (tmp_path / "log").read_text()
    assert killed
    states = {child["id"]: child["state"]["type"] for child in fleet.list_runs("export-parts", "run:tiny")}
    # One that made its last files between the look and the kill has completed.
    assert any(states[run_id] == "CRASHED" for run_id in killed), states
    assert Counter(states.values())["COMPLETED"] == len(states) - len(killed)
    alone = fleet.run_miniplm(*export, str(tmp_path / "alone"), "--set", "execution.fan_out=local")
    assert alone.returncode == 0, alone.stderr
    assert read_files(tmp_path / "out") == read_files(tmp_path / "alone")


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

"""A fleet of which parts go away in the middle of the work: a machine for good, the server for a while."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.fleet.local_fleet import LocalFleet
from tests.fleet.pool_runs import list_manifests, make_run, read_parquet, read_scores

pytestmark = pytest.mark.slow


def test_a_machine_that_dies_costs_nothing_but_time(fleet: LocalFleet, tmp_path: Path) -> None:
    training = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3}
    config = make_run(
        tmp_path,
        "killed",
        scoring={"tokens_per_batch": 64},
        reference={"architecture": "qwen-tiny", "training": training},
        students=[{"name": "small", "architecture": "qwen-tiny", "training": training}],
    )
    data = tmp_path / "data"
    run = fleet.submit("run-miniplm", config=str(config))
    # In the middle of a batch: more shards than its first one, which only measures. Whichever worker comes to that first.
    counts: Counter[str] = Counter()

    def is_at_work() -> bool:
        counts.clear()
        counts.update(manifest["worker"] for manifest in list_manifests(data))
        return max(counts.values(), default=0) >= 3

    fleet.wait_until(is_at_work, 400, 0.2)
    doomed = counts.most_common(1)[0][0]
    fleet.kill_machine(doomed)
    # And what waits for it, of which its own worker tells the server, twice; an automation starts it again.
    fleet.find_engine(run).kill()
    before = read_scores(data)
    embedded = tmp_path / "embedded"
    undisturbed = fleet.run_miniplm("run", str(config), "--set", f"storage={embedded}", "--set", "execution.fan_out=local")
    assert undisturbed.returncode == 0, undisturbed.stderr
    fleet.start_worker("late")
    # Half a minute until the parent is started again, a minute until it finds the dead machine's batch silent.
    fleet.wait_until(lambda: fleet.read(run)["state"]["type"] in ("COMPLETED", "FAILED"), 400)
    ended = fleet.read(run)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]["message"]
    assert ended["run_count"] == 2
    assert read_parquet(data, "selections") == read_parquet(embedded, "selections")
    assert read_parquet(data, "scores") == read_parquet(embedded, "scores")
    after = read_scores(data)
    pairs = [path for path in before if path.endswith(".json") and path.replace(".json", ".parquet") in before]
    assert len(pairs) >= 3
    assert {path: before[path] for path in pairs} == {path: after[path] for path in pairs}, "a finished shard was scored again"
    assert "late" in {manifest["worker"] for manifest in list_manifests(data)} or len(pairs) > len(after) // 2 - 6
    crashed = [child for child in fleet.list_runs("score-shards", "run:killed") if child["state"]["type"] == "CRASHED"]
    assert len(crashed) == 1
    assert "no sign of life for 60 s" in crashed[0]["state"]["message"]


def test_two_runs_share_the_work_on_s3_while_the_server_is_started_again(fleet: LocalFleet, tmp_path: Path) -> None:
    config = make_run(tmp_path, "first", storage="s3://miniplm/shared", scoring={"tokens_per_batch": 64})
    logs = tmp_path / "first.log", tmp_path / "second.log"
    first = fleet.start_miniplm("run", str(config), out=logs[0])
    second = fleet.start_miniplm("run", str(config), "--set", "name=second", "--set", "selection.ratio=0.3", out=logs[1])
    fleet.wait_until(
        lambda: (
            len(fleet.list_runs("score-shards", "role:teacher", "run:first"))
            + len(fleet.list_runs("score-shards", "role:teacher", "run:second"))
            >= 1
        ),
        120,
    )
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
    for role in ("teacher", "reference"):
        children = [
            child for name in ("first", "second") for child in fleet.list_runs("score-shards", f"role:{role}", f"run:{name}")
        ]
        given = [
            index for child in children if child["state"]["type"] == "COMPLETED" for index in child["parameters"]["shard_indices"]
        ]
        assert len(given) == len(set(given)), f"a shard of the {role} was given out twice"
    local = tmp_path / "local"
    embedded = fleet.run_miniplm("run", str(config), "--set", f"storage={local}", "--set", "execution.fan_out=local")
    assert embedded.returncode == 0, embedded.stderr
    listed = fleet.run_miniplm("status", "first", "--storage", "s3://miniplm/shared", "--json")
    ours = json.loads(listed.stdout)
    assert ours["complete"], ours
    theirs = json.loads(fleet.run_miniplm("status", "first", "--storage", str(local), "--json").stdout)
    # A selection's id is made of the digests of all scores.
    assert ours["stages"][4]["detail"] == theirs["stages"][4]["detail"]

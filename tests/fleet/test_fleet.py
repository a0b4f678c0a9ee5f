"""A fleet under what happens to fleets: a bad shard, people who cancel, work that cannot be, many shards."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.rescore_shards import rescore_shards
from flows.run_miniplm import run_miniplm
from flows.score_shards import score_shards
from miniplm.config.run import ScoringConfig
from miniplm.layout import run_folder
from miniplm.records.manifests import ModelEntry
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage
from tests import command_line
from tests.command_line import environment
from tests.fleet.local_fleet import ROOT, LocalFleet
from tests.fleet.pool_runs import list_manifests, make_run, read_scores

pytestmark = pytest.mark.slow


def test_a_shard_that_fails_is_named_and_repairs_touch_it_alone(fleet: LocalFleet, tmp_path: Path) -> None:
    config = make_run(tmp_path, "bad-shard", execution={"shards_per_batch": 30})
    prepared = fleet.run_miniplm("prepare", str(config))
    assert prepared.returncode == 0, prepared.stderr
    data = tmp_path / "data"
    bad = next(iter((data / "corpora").glob("*/candidate/shard-00003.parquet")))
    content = bad.read_bytes()
    bad.write_bytes(content[:-300] + bytes(100) + content[-200:])
    run = fleet.submit("run-miniplm", config=str(config))
    failed = fleet.wait(run)
    assert failed["state"]["type"] == "FAILED"
    message = failed["state"]["message"]
    assert "shard-00003: CorpusError: " in message
    assert "1 of " in message
    assert "miniplm rescore bad-shard --failed" in message
    before = read_scores(data)
    num_shards = len(list(bad.parent.glob("*.parquet")))
    assert sum(path.endswith(".parquet") for path in before) == num_shards - 1
    # Not retried while the reason was there.
    tried = [child["id"] for child in fleet.list_runs("score-shards", "run:bad-shard") if 3 in child["parameters"]["shard_indices"]]
    assert len(tried) == 1
    num_children = len(fleet.list_runs("score-shards", "run:bad-shard"))
    bad.write_bytes(content)
    # As if the first attempt's process lived, cut off from the server: the second waits until it ends, as both are the same flow run.
    with exclusive(Storage(str(data)), run_folder("bad-shard"), "run bad-shard", attempt_of=run):
        fleet.retry(run)
        fleet.wait_until(lambda: any("an earlier attempt" in message for message in fleet.read_logs(run)), 120)
        assert fleet.read(run)["state"]["type"] == "RUNNING"
    ended = fleet.wait(run)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]["message"]
    after = read_scores(data)
    assert {path: after[path] for path in before} == before, "a finished shard was scored again"
    assert len(after) == 2 * num_shards
    new = fleet.list_runs("score-shards", "run:bad-shard")[num_children:]
    assert [child["parameters"]["shard_indices"] for child in new] == [[3]]
    assert not list((data / "scores").rglob("failures/*"))

    # rescore-shards: what is gone, and nothing else.
    gone = [path for path in after if path.endswith(("shard-00005.json", "shard-00011.parquet"))]
    for path in gone:
        (data / path).unlink()
    done = fleet.wait(fleet.submit("rescore-shards", storage=str(data), run="bad-shard", model="teacher"))
    assert done["state"]["type"] == "COMPLETED", done["state"]["message"]
    repaired = read_scores(data)
    assert {path.rsplit("/", 1)[-1] for path in after if after[path] != repaired[path]} == {"shard-00005.json", "shard-00011.json"}


def test_cancelling_a_run_ends_its_processes_and_leaves_nothing_half_published(fleet: LocalFleet, tmp_path: Path) -> None:
    config = make_run(tmp_path, "cancelled", scoring={"tokens_per_batch": 16})
    data = tmp_path / "data"
    run = fleet.submit("run-miniplm", config=str(config))
    fleet.wait_until(lambda: len(list_manifests(data)) >= 2, 120, 0.2)
    began = time.monotonic()
    fleet.set_state(run, "CANCELLING")
    ours = {run, *(child["id"] for child in fleet.list_runs("score-shards", "run:cancelled"))}
    assert len(ours) >= 2
    fleet.wait_until(lambda: not ours & set(fleet.list_engines()), 60)
    assert time.monotonic() - began < 30
    assert fleet.wait(run)["state"]["type"] == "CANCELLED"
    live = [
        child
        for child in fleet.list_runs("score-shards", "run:cancelled")
        if child["state"]["type"] in ("RUNNING", "PENDING", "SCHEDULED")
    ]
    assert not live
    for path in (data / "scores").glob("*/*/shard-*.json"):
        manifest = json.loads(path.read_bytes())
        assert path.with_suffix(".parquet").stat().st_size == manifest["num_bytes"]


def test_what_cannot_be_is_refused_with_the_reason(fleet: LocalFleet, prefect_server: dict[str, str], tmp_path: Path) -> None:
    config = make_run(tmp_path, "refused")
    relative_storage = fleet.submit("run-miniplm", config=str(config), overrides=["storage=./data"])
    prepared = fleet.run_miniplm("prepare", str(config))
    assert prepared.returncode == 0, prepared.stderr
    corpus = next(path.name for path in (tmp_path / "data" / "corpora").iterdir() if path.name.startswith("c-"))
    model = {"model_id": "x", "source": "x", "dtype": "float32", "weights_digest": "x", "num_parameters": 1}
    batch = {"storage": str(tmp_path / "data"), "corpus_id": corpus, "model": model, "role": "teacher", "scoring": {}}
    # A flow that is called says the same as one on a worker, and takes no process of it.
    with temporary_settings({PREFECT_API_URL: prefect_server["PREFECT_API_URL"]}):
        told = {
            "RunError": rescore_shards(storage=str(tmp_path / "data"), run="nobody", return_state=True),
            "ConfigError: config 'config.yaml' is a relative path": run_miniplm(config="config.yaml", return_state=True),
            "the run was started by miniplm 0.0.1": score_shards(
                **{**batch, "model": ModelEntry(**model), "scoring": ScoringConfig()},
                shard_indices=[0],
                version="0.0.1",
                return_state=True,
            ),
            "ConfigError: there is no config file": run_miniplm(config=str(tmp_path / "none.yaml"), return_state=True),
            "ConfigError: config 'http://127.0.0.1:1/config.yaml': a configuration is read from": run_miniplm(
                config="http://127.0.0.1:1/config.yaml", return_state=True
            ),
            "has no candidate shard 100000; its shards are 0 to": score_shards(
                **{**batch, "model": ModelEntry(**model), "scoring": ScoringConfig()}, shard_indices=[100000], return_state=True
            ),
        }
    for message, state in told.items():
        assert state.is_failed()
        assert message in state.message
    # Of the storage root only a flow run of a deployment says so, as its working folder is deleted with it.
    ended = fleet.wait(relative_storage)
    assert ended["state"]["type"] == "FAILED"
    assert "storage is './data', relative to a folder that a worker deletes" in ended["state"]["message"]


@pytest.mark.parametrize("command", [["run", "CONFIG"], ["rescore", "CONFIG", "--failed"], ["run", "CONFIG", "--submit"]])
def test_a_server_that_is_down_is_told_in_one_line(command: list[str], tmp_path: Path) -> None:
    config = make_run(tmp_path, "down")
    (tmp_path / "data" / "runs" / "down").mkdir(parents=True)
    record = {"run_name": "down", "config": yaml.safe_load(config.read_text()), "started_at": "2026-01-01"}
    (tmp_path / "data" / "runs" / "down" / "run.json").write_text(json.dumps(record))
    arguments = [str(config) if word == "CONFIG" else word for word in command]
    told = command_line.run_miniplm(*arguments, prefect={"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert told.returncode == 2
    assert "no answer from the Prefect server at http://127.0.0.1:9/api" in told.stderr
    assert "Traceback" not in told.stderr


def test_many_shards_take_few_flow_runs_and_flat_memory(fleet: LocalFleet, tmp_path: Path) -> None:
    """By the benchmark, which also says what a shard costs in time; alone it takes 2,000, here fewer for the time of `make test`."""
    rows = tmp_path / "rows"
    command = [sys.executable, "-m", "benchmarks.orchestration", "--sides", "work-pool", "--shards", "250", "--json", str(rows)]
    with open(tmp_path / "log", "w") as log:
        parent = psutil.Popen(command, cwd=ROOT, env=environment(fleet.client), stdout=log, stderr=log)
        resident: list[int] = []
        while parent.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                resident.append(parent.memory_info().rss)
            time.sleep(0.5)
    assert parent.returncode == 0, (tmp_path / "log").read_text()
    row = json.loads(rows.read_text())
    assert row["num_shards_scored"] == 250
    assert row["num_flow_runs"] <= 8
    # From when it has imported everything and read the corpus, to its end.
    assert max(resident) - resident[len(resident) // 2] < 64 << 20, [size >> 20 for size in resident]
    assert "database is locked" not in (fleet.folder / "logs" / "server.log").read_text()


def test_nothing_that_the_server_stored_holds_a_secret(fleet: LocalFleet) -> None:
    secrets = {path.name: path.read_text() for path in (fleet.folder / "secrets").iterdir()}
    assert set(secrets) == {"postgres", "s3", "server"}
    port = next(
        line.split("=")[1] for line in (fleet.folder / "options").read_text().splitlines() if line.startswith("POSTGRES_PORT")
    )
    dump = subprocess.run(
        ["pg_dump", "-h", "127.0.0.1", "-p", port, "-U", "miniplm", "prefect"],
        env={"PGPASSWORD": secrets["postgres"], "PATH": "/usr/bin:/usr/local/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "score-shards" in dump
    for path in (fleet.folder / "logs").glob("*.log"):
        dump += path.read_text(errors="replace")
    assert [name for name, secret in secrets.items() if secret in dump] == []

"""A worker on another machine whose link is cut: nothing is lost, and no shard is scored twice for good (tests/containers/two_machines.sh)."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from miniplm.corpus.reader import load_corpus
from miniplm.scoring.shards import check_score_shards
from miniplm.storage.root import Storage
from tests.fleet.local_fleet import ROOT, LocalFleet
from tests.fleet.pool_runs import make_run
from tests.s3_server import WEED

EDGE = os.environ.get("MINIPLM_EDGE")
HUB_ADDRESS = "10.77.0.1"
CUT_SECONDS = 180

pytestmark = pytest.mark.skipif(EDGE is None, reason="run tests/containers/two_machines.sh, which makes the machines")


class TwoMachines(LocalFleet):
    """A hub with everything, in whose namespace this runs, and an edge with one worker."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "fleet")
        s3_port = 8333  # nothing else is in this namespace
        self._ports = [*self._ports[:4], "--host", HUB_ADDRESS, "--s3-port", "0"]
        self.store = {
            "AWS_ENDPOINT_URL": f"http://{HUB_ADDRESS}:{s3_port}",
            "AWS_ACCESS_KEY_ID": "miniplm",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(12),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._variables |= self.store
        (folder / "s3").mkdir()
        command = [
            str(WEED),
            "-logtostderr=true",
            "server",
            f"-dir={folder / 's3'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer=true",
        ]
        command += [
            "-s3=true",
            f"-s3.ip.bind={HUB_ADDRESS}",
            f"-s3.port={s3_port}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-iam=false",
        ]
        command += ["-volume.max=0", "-master.volumeSizeLimitMB=1024", "-master.telemetry=false"]
        with open(folder / "s3.log", "wb") as log:
            self._s3 = subprocess.Popen(command, env=self._variables, stdout=log, stderr=log)
        self._log = open(folder / "edge.log", "wb")  # noqa: SIM115 - as long as the worker
        self._processes = [self._s3]

    def start(self) -> None:
        self.script("start", "--gpu-workers", "1", *self._ports)
        self._take_client()
        self.client |= self.store
        command = [
            "ip",
            "netns",
            "exec",
            str(EDGE),
            str(ROOT / "deployments" / "gpu-workers.sh"),
            "--gpus",
            "none",
            "--name",
            "edge",
        ]
        self.edge = subprocess.Popen(
            command, env=self._variables | self.client, stdout=self._log, stderr=self._log, start_new_session=True
        )
        self._processes.append(self.edge)

    def stop(self) -> None:
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                        one.send_signal(signal.SIGKILL)
            process.wait()
        super().stop()
        self._log.close()

    def find_edge_engine(self) -> psutil.Process | None:
        """The process on the edge that scores a batch now."""
        for child in psutil.Process(self.edge.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                run_id = child.environ().get("PREFECT__FLOW_RUN_ID")
                if run_id and self.read(run_id)["state"]["type"] == "RUNNING":
                    return child
        return None

    def set_link(self, state: str) -> None:
        subprocess.run(["ip", "-n", str(EDGE), "link", "set", "edge", state], check=True)


@pytest.fixture(scope="module")
def fleet() -> Iterator[TwoMachines]:
    # PostgreSQL, which is not root, has to get there.
    folder = Path(tempfile.mkdtemp(prefix="miniplm-two-", dir="/var/tmp"))
    folder.chmod(0o755)
    fleet = TwoMachines(folder)
    for name, value in fleet.store.items():
        os.environ[name] = value
    try:
        fleet.wait_until(lambda: make_bucket(), 60)
        fleet.start()
        yield fleet
    finally:
        fleet.stop()
        shutil.rmtree(folder)


def make_bucket() -> bool:
    from s3fs import S3FileSystem

    with contextlib.suppress(Exception):
        S3FileSystem(skip_instance_cache=True).mkdir("miniplm")
        return True
    return False


def submit(fleet: TwoMachines, folder: Path, name: str, sequences_per_shard: int) -> str:
    """Some eighty small shards in batches of eleven; models and text lie where both machines see them."""
    config: dict[str, Any] = yaml.safe_load(make_run(folder, name).read_text())
    config["storage"] = f"s3://miniplm/{name}"
    config["corpus"]["sequences_per_shard"] = sequences_per_shard
    return fleet.submit("run-miniplm", config=config)


def read_scores(name: str) -> dict[str, bytes]:
    storage = Storage(f"s3://miniplm/{name}")
    paths = [path for path in storage.find_files("scores", 3) if "shard-" in path]
    return {path: storage.read_bytes(f"scores/{path}") for path in paths}


def require_whole(name: str) -> None:
    """Each shard has one file, which is what its manifest says."""
    storage = Storage(f"s3://miniplm/{name}")
    (corpus_id,) = [one for one in storage.list_names("corpora") if one.startswith("c-")]
    (model_id,) = storage.list_names(f"scores/{corpus_id}")
    corpus = load_corpus(storage, corpus_id)
    states = check_score_shards(storage, corpus, model_id)
    assert len(states) == len(corpus.split_shards("candidate")) > 40
    assert {state.state for state in states} == {"done"}
    assert len(read_scores(name)) == 2 * len(states)


def cut_while_the_edge_scores(fleet: TwoMachines) -> psutil.Process:
    fleet.wait_until(lambda: fleet.find_edge_engine() is not None, 240)
    engine = fleet.find_edge_engine()
    assert engine is not None
    fleet.set_link("down")
    return engine


def test_a_link_that_is_cut_for_three_minutes_loses_nothing(fleet: TwoMachines, tmp_path: Path) -> None:
    run_id = submit(fleet, tmp_path, "cut", 8)
    engine = cut_while_the_edge_scores(fleet)
    batch, began = engine.environ()["PREFECT__FLOW_RUN_ID"], time.monotonic()
    fleet.wait_until(lambda: fleet.read(batch)["state"]["type"] == "CRASHED", CUT_SECONDS)
    time.sleep(max(0.0, began + CUT_SECONDS - time.monotonic()))
    before = read_scores("cut")
    assert before
    fleet.set_link("up")
    assert fleet.wait(run_id, 400)["state"]["type"] == "COMPLETED"
    fleet.wait_until(lambda: not engine.is_running(), 240)
    require_whole("cut")
    # What was there before the link healed is as it was: what the edge still had in hand changed no score.
    after = read_scores("cut")
    assert {path: content for path, content in before.items() if path.endswith(".parquet")} == {
        path: after[path] for path in before if path.endswith(".parquet")
    }
    # The edge takes work again.
    another = submit(fleet, tmp_path / "again", "again", 9)
    fleet.wait_until(lambda: fleet.find_edge_engine() is not None, 240)
    assert fleet.wait(another, 400)["state"]["type"] == "COMPLETED"


def test_a_link_that_is_cut_for_good_costs_time_and_nothing_else(fleet: TwoMachines, tmp_path: Path) -> None:
    run_id = submit(fleet, tmp_path, "gone", 10)
    cut_while_the_edge_scores(fleet)
    assert fleet.wait(run_id, 400)["state"]["type"] == "COMPLETED"
    require_whole("gone")

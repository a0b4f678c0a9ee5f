"""The images and docker/compose.yaml, started for real: who runs, what answers whom, what nobody may see, and a run through faults."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import httpx

from tests.containers.compose_fleet import IMAGE, ComposeFleet
from tests.containers.runs import PATIENCE, make_config

CLOSED_S3_PORTS = (8080, 8888, 9333, 18080, 18888, 19333)


def list_live(fleet: ComposeFleet) -> list[str]:
    """The flow runs that are not at their end, whoever started them."""
    state = {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING", "SCHEDULED"]}}
    return [run["name"] for run in fleet.call("POST", "/flow_runs/filter", json={"flow_runs": {"state": state}, "limit": 200})]


def require_done(fleet: ComposeFleet, name: str, run_id: str) -> None:
    """The run is done, each of its shards was published once, and no flow run is left behind."""
    fleet.wait_until(lambda: fleet.read(run_id)["state"]["type"] in ("COMPLETED", "FAILED"), PATIENCE)
    state = fleet.read(run_id)["state"]  # Crashed is passed through: it is started again by itself
    assert state["type"] == "COMPLETED", state
    shards = Counter(shard["shard_index"] for shard in fleet.list_scored(name))
    assert shards == Counter(range(8))
    fleet.wait_until(lambda: not list_live(fleet), 30)


def test_the_containers_run_as_nobody_with_no_capability(fleet: ComposeFleet) -> None:
    containers = [name for name in fleet.list_containers() if re.match("server|cpu-", name)]
    assert len(containers) == 4
    for name in containers:
        status = dict(line.split(":\t", 1) for line in fleet.execute(name, "cat", "/proc/1/status").splitlines() if ":\t" in line)
        assert status["Uid"].split() == ["10001"] * 4
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert fleet.execute(name, "sh", "-c", "command -v gcc cc c++ || true") == ""


def test_only_server_and_store_are_reached_from_the_host_and_with_a_password(fleet: ComposeFleet) -> None:
    published = {name: fleet.inspect(name, "NetworkSettings.Ports") for name in fleet.list_containers()}
    bound = {
        (name, port["HostIp"], port["HostPort"])
        for name, ports in published.items()
        for found in ports.values()
        for port in found or ()
    }
    assert bound == {("server-1", "127.0.0.1", str(fleet.port)), ("s3-1", "127.0.0.1", str(fleet.s3_port))}
    assert httpx.get(f"http://127.0.0.1:{fleet.port}/api/flow_runs/count").status_code == 401
    assert httpx.get(f"http://127.0.0.1:{fleet.s3_port}/miniplm?list-type=2").status_code == 403


def test_inside_the_network_the_store_answers_on_its_one_port(fleet: ComposeFleet) -> None:
    program = f"""
import socket
for port in (8333, *{CLOSED_S3_PORTS}):
    try:
        socket.create_connection(("s3", port), 2).close()
        print(port, end=" ")
    except OSError:
        pass"""
    assert fleet.execute("cpu-worker-1", "python", "-c", program).split() == ["8333"]


def test_one_setting_gives_the_address_to_the_page_and_the_links(fleet: ComposeFleet) -> None:
    """MINIPLM_PORT alone was set."""
    address = f"http://127.0.0.1:{fleet.port}"
    assert fleet.api.get(f"{address}/ui-settings").json()["api_url"] == f"{address}/api"
    for name in ("server-1", "cpu-worker-1", "cpu-scorer-1"):
        assert f"PREFECT_UI_URL={address}\n" in fleet.execute(name, "env")


def test_a_run_survives_a_new_server_a_killed_worker_and_down_and_up(fleet: ComposeFleet) -> None:
    def count() -> int:
        return len(fleet.list_scored("faults"))

    run_id = fleet.submit("run-miniplm", config=make_config("faults", 88))
    fleet.wait_until(lambda: count() >= 1, PATIENCE)
    fleet.command("docker", "kill", f"{fleet.name}-cpu-scorer-1")
    fleet.compose("restart", "server")
    fleet.wait_until(fleet.is_answering, PATIENCE)
    fleet.command("docker", "start", f"{fleet.name}-cpu-scorer-1")
    # What was given out before is done by now, and what the server gave out since is on its way.
    fleet.wait_until(lambda: count() >= 4, PATIENCE)
    assert count() < 8
    before = {name: fleet.bucket.cat_file(name) for name in fleet.bucket.glob("miniplm/faults/scores/*/*/shard-*.parquet")}
    fleet.down()
    assert fleet.list_containers() == {}
    fleet.up()
    require_done(fleet, "faults", run_id)
    assert {name: fleet.bucket.cat_file(name) for name in before} == before
    # What was in the parent's process ended with it.
    subflows = fleet.call("POST", "/flow_runs/filter", json={"flow_runs": {"tags": {"all_": [f"process:{run_id}"]}}})
    assert {run["state"]["type"] for run in subflows} == {"COMPLETED", "CRASHED"}


def test_each_container_is_healthy_in_the_end(fleet: ComposeFleet) -> None:
    """A worker's first check is 30 s after its start."""

    def list_states() -> dict[str, str]:
        states = {name: fleet.inspect(name, "State") for name in fleet.list_containers() if not name.startswith("setup")}
        return {name: state["Health"]["Status"] for name, state in states.items()}

    fleet.wait_until(lambda: "starting" not in list_states().values(), 90, 1)
    states = list_states()
    assert states == dict.fromkeys(states, "healthy")
    assert len(states) == 6


def test_no_secret_is_in_the_image_the_logs_or_the_database(fleet: ComposeFleet) -> None:
    containers = fleet.list_containers()
    database = fleet.execute(
        "postgres-1", "sh", "-c", 'PGPASSWORD="$POSTGRES_PASSWORD" pg_dump --host 127.0.0.1 --username prefect prefect', timeout=120
    )
    assert "run-miniplm" in database
    said = {name: fleet.command("docker", "logs", container) for name, container in containers.items()}
    said |= {"database": database, "history": fleet.command("docker", "history", "--no-trunc", IMAGE)}
    assert "miniplm" in said["cpu-worker-1"]
    # SeaweedFS says the id of the key that it takes, which is no secret.
    secrets = {name: value for name, value in fleet.secrets.items() if name != "S3_ACCESS_KEY"}
    for name, text in said.items():
        assert [secret for secret, value in secrets.items() if value in text] == [], name


def test_the_file_refuses_to_start_without_passwords(fleet: ComposeFleet, tmp_path: Path) -> None:
    for name in fleet.secrets:
        (tmp_path / "env").write_text("".join(f"{other}=x\n" for other in fleet.secrets if other != name))
        said = fleet.compose("--env-file", str(tmp_path / "env"), "config", check=False)
        assert f"docker/.env needs {name}" in said

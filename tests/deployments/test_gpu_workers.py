"""deployments/gpu-workers.sh with a stub in the place of prefect: what is started, with what environment, and how it ends."""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import processes
from tests.conftest import ROOT

SCRIPT = ROOT / "deployments" / "gpu-workers.sh"
UNIT = ROOT / "deployments" / "systemd" / "miniplm-gpu-worker@.service"

# Writes down how it was called and which signals it would ignore, then waits for SIGTERM as a worker does.
STUB = """#!/usr/bin/env python3
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["STUB_FOLDER"])
if sys.argv[1] == "api":
    (folder / "told").open("a").write(" ".join(sys.argv[1:]) + "\\n")
    if sys.argv[3] == "/flow_runs/filter":
        process = json.loads(sys.argv[-1])["flow_runs"]["tags"]["all_"]
        print(json.dumps([{"id": "in-" + tag.removeprefix("process:")} for tag in process]))
    sys.exit(0)
name = sys.argv[sys.argv.index("--name") + 1]
if run := os.environ.get("STUB_RUN"):
    import subprocess
    child = subprocess.Popen(["sleep", "60"], env={**os.environ, "PREFECT__FLOW_RUN_ID": f"{run}-{name}"})
def stop(number, frame):
    (folder / f"{name}.stopped").write_text(signal.Signals(number).name)
    if run:
        child.kill()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
facts = {
    "pid": os.getpid(),
    "arguments": sys.argv[1:],
    "environment": dict(os.environ),
    "ignores_sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
}
(folder / f"{name}.tmp").write_text(json.dumps(facts))
(folder / f"{name}.tmp").rename(folder / f"{name}.json")
if name.endswith(os.environ.get("STUB_DIES", "-")):
    time.sleep(0.5)
    sys.exit(3)
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def machine(tmp_path):
    """The environment of a machine whose prefect is the stub, and whose nvidia-smi lists GPUs 0 and 1."""
    commands, venv = tmp_path / "bin", tmp_path / "venv"
    for folder, name, text in ((venv, "prefect", STUB), (commands, "nvidia-smi", "#!/bin/sh\nprintf '0\\n1\\n'\n")):
        folder.mkdir()
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (commands / "prefect").symlink_to(venv / "prefect")  # as pipx and uv install commands
    (venv / "python3").symlink_to(sys.executable)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CUDA_", "DO_NOT"))}
    # The workers are in sessions of their own.
    with processes.ended_with_block() as mark:
        yield {
            **kept,
            **mark,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "STUB_FOLDER": str(tmp_path),
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
        }


def start(machine: dict[str, str], *arguments: str, num_workers: int) -> tuple[subprocess.Popen, dict[str, dict]]:
    """The running script, and what its workers wrote down, by name."""
    process = subprocess.Popen([str(SCRIPT), "--name", "host", *arguments], env=machine, start_new_session=True)
    folder = Path(machine["STUB_FOLDER"])
    deadline = time.monotonic() + 20
    while len(files := sorted(folder.glob("*.json"))) < num_workers:
        assert process.poll() is None, "the script ended"
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.05)
    return process, {file.stem: json.loads(file.read_text()) for file in files}


def stopped(machine: dict[str, str]) -> dict[str, str]:
    return {file.stem: file.read_text() for file in Path(machine["STUB_FOLDER"]).glob("*.stopped")}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_each_gpu_gets_a_worker_that_sees_it_alone(machine, tmp_path):
    process, workers = start(machine, num_workers=2)
    process.terminate()
    assert process.wait(10) == 0
    assert {name: worker["environment"]["CUDA_VISIBLE_DEVICES"] for name, worker in workers.items()} == {
        "host-gpu0": "0",
        "host-gpu1": "1",
    }
    # Flow runs are started by `python`: the one of the environment that prefect is in.
    assert workers["host-gpu1"]["environment"]["PATH"].split(":")[0] == str(tmp_path / "venv")
    assert workers["host-gpu1"]["arguments"] == [
        *("worker", "start", "--pool", "miniplm-gpu", "--type", "process", "--name", "host-gpu1", "--limit", "1")
    ]
    environment = workers["host-gpu0"]["environment"]
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert environment["PREFECT_LOGGING_EXTRA_LOGGERS"] == "miniplm"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["DO_NOT_TRACK"] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_workers_and_none_ignores_ctrl_c(machine, number):
    process, workers = start(machine, "--gpus", "0,1,3", num_workers=3)
    assert not any(worker["ignores_sigint"] for worker in workers.values())
    process.send_signal(number)
    assert process.wait(10) == 0
    assert stopped(machine) == dict.fromkeys(("host-gpu0", "host-gpu1", "host-gpu3"), "SIGTERM")
    assert not any(is_alive(worker["pid"]) for worker in workers.values())


def test_ctrl_c_at_the_terminal_reaches_each_worker_once_through_the_script(machine):
    """A terminal signals the whole process group; the workers are in groups of their own."""
    process, workers = start(machine, "--gpus", "0,1", num_workers=2)
    assert {os.getpgid(worker["pid"]) for worker in workers.values()}.isdisjoint({os.getpgid(process.pid)})
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) == 0
    assert set(stopped(machine).values()) == {"SIGTERM"}


@pytest.mark.parametrize("arguments", [("--gpus", "0,1"), ("--gpus", "0", "--pool", "a pool")])
def test_ctrl_c_stops_a_script_that_was_started_with_it_ignored(machine, arguments):
    """As a script does that starts it with `&`; what bash finds ignored it could not trap."""
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        num_workers = 1 + arguments[1].count(",")
        process, workers = start(machine, *arguments, num_workers=num_workers)
    finally:
        signal.signal(signal.SIGINT, ignored)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert len(stopped(machine)) == num_workers
    assert not any(worker["ignores_sigint"] for worker in workers.values())
    assert arguments[-1] in workers[min(workers)]["arguments"] or num_workers == 2


@pytest.mark.parametrize(
    ("given", "expected"), [(None, "localhost,127.0.0.1,::1"), (".corp", ".corp,localhost,127.0.0.1,::1"), ("*", "*")]
)
def test_workers_ask_a_server_of_this_machine_past_any_proxy(machine, given, expected):
    for name in ("NO_PROXY", "no_proxy"):
        machine.pop(name, None)
    process, workers = start({**machine, **({} if given is None else {"NO_PROXY": given})}, "--gpus", "none", num_workers=1)
    process.terminate()
    assert process.wait(10) == 0
    environment = workers["host"]["environment"]
    assert (environment["NO_PROXY"], environment["no_proxy"]) == (expected, expected)


def test_the_server_is_told_of_the_runs_that_were_stopped(machine):
    """The stub's workers each have a child with the id of a run in its environment, as Prefect's have."""
    process, _ = start({**machine, "STUB_RUN": "run"}, "--gpus", "0,1", num_workers=2)
    process.terminate()
    assert process.wait(10) == 0
    state = '{"state": {"type": "CRASHED", "message": "Its worker was stopped."}}'
    told = (Path(machine["STUB_FOLDER"]) / "told").read_text().splitlines()
    # Those in the processes of the runs too, which the server gives.
    assert sorted(line for line in told if "filter" not in line) == [
        f"api POST /flow_runs/{run}-host-gpu{gpu}/set_state --data {state}" for run in ("in-run", "run") for gpu in (0, 1)
    ]


def test_one_that_dies_takes_the_others_with_it_and_is_said(machine):
    process, workers = start({**machine, "STUB_DIES": "gpu1"}, "--gpus", "0,1", num_workers=2)
    assert process.wait(10) == 1
    assert stopped(machine) == {"host-gpu0": "SIGTERM"}
    assert not any(is_alive(worker["pid"]) for worker in workers.values())


def test_what_is_set_stays_and_pool_queue_limit_and_no_gpu_are_taken(machine):
    given = {**machine, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "45"}
    process, workers = start(given, "--gpus", "none", "--pool", "other", "--queue", "urgent", "--limit", "8", num_workers=1)
    process.terminate()
    assert process.wait(10) == 0
    (worker,) = workers.values()
    assert worker["environment"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "45"
    assert worker["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert worker["arguments"] == [
        *("worker", "start", "--pool", "other", "--type", "process", "--name", "host", "--limit", "8", "--work-queue", "urgent")
    ]


def test_one_worker_answers_for_all_when_asked_for_health(machine):
    """Two would fight for the port; that all end with the first that ends makes one enough."""
    process, workers = start(machine, "--healthcheck", num_workers=2)
    process.terminate()
    assert process.wait(10) == 0
    assert ["--with-healthcheck" in workers[name]["arguments"] for name in ("host-gpu0", "host-gpu1")] == [True, False]


def test_a_worker_without_a_name_has_the_machine_s_and_its_gpu_s(machine):
    process = subprocess.Popen([str(SCRIPT), "--gpus", "3"], env=machine, start_new_session=True)
    expected = Path(machine["STUB_FOLDER"]) / f"{socket.gethostname()}-gpu3.json"
    deadline = time.monotonic() + 20
    while not expected.exists():
        assert time.monotonic() < deadline, list(expected.parent.glob("*.json"))
        time.sleep(0.05)
    process.terminate()
    assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "without", "message"),
    [
        (["--gpus", "0,x"], None, "give all, none, or numbers"),
        (["--gpus", "1,0,1"], None, "1 is given twice"),
        (["--gpus"], None, "--gpus wants a value"),
        (["--limit", "some"], None, "give a number from 1"),
        (["--workers", "2"], None, "there is no option --workers"),
        ([], "PREFECT_API_URL", "PREFECT_API_URL is not set"),
    ],
)
def test_bad_input_is_said_with_exit_code_2(machine, arguments, without, message):
    machine.pop(without, None)
    done = subprocess.run([str(SCRIPT), *arguments], env=machine, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_without_a_gpu_it_says_so(machine):
    (Path(machine["PATH"].split(":")[0]) / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    done = subprocess.run([str(SCRIPT)], env=machine, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "nvidia-smi failed: No devices were found" in done.stderr


def test_help_teaches_every_option_there_is(machine):
    done = subprocess.run([str(SCRIPT), "--help"], env=machine, capture_output=True, text=True, timeout=20, check=True)
    taken = set(re.findall(r"--[a-z]+", SCRIPT.read_text().partition("while (($#))")[2].partition("done")[0]))
    assert taken <= set(re.findall(r"--[a-z]+", done.stdout))
    assert "PREFECT_API_URL" in done.stdout


def test_the_unit_starts_this_script_on_its_instance_and_starts_it_again():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(UNIT.read_text())
    assert unit["Service"]["ExecStart"] == "/opt/miniplm/deployments/gpu-workers.sh --gpus %i"
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["EnvironmentFile"] == "/etc/miniplm/worker.env"
    assert "AUTH_STRING" not in unit["Service"]["Environment"]

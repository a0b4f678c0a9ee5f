"""A real fleet for the tests: PostgreSQL, a Prefect server with authentication, an S3 server and two workers, by deployments/local-fleet.sh."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.command_line import run_miniplm, start_miniplm
from tests.fleet import engine_forks
from tests.fleet.engine_forks import serve
from tests.forks import FORKS

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = str(ROOT / "deployments" / "local-fleet.sh")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, the last of them before ten more, which the S3 server's parts take."""
    found: list[int] = []
    for port in range(15000 + os.getpid() % 500 * 20, 32000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


class LocalFleet:
    """The fleet in a folder, and what its users do: submit, watch, cancel, retry, kill a machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port, postgres_port, s3_port = free_ports(3)
        self._ports = ["--port", str(port), "--postgres-port", str(postgres_port), "--s3-port", str(s3_port)]
        # As a shell has them: what this process' own PyTorch has set would have each flow run look for its compiler.
        foreign = ("PREFECT_", "AWS_", "TORCHINDUCTOR_", "TRITON_")
        self._variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self._variables |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "true"}
        # Loops of the server that have nothing to do here: no deployment has an active schedule, and nothing pauses.
        self._variables |= {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in ("SCHEDULER", "PAUSE_EXPIRATIONS")}
        self._engine = ""  # the command that starts flow runs, where it is not the shipped one

    def script(self, *arguments: str) -> str:
        """What deployments/local-fleet.sh prints."""
        done = subprocess.run(
            [SCRIPT, *arguments, "--folder", str(self.folder)],
            env=self._variables,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        self.script("start", "--gpu-workers", "2", *self._ports)
        self._take_client()

    def _take_client(self) -> None:
        """Becomes a client of the fleet, as a terminal does."""
        self.client = {}
        for line in self.script("env").splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.client[name] = shlex.split(value)[0] if value else ""
        user, password = self.client["PREFECT_API_AUTH_STRING"].split(":", 1)
        self.api = httpx.Client(base_url=self.client["PREFECT_API_URL"], auth=(user, password), timeout=30)
        self.shorten_wait("miniplm: crashed run", 30)

    def shorten_wait(self, name: str, seconds: float) -> None:
        """An automation that acts sooner than the shipped one."""
        (found,) = [automation for automation in self.call("POST", "/automations/filter", json={}) if automation["name"] == name]
        kept = ("name", "description", "tags", "enabled", "actions", "actions_on_trigger", "actions_on_resolve")
        changed = {field: found[field] for field in kept if field in found} | {"trigger": found["trigger"] | {"within": seconds}}
        self.call("PUT", f"/automations/{found['id']}", json=changed)

    def fork_engines(self) -> None:
        """From now on flow runs are forks (engine_forks.py), whichever deployment they are of; asked again it does nothing."""
        if self._engine:
            return
        path, pid_file = self.folder / "engines", self.folder / "engines.pid"
        FORKS.Process(target=serve, args=(str(path), str(pid_file))).start()
        self.wait_until(pid_file.exists, 120, 0.1)
        self._engine = shlex.join([sys.executable, "-I", "-S", engine_forks.__file__, str(path)])
        self._set_engine()

    def _set_engine(self) -> None:
        for deployment in self.call("POST", "/deployments/filter", json={}):
            changed = {"job_variables": deployment["job_variables"] | {"command": self._engine}}
            self.call("PATCH", f"/deployments/{deployment['id']}", json=changed)

    def stop(self) -> None:
        self.script("stop")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.folder / "engines.pid").read_text()), signal.SIGKILL)

    # --- what a user does ---

    def run_miniplm(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return run_miniplm(*arguments, prefect=self.client, **options)

    def start_miniplm(self, *arguments: str, out: Path) -> BaseProcess:
        """`miniplm ARGUMENTS`, started and not waited for, with what it prints in a file."""
        return start_miniplm(*arguments, prefect=self.client, out=out, err=out)

    def submit(self, deployment: str, **parameters: Any) -> str:
        """The id of a new flow run of a deployment."""
        found = self.call("GET", f"/deployments/name/{deployment}/{deployment}")
        run = self.call("POST", f"/deployments/{found['id']}/create_flow_run", json={"parameters": parameters})
        return str(run["id"])

    def set_state(self, run_id: str, type: str, name: str | None = None) -> dict[str, Any]:
        """What the UI's buttons call: `CANCELLING` cancels, `SCHEDULED` named AwaitingRetry retries."""
        state = {"type": type, "name": name or type.title()}
        return self.call("POST", f"/flow_runs/{run_id}/set_state", json={"state": state})

    def retry(self, run_id: str) -> None:
        self.set_state(run_id, "SCHEDULED", "AwaitingRetry")

    def call(self, method: str, path: str, **options: Any) -> Any:
        response = self.api.request(method, path, **options)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def read(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/flow_runs/{run_id}")
        return found

    def read_logs(self, run_id: str) -> list[str]:
        """The last messages in a flow run's log, the newest first."""
        content = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_DESC", "limit": 200}
        return [entry["message"] for entry in self.call("POST", "/logs/filter", json=content)]

    def list_runs(self, deployment: str, *tags: str) -> list[dict[str, Any]]:
        """All flow runs of a deployment with these tags, the oldest first."""
        content = {
            "deployments": {"name": {"any_": [deployment]}},
            "flow_runs": {"tags": {"all_": list(tags)}},
            "limit": 200,
            "sort": "EXPECTED_START_TIME_ASC",
        }
        found: list[dict[str, Any]] = self.call("POST", "/flow_runs/filter", json=content)
        return found

    def wait(self, run_id: str, seconds: float = 240) -> dict[str, Any]:
        """The flow run at its end."""
        final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        self.wait_until(lambda: self.read(run_id)["state"]["type"] in final, seconds)
        return self.read(run_id)

    @staticmethod
    def wait_until(is_so: Callable[[], object], seconds: float, pause: float = 0.5) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < until, "it did not come to that in time"
            time.sleep(pause)

    # --- faults ---

    def kill_machine(self, worker: str) -> None:
        """The worker and all that it started are gone at once, and nobody is left to report it."""
        process = psutil.Process(int((self.folder / "pids" / f"worker-{worker}").read_text()))
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        process.wait(10)

    def start_worker(self, name: str) -> None:
        self.script("worker", "gpu", name)

    def restart_server(self, seconds_away: float) -> None:
        pid_file = self.folder / "pids" / "server"
        os.killpg(int(pid_file.read_text()), signal.SIGKILL)
        pid_file.unlink()
        time.sleep(seconds_away)
        self.script("start", "--gpu-workers", "0", *self._ports)
        if self._engine:
            self._set_engine()

    def list_engines(self) -> dict[str, psutil.Process]:
        """The processes of flow runs on this fleet's workers, by the flow run's id."""
        found = {}
        for file in (self.folder / "pids").glob("worker-*"):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(int(file.read_text())).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):  # it ended while they were listed
                        if run_id := child.environ().get("PREFECT__FLOW_RUN_ID"):
                            found.setdefault(run_id, child)
        return found

    def find_engine(self, run_id: str) -> psutil.Process:
        """The process of one flow run."""
        return self.list_engines()[run_id]

"""The fleet of docker/compose.yaml on a real Docker engine, from its images on; what its users do is as on any fleet (`LocalFleet`)."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from s3fs import S3FileSystem

from tests.fleet.local_fleet import ROOT, LocalFleet, free_ports

ENGINE = ROOT / "scripts" / "docker_engine.sh"
# Not `miniplm:cpu`, which may be somebody's own fleet's.
IMAGE = "miniplm-test:cpu"
# What scripts/base_images.sh says of the images and PyTorch's wheel; empty where a registry could be reached.
VARIABLES = ROOT / ".cache" / "docker" / "images.env"


# The same each time: PyTorch's layer is made anew where its index has another address.
_WHEELS_PORT = 14791


def read_variables(text: str) -> dict[str, str]:
    """NAME=VALUE or `export NAME=VALUE`, one a line."""
    return dict(
        line.removeprefix("export ").split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#")
    )


class ComposeFleet(LocalFleet):
    """A checkout of its own, images built from it, and the containers that Compose makes of them."""

    def __init__(self, folder: Path, name: str = "miniplm-test") -> None:
        self.folder, self.name = folder, name
        self.checkout, self.env_file = folder / "checkout", folder / "checkout" / "docker" / ".env"
        self._engine = ""
        engine = subprocess.run([str(ENGINE), "env"], capture_output=True, text=True, check=True).stdout
        # Compose would take a value of this shell before one of its file.
        ours = ("MINIPLM_", "COMPOSE_", "S3_", "POSTGRES_", "PREFECT_", "AWS_")
        self._variables = {key: value for key, value in os.environ.items() if not key.startswith(ours)} | read_variables(engine)
        self.images = read_variables(VARIABLES.read_text()) if VARIABLES.exists() else {}
        self.port, self.s3_port = free_ports(2)
        self.secrets = {
            name: secrets.token_hex(12) for name in ("MINIPLM_API_AUTH", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")
        }

    # --- images ---

    def copy_checkout(self) -> None:
        """What git knows of this checkout, readable by its owner alone, as under umask 077."""
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for relative in filter(None, listed.split("\0")):
            source, target = ROOT / relative, self.checkout / relative
            if source.is_file() and not source.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                target.chmod(0o700 if os.access(source, os.X_OK) else 0o600)
        for path in [self.checkout, *self.checkout.rglob("*")]:
            if path.is_dir():
                path.chmod(0o700)

    def shorten_wait_after_crash(self, seconds: int) -> None:
        """Has the automation that starts a crashed run again wait less than as it is shipped; in its file, which each `up` applies."""
        path = self.checkout / "deployments" / "automations" / "crashed-run.yaml"
        shipped = path.read_text(encoding="utf-8")
        path.write_text(shipped.replace("\n  within: 60\n", f"\n  within: {seconds}\n"), encoding="utf-8")
        assert path.read_text(encoding="utf-8") != shipped

    def build(self) -> None:
        """The CPU image, as the head of docker/Dockerfile says; where there is no registry on stand-ins, with PyTorch's wheel from here."""
        command = ["docker", "buildx", "build", "--file", "docker/Dockerfile", "--target", "cpu", "--tag", IMAGE, "--load"]
        with serve_folder(self.images.get("MINIPLM_TORCH_WHEELS")) as url:
            if url:
                given = {"PYTHON": self.images["MINIPLM_PYTHON_IMAGE"], "TORCH_CPU_INDEX": url}
                command += ["--network", "host", *(f"--build-arg={name}={value}" for name, value in given.items())]
            self.command(*command, ".", timeout=1500)

    def command(self, *command: str, timeout: float = 300, check: bool = True) -> str:
        """What a command prints in the checkout."""
        done = subprocess.run(
            command, cwd=self.checkout, env=self._variables, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
        return done.stdout + done.stderr

    # --- containers ---

    def compose(self, *arguments: str, **options: Any) -> str:
        """`docker compose` as docs/fleet.md has it, under a project name of its own."""
        return self.command(
            "docker", "compose", "--file", "docker/compose.yaml", "--project-name", self.name, *arguments, **options
        )

    def write_env(self, **more: str) -> None:
        """docker/.env of a user: the example, filled in."""
        given = {"COMPOSE_PROFILES": "cpu", "MINIPLM_PORT": str(self.port), "S3_PORT": str(self.s3_port)} | self.secrets | more
        given["MINIPLM_API_AUTH"] = f"miniplm:{self.secrets['MINIPLM_API_AUTH']}"
        given |= {name: value for name, value in self.images.items() if name.endswith("_IMAGE")} | {"MINIPLM_CPU_IMAGE": IMAGE}
        lines = (self.checkout / "docker" / ".env.example").read_text().splitlines()
        known = {line.partition("=")[0] for line in lines if not line.startswith("#")}
        assert set(given) <= known
        self.env_file.write_text("".join(f"{line}{given.get(line[:-1], '')}\n" for line in lines))

    def up(self) -> None:
        self.compose("up", "--detach", "--no-build", "--scale", "cpu-scorer=2", timeout=900)
        self.api = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}/api", auth=("miniplm", self.secrets["MINIPLM_API_AUTH"]), timeout=30
        )

    def down(self, *arguments: str) -> None:
        self.compose("--profile", "*", "down", *arguments)

    def list_containers(self) -> dict[str, str]:
        """The id of each container of this project, by its name without the project's."""
        listed = self.command(
            "docker", "ps", "--all", "--filter", f"label=com.docker.compose.project={self.name}", "--format", "{{.Names}} {{.ID}}"
        )
        return {line.split()[0].removeprefix(f"{self.name}-"): line.split()[1] for line in listed.splitlines()}

    def inspect(self, container: str, what: str) -> Any:
        return json.loads(self.command("docker", "inspect", f"{self.name}-{container}", "--format", f"{{{{json .{what}}}}}"))

    def execute(self, container: str, *command: str, **options: Any) -> str:
        return self.command("docker", "exec", f"{self.name}-{container}", *command, **options)

    def is_answering(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.api.get("/health").is_success
        return False

    @functools.cached_property
    def bucket(self) -> S3FileSystem:
        """The fleet's store, from the host."""
        return S3FileSystem(
            key=self.secrets["S3_ACCESS_KEY"],
            secret=self.secrets["S3_SECRET_KEY"],
            endpoint_url=f"http://127.0.0.1:{self.s3_port}",
            use_listings_cache=False,
        )

    def list_scored(self, run: str) -> list[dict[str, Any]]:
        """The manifests of scored shards below the storage root of a run."""
        return [json.loads(self.bucket.cat_file(path)) for path in self.bucket.glob(f"miniplm/{run}/scores/*/*/shard-*.json")]


@contextlib.contextmanager
def serve_folder(folder: str | None) -> Iterator[str]:
    """The address of a folder as pip's index, on this machine alone; empty for no folder."""
    if not folder:
        yield ""
        return
    handler = functools.partial(_Silent, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", _WHEELS_PORT), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def wait_until_ready(fleet: ComposeFleet, seconds: float = 600) -> None:
    """Returns when the set-up has ended well and all that it waits for is healthy. Workers need not be looked at yet."""
    until = time.monotonic() + seconds
    while True:
        states = {name: fleet.inspect(name, "State") for name in fleet.list_containers()}
        told = {name: state.get("Health", {}).get("Status", state["Status"]) for name, state in states.items()}
        setup = [state for name, state in states.items() if name.startswith("setup")]
        if all(told.get(name) == "healthy" for name in ("postgres-1", "server-1", "s3-1")) and [
            (state["Status"], state["ExitCode"]) for state in setup
        ] == [("exited", 0)]:
            return
        assert time.monotonic() < until, told
        time.sleep(1)

"""A command starts on any machine: behind a proxy, without a home folder, several at once; where it cannot, it says why, soon."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
from botocore.utils import should_bypass_proxies

from flows.cli import prefect_home, process
from flows.cli.options import names_server, print_json
from flows.cli.prefect_api import check_proxy
from flows.cli.prefect_home import check_prefect_home, check_proxies, find_obstacle
from flows.cli.process import OutputError, bypass_proxy, provide_caches, tell_errors_apart
from miniplm.config.files import load_config
from miniplm.errors import MachineError
from miniplm.run.resolution import resolve
from miniplm.run.stages import prepare
from miniplm.storage.root import Storage
from tests.command_line import MINIPLM, environment, run_miniplm, run_script, start_miniplm
from tests.tiny_runs import make_tiny_run

OWN = "localhost,127.0.0.1,::1"
# Nothing listens there: a request that goes by it fails at once.
DEAD = "http://127.0.0.1:9"
DEAD_PROXIES = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), DEAD)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose corpus is prepared, so that `score` has something to do."""
    path = make_tiny_run(tmp_path_factory.mktemp("start"))
    plan = resolve(load_config(str(path)))
    prepare(Storage(plan.storage), plan)
    return path


SCORE = ("score", "--model", "teacher")


@pytest.fixture(scope="module")
def local_server() -> Iterator[str]:
    """The URL of a server of this machine that answers 200 to anything."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>no API</html>")

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", *DEAD_PROXIES):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, OWN),
        ({"NO_PROXY": "10.0.0.0/8, .corp"}, f"10.0.0.0/8,.corp,{OWN}"),
        ({"NO_PROXY": "a", "no_proxy": "b,127.0.0.1"}, "b,127.0.0.1,localhost,::1"),  # as Python reads them: the small one counts
        ({"NO_PROXY": "[::1]"}, "::1,localhost,127.0.0.1"),
        ({"PREFECT_API_URL": "http://127.0.0.2:4200/api"}, f"{OWN},127.0.0.2"),
        ({"PREFECT_API_URL": "http://0.0.0.0:4200/api"}, f"{OWN},0.0.0.0"),
        ({"AWS_ENDPOINT_URL": "http://s3.localhost:9000"}, f"{OWN},s3.localhost"),
        ({"PREFECT_API_URL": f"http://{socket.gethostname()}:4200/api"}, f"{OWN},{socket.gethostname().lower()}"),
        ({"PREFECT_API_URL": "http://fleet:4200/api", "AWS_ENDPOINT_URL": "https://s3.example.com"}, OWN),
        ({"PREFECT_API_URL": "http://[broken"}, OWN),
    ],
)
def test_this_machine_is_asked_without_a_proxy_and_nothing_else_is(given: dict[str, str], expected: str) -> None:
    variables = dict(given)
    bypass_proxy(variables)
    assert (variables["NO_PROXY"], variables["no_proxy"]) == (expected, expected)
    bypass_proxy(variables)
    assert variables["NO_PROXY"] == expected


def test_who_wants_no_proxy_at_all_gets_none() -> None:
    variables = {"NO_PROXY": "*"}
    bypass_proxy(variables)
    assert variables == {"NO_PROXY": "*"}


@pytest.mark.usefixtures("no_proxies")
def test_every_client_reaches_this_machine_past_a_dead_proxy(monkeypatch: pytest.MonkeyPatch, local_server: str) -> None:
    for name, value in DEAD_PROXIES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(httpx.ConnectError):
        httpx.get(local_server)
    from flows.cli.embedded_server import is_healthy  # imports Prefect's server

    assert is_healthy(local_server)  # asks directly, whatever the environment says
    bypass_proxy(os.environ)
    assert httpx.get(local_server).status_code == 200
    assert should_bypass_proxies(local_server)  # S3
    assert not should_bypass_proxies("http://s3.example.com")
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://192.0.2.1/")  # a remote server still goes by the proxy


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ALL_PROXY", "socks5://u:secret@127.0.0.1:1", r"^ALL_PROXY=\.\.\.@127\.0\.0\.1:1 is a SOCKS proxy.*pip install 'httpx\[socks\]'"),
        ("all_proxy", "socks://127.0.0.1:1", "^all_proxy=socks://127.0.0.1:1 is no proxy that can be used.*env -u all_proxy"),
        ("HTTP_PROXY", "http://u:secret@host:port", r"^HTTP_PROXY=\.\.\.@host:port is no proxy.*has to be http://HOST:PORT"),
        ("HTTPS_PROXY", "host:3128x", "^HTTPS_PROXY=host:3128x is no proxy"),
        ("NO_PROXY", "host:x", r"^NO_PROXY=.* cannot be read \("),
    ],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match=message) as caught:
        check_proxies()
    assert "secret" not in str(caught.value)
    assert check_proxy().state == "problem"


@pytest.mark.usefixtures("no_proxies")
def test_doctor_names_the_proxy_and_who_is_asked_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_proxy().value == "none"
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert (check_proxy().state, check_proxy().value) == ("ok", "HTTP_PROXY; asked without: localhost")


def test_a_newcomer_behind_a_proxy_without_a_home_folder_runs_and_is_told_once(config: Path, tmp_path: Path) -> None:
    """The console script: HOME is a device, which not even root writes below; the temporary folders are gone afterwards."""
    started = time.monotonic()
    variables = {**DEAD_PROXIES, "NO_PROXY": "", "no_proxy": "", "HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    done = run_script(*SCORE, "--shard", "0", str(config), "--json", prefect=variables)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["corpus_id"].startswith("c-")
    assert done.stderr.count("/dev/null/.prefect cannot be written to (Not a directory); Prefect works in ") == 1
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.iterdir() if "prefect" in path.name]
    assert time.monotonic() - started < 120  # the fault took 131 s and more; here are 20 on a quiet machine


def test_two_first_runs_at_once_on_a_new_prefect_folder(config: Path, tmp_path: Path) -> None:
    prefect = {"PREFECT_HOME": str(tmp_path / "new")}
    logs = [tmp_path / f"err{number}" for number in range(2)]
    runs = [start_miniplm(*SCORE, "--shard", "1", str(config), prefect=prefect, err=log) for log in logs]
    for run in runs:
        run.join(300)
    assert [run.exitcode for run in runs] == [0, 0], [log.read_text() for log in logs]
    assert [log.read_text() for log in logs] == ["", ""]


def test_a_server_that_cannot_start_is_told_with_its_reason(config: Path, tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_text("no database")
    done = run_miniplm(*SCORE, str(config), prefect={"PREFECT_HOME": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr.startswith("MachineError: Prefect's temporary server ended with exit code 3 before it could answer (")
    assert "file is not a database" in done.stderr
    assert f"Prefect's folder is {tmp_path}; PREFECT_HOME=ANOTHER_FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_that_is_no_prefect_api(config: Path, local_server: str, tmp_path: Path) -> None:
    prefect = {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": local_server}
    done = run_miniplm("prepare", str(config), prefect=prefect)
    assert (done.returncode, "is no Prefect API" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    "damage",
    ["active = [", "\x00\xff"],
)
def test_damaged_profiles_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_PROFILES_PATH", raising=False)
    (tmp_path / "profiles.toml").write_text(damage, encoding="latin-1")
    with pytest.raises(
        MachineError, match=f"^{tmp_path}/profiles.toml is not what Prefect reads its settings from .*move it aside"
    ):
        prefect_home.prepare_prefect()


def test_a_folder_that_prefect_could_not_work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_obstacle(tmp_path / "new" / "home") is None
    (tmp_path / "file").touch()
    assert find_obstacle(tmp_path / "file") == f"{tmp_path}/file cannot be written to (File exists)"
    assert find_obstacle(None) == "this user has no home folder"
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "x"))
    finding = check_prefect_home()
    assert (finding.state, "set PREFECT_HOME to a folder" in finding.advice) == ("warning", True)
    monkeypatch.setattr(prefect_home, "_BYTES_WANTED", 2**62)  # a full disk
    assert "MiB left, Prefect's database needs up to" in (find_obstacle(tmp_path) or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_database_that_another_user_made(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").touch(mode=0o400)
    assert "prefect.db cannot be written to" in (find_obstacle(tmp_path) or "")


def test_a_database_that_another_process_keeps_to_itself_is_an_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_home, "_LOCK_SECONDS", 0.2)
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect.db", isolation_level=None)) as holder:
        holder.execute("CREATE TABLE runs (id)")
        assert find_obstacle(tmp_path) is None
        holder.execute("BEGIN EXCLUSIVE")
        assert find_obstacle(tmp_path) == f"{tmp_path}/prefect.db has been locked by another process for 0 s"
        holder.execute("ROLLBACK")
    (tmp_path / "prefect.db").write_bytes(b"no database" * 500)
    assert find_obstacle(tmp_path) is None


def test_caches_move_where_the_home_folder_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables: dict[str, str] = {}
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_caches(variables)
    assert variables == {}
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path))
    variables = {"TRITON_CACHE_DIR": "/mine"}
    provide_caches(variables)
    assert variables == {"TRITON_CACHE_DIR": "/mine", "MPLCONFIGDIR": f"{tmp_path}/miniplm-caches-{os.getuid()}/mplconfigdir"}


def test_the_reason_that_a_server_gives() -> None:
    from flows.cli.embedded_server import find_reason  # imports Prefect's server

    said = "Traceback (most recent call last):\n  File x\nsqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked\n[SQL: x]\n\nApplication startup failed. Exiting.\n"
    assert find_reason(said) == "sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database is locked"
    assert find_reason("something else\n") == "something else"
    assert find_reason("") == ""


def test_json_is_json_where_stdout_takes_ascii_only(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    print_json({"word": "naïve"})
    sys.stdout.flush()
    assert json.loads(written.getvalue()) == {"word": "naïve"}


def test_output_that_nobody_reads_or_that_cannot_be_encoded_is_no_traceback() -> None:
    """`config` imports little: a second a call."""

    def run(shell: str, **variables: str) -> str:
        command = f"{MINIPLM} config --architectures {shell}"
        done = subprocess.run(
            ["sh", "-c", command], env={**environment({}), **variables}, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        return f"{done.returncode} {done.stdout}"

    assert run("| head -n 1").startswith("0 ")
    assert run(">&-") == "0 "
    assert run("", PYTHONIOENCODING="ascii").startswith("0 ")


@pytest.mark.parametrize("buffering", [-1, 0])
def test_output_that_a_full_disk_does_not_take_is_told_apart(buffering: int) -> None:
    """From a storage root that is full, which has a message of its own; with and without PYTHONUNBUFFERED."""
    with open("/dev/full", "wb", buffering) as full:
        given = io.TextIOWrapper(full, encoding="utf-8", errors="backslashreplace", write_through=not buffering)
        stream = tell_errors_apart(given)
        assert (stream.encoding, stream.errors, stream.write_through) == ("utf-8", "backslashreplace", not buffering)
        with pytest.raises(OutputError, match="No space left on device"):
            print("x" * 100_000, file=stream, flush=True)
        given.detach()
        stream.detach().detach() if buffering else None


def test_sigterm_ends_a_run_with_its_server_and_says_so(tmp_path: Path, embedded_prefect: dict[str, str]) -> None:
    """As a scheduler or a service manager ends it."""
    run = start_miniplm("run", str(make_tiny_run(tmp_path)), prefect=embedded_prefect, err=tmp_path / "err")
    children: list[psutil.Process] = []
    for _ in range(600):
        children = [child for child in psutil.Process(run.pid).children(recursive=True) if "uvicorn" in child.cmdline()]
        if children:
            break
        assert run.exitcode is None, (tmp_path / "err").read_text()
        time.sleep(0.1)
    assert children
    os.kill(run.pid or 0, signal.SIGTERM)
    run.join(60)
    assert run.exitcode == 143
    assert "Stopped." in (tmp_path / "err").read_text()
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_a_stage_on_local_storage_starts_no_server(config: Path, tmp_path: Path) -> None:
    prefect = {"PREFECT_HOME": str(tmp_path / "unused")}
    done = run_miniplm("prepare", str(config), "--json", prefect=prefect)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "unused" / "prefect.db").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("profiles.toml", '[profiles.fleet]\nPREFECT_API_URL = "http://fleet:4200/api"', True),
        ("profiles.toml", "[profiles.local]\n", False),
        (".env", "PREFECT_API_URL=http://fleet:4200/api", True),
        ("prefect.toml", '[api]\nurl = "http://fleet:4200/api"', True),
        ("pyproject.toml", "[project]\nname = 'mine'", False),
    ],
)
def test_a_server_is_found_wherever_prefect_lets_it_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, expected: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("PREFECT_API_URL", "PREFECT_PROFILES_PATH", "MINIPLM_S3_BLOCK"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert not names_server()
    (tmp_path / name).write_text(content)
    assert names_server() == expected
    monkeypatch.setenv("PREFECT_API_URL", "http://fleet:4200/api")
    assert names_server()

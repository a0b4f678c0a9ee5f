"""A real S3 server (SeaweedFS) for tests: loopback only, ports of its own, credentials that it checks.

In a test: the fixture `s3_server` of conftest.py, or `with start_s3_server(folder) as server`. From a shell, for as long as it
runs, its variables in a file to be sourced (written when the bucket is there):

    .venv/bin/python -m tests.s3_server FOLDER --bucket miniplm --env FOLDER/env.sh &
    until [ -f FOLDER/env.sh ]; do sleep 0.1; done; . FOLDER/env.sh     # AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...

Several may run at once. `--port`, and AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY in the environment, make them known beforehand.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from miniplm.errors import StorageError
from miniplm.storage.s3 import PatientS3FileSystem

WEED = Path(sys.executable).parent / "weed"
# `weed mini` is five servers; each listens twice.
_SERVERS = ("s3", "master", "volume", "filer", "admin")
_START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket; `endpoint` may be that of a proxy in front of it."""

    endpoint: str
    key: str
    secret: str
    bucket: str
    pid: int

    @property
    def variables(self) -> dict[str, str]:
        """What a client has in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            # Nothing of this machine's own, and no questions to a cloud's metadata server.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def open_filesystem(self) -> PatientS3FileSystem:
        """For a look past the library: what lies there really."""
        return PatientS3FileSystem(key=self.key, secret=self.secret, endpoint_url=self.endpoint)


@contextmanager
def start_s3_server(folder: Path, bucket: str = "miniplm", port: int = 0) -> Iterator[S3Server]:
    """Runs a server with its data below a folder until the block ends; a killed one may be started again on the same folder."""
    key = os.environ.get("AWS_ACCESS_KEY_ID") or "test-key"
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY") or secrets.token_hex(20)
    for num_tries in range(3):
        ports = _find_ports(port)
        process = _start(folder, bucket, ports, key, secret)
        server = S3Server(f"http://127.0.0.1:{ports['s3'][0]}", key, secret, bucket, process.pid)
        try:
            if _wait_for_bucket(server, process):
                yield server
                return
            if num_tries == 2:
                raise RuntimeError(f"the S3 server did not start:\n{(folder / 'weed.log').read_text()[-4000:]}")
        finally:
            _stop(process, ports)


def _find_ports(wanted: int) -> dict[str, tuple[int, int]]:
    """Two free ports for each server, all held until all are found."""
    with contextlib.ExitStack() as held:
        found = []
        for _ in range(2 * len(_SERVERS)):
            free = held.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            found.append(free.getsockname()[1])
    ports = {name: (found[2 * index], found[2 * index + 1]) for index, name in enumerate(_SERVERS)}
    if wanted:
        ports["s3"] = (wanted, ports["s3"][1])
    return ports


def _start(folder: Path, bucket: str, ports: dict[str, tuple[int, int]], key: str, secret: str) -> subprocess.Popen[bytes]:
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    command = [str(WEED), "-logtostderr=true", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={bucket}"]
    for name, (http, grpc) in ports.items():
        command += [f"-{name}.port={http}", f"-{name}.port.grpc={grpc}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
    # A bucket that nobody made must be an error, as it is elsewhere.
    command += ["-s3.autoCreateBucket=false"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    variables |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    with open(folder / "weed.log", "ab") as log:
        return subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True)


def _wait_for_bucket(server: S3Server, process: subprocess.Popen[bytes]) -> bool:
    filesystem = server.open_filesystem()
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(StorageError, OSError):
            socket.create_connection(("127.0.0.1", server.port), 1).close()
            filesystem.call_s3("head_bucket", Bucket=server.bucket)
            # The bucket is there before a volume can be written to.
            filesystem.call_s3("put_object", Bucket=server.bucket, Key=".started", Body=b"")
            filesystem.call_s3("delete_object", Bucket=server.bucket, Key=".started")
            return True
        time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes], ports: dict[str, tuple[int, int]]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for port in [port for pair in ports.values() for port in pair]:
        for socket_file in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
            socket_file.unlink(missing_ok=True)


def main() -> None:
    """Runs a server until it is told to stop (Ctrl-C, SIGTERM)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bucket", default="miniplm")
    parser.add_argument("--port", type=int, default=0, help="of the S3 endpoint; a free one unless given")
    parser.add_argument("--env", type=Path, help="the file that gets the client's variables; stdout unless given")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt), start_s3_server(options.folder, options.bucket, options.port) as server:
        content = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in server.variables.items())
        if options.env is None:
            print(content, end="", flush=True)
        else:
            aside = options.env.with_suffix(".tmp")
            aside.touch(mode=0o600)
            aside.write_text(content)
            aside.replace(options.env)
        signal.pause()


if __name__ == "__main__":
    main()

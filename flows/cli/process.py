"""What a process of the command line takes from whoever started it and has to mend: signals, streams, proxies."""

from __future__ import annotations

import gc
import ipaddress
import os
import signal
import socket
import sys
import tempfile
from collections.abc import MutableMapping
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any, NoReturn
from urllib.parse import urlsplit

from miniplm.errors import MachineError, OutputError
from miniplm.training.processes.signals import restore_signals

# As httpx, urllib, botocore, websockets and curl all read them.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
_URLS = ("PREFECT_API_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
# Where these are not set, matplotlib and Triton write below the home folder.
_CACHES = ("MPLCONFIGDIR", "TRITON_CACHE_DIR")


def set_up_process() -> None:
    """Makes this process, and all that it starts, answer Ctrl-C, print any text, and ask this machine's own servers directly.

    SIGTERM, by which schedulers and service managers end a process, ends it as Ctrl-C does: with all that it has started.
    """
    # To look through the million objects of PyTorch and Prefect while they are imported takes a command half a second.
    gc.set_threshold(50_000, 20, 100)
    restore_signals()
    signal.signal(signal.SIGTERM, _stop)
    _open_streams()
    bypass_proxy(os.environ)


def check_current_folder() -> None:
    """Raises `MachineError` where the folder that this process is in was deleted: nothing with a relative path can be found."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise MachineError("the current folder was deleted; go to one that exists, and start the command there") from error


def _stop(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _open_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by whoever started this (`>&-`): the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what a terminal's encoding lacks is shown as \xNN
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdout, TextIOWrapper) and isinstance(getattr(sys.stdout.buffer, "raw", sys.stdout.buffer), FileIO):
        sys.stdout = tell_errors_apart(sys.stdout)


def tell_errors_apart(stream: TextIOWrapper) -> TextIOWrapper:
    """The same stream to a file, of which what cannot be written is an `OutputError`: else a full disk would be taken for that of the storage root."""
    raw = _Output(stream.fileno(), "wb", closefd=False)
    raw.opened = stream
    buffer: Any = BufferedWriter(raw) if hasattr(stream.buffer, "raw") else raw  # with PYTHONUNBUFFERED there is none
    return TextIOWrapper(
        buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=stream.write_through
    )


class _Output(FileIO):
    opened: TextIOWrapper  # closes the file when nothing refers to it any more

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:  # its reader has seen enough
            raise
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error


def provide_caches(variables: MutableMapping[str, str]) -> None:
    """Gives libraries that keep what they have compiled or drawn in the home folder another one, where nothing can be written there."""
    home = os.path.expanduser("~")
    if os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return
    folder = os.path.join(tempfile.gettempdir(), f"miniplm-caches-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.stat(folder, follow_symlinks=False).st_uid != os.getuid():  # somebody else's: what lies there is not to be run
        folder = tempfile.mkdtemp(prefix="miniplm-caches-")
    for name in _CACHES:
        variables.setdefault(name, os.path.join(folder, name.lower()))


def bypass_proxy(variables: MutableMapping[str, str]) -> None:
    """Adds to NO_PROXY whatever is this machine itself; what the user has excluded stays excluded, all else goes by the proxy.

    These are the loopback names, and the hosts of PREFECT_API_URL and AWS_ENDPOINT_URL where they are this machine's.
    """
    given = variables.get("no_proxy", variables.get("NO_PROXY", ""))
    # `[::1]` is how some programs want it; httpx ends of it.
    excluded = [host for host in (part.strip().strip("[]") for part in given.split(",")) if host]
    if "*" in excluded:
        return
    own = [*LOOPBACK_HOSTS, *(host for host in (_find_host(variables.get(name, "")) for name in _URLS) if _is_this_machine(host))]
    excluded += [host for host in dict.fromkeys(own) if host not in excluded]
    variables["NO_PROXY"] = variables["no_proxy"] = ",".join(excluded)


def _find_host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_this_machine(host: str) -> bool:
    if not host:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.endswith((".localhost", "localhost.localdomain")) or host == socket.gethostname().lower()
    return address.is_loopback or address.is_unspecified

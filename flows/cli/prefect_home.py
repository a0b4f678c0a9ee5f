"""A Prefect that can be imported and started: a folder of its own that takes files, settings and proxies that can be read."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import tomllib
from pathlib import Path

from miniplm.errors import MachineError, describe_reason, reading_users_file
from miniplm.run.doctor import Finding

# A new database takes 5 MB, its journal as much again while it is made.
_BYTES_WANTED = 32 << 20
# Other servers on the same database write for moments only.
_LOCK_SECONDS = 10.0
PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_DATABASE_FILES = ("prefect.db", "prefect.db-wal", "prefect.db-shm")


def prepare_prefect() -> None:
    """Makes sure that Prefect can be imported; says so on stderr where that takes a temporary folder instead of PREFECT_HOME.

    Raises `MachineError` where no folder can be written to, for settings that Prefect does not take, and for proxies that
    cannot be used.
    """
    check_proxies()
    if "prefect" not in sys.modules:
        _provide_home()
    _check_profiles()
    where = (
        "PREFECT_... variables, `profiles.toml` in Prefect's folder, and `.env`, `prefect.toml` and `pyproject.toml` of this folder"
    )
    with reading_users_file("Prefect", "does not take its settings", f"they come from {where}: correct them", MachineError):
        import prefect.context  # noqa: F401


def check_proxies() -> None:
    """Raises `MachineError` where a variable names a proxy that no request could go by, or NO_PROXY cannot be read."""
    import httpx

    for name in PROXIES:
        if not (url := os.environ.get(name)):
            continue
        try:
            # It asks nobody anything, so it needs no certificates, which take 25 ms to load.
            httpx.Client(proxy=url if "://" in url else f"http://{url}", trust_env=False, verify=False).close()
        except ImportError as error:
            raise MachineError(
                f"{name}={_hide_password(url)} is a SOCKS proxy, and the package that can use one is not installed; "
                f"`pip install 'httpx[socks]'`, or leave it out for this command: `env -u {name} miniplm ...`"
            ) from error
        except (ValueError, httpx.InvalidURL) as error:
            raise MachineError(
                f"{name}={_hide_password(url)} is no proxy that can be used; it has to be http://HOST:PORT, https://HOST:PORT or "
                f"socks5://HOST:PORT. Correct it, or leave it out for this command: `env -u {name} miniplm ...`"
            ) from error
    try:
        httpx.Client(verify=False).close()
    except (ValueError, httpx.InvalidURL) as error:
        raise MachineError(
            f"NO_PROXY={os.environ.get('NO_PROXY', '')} cannot be read ({describe_reason(error)}); give host names, domains and "
            "addresses with commas between them, without ports or brackets"
        ) from error


def _check_profiles() -> None:
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or Path(os.environ.get("PREFECT_HOME") or "~/.prefect") / "profiles.toml")
    path = path.expanduser()
    if path.is_file():
        with reading_users_file(path, "is not what Prefect reads its settings from", "correct it, or move it aside", MachineError):
            tomllib.loads(path.read_text(encoding="utf-8"))


def _hide_password(url: str) -> str:
    return re.sub(r".*@", "...@", url)


def find_home() -> Path | None:
    """Where Prefect keeps its database, settings and results; None where this user has no home folder."""
    try:
        return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    except RuntimeError:
        return None


def find_obstacle(home: Path | None) -> str | None:
    """Why Prefect could not work in this folder; None where it can. Makes the folder where it is missing."""
    if home is None:
        return "this user has no home folder"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(bytes(4096))
            probe.flush()
        free = shutil.disk_usage(home).free
    except OSError as error:
        return f"{home} cannot be written to ({error.strerror})"
    if free < _BYTES_WANTED:
        return f"{home} has {free / 2**20:.0f} MiB left, Prefect's database needs up to {_BYTES_WANTED >> 20}"
    locked = [str(home / name) for name in _DATABASE_FILES if (home / name).exists() and not os.access(home / name, os.W_OK)]
    if locked:
        return f"{', '.join(locked)} cannot be written to (made by another user?)"
    return _find_lock(home / "prefect.db")


def _find_lock(database: Path) -> str | None:
    """Whether another process keeps the database to itself: Prefect's server would start, and each request to it wait and be tried again."""
    if not database.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=_LOCK_SECONDS, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return f"{database} has been locked by another process for {_LOCK_SECONDS:.0f} s"
    except sqlite3.DatabaseError:
        pass  # a damaged one, of which the server itself says what is wrong
    return None


def check_prefect_home() -> Finding:
    """Whether Prefect can work in its folder; a run does without it, and forgets its page."""
    home = find_home()
    obstacle = find_obstacle(home)
    return Finding(
        name="Prefect folder",
        state="ok" if obstacle is None else "warning",
        value=str(home) if obstacle is None else obstacle,
        advice="" if obstacle is None else "set PREFECT_HOME to a folder that this user may write to, to keep the pages of runs",
    )


def _provide_home() -> None:
    home = find_home()
    obstacle = find_obstacle(home)
    if obstacle is None:
        return
    try:
        temporary = Path(tempfile.mkdtemp(prefix="miniplm-prefect-"))
    except OSError as error:
        raise MachineError(
            f"{obstacle}, and there is no folder for temporary files either ({error}); set PREFECT_HOME and TMPDIR to folders that "
            "this user may write to"
        ) from error
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    # Settings that can be read still count: they may name the server.
    if home is not None and "PREFECT_PROFILES_PATH" not in os.environ and os.access(home / "profiles.toml", os.R_OK):
        os.environ["PREFECT_PROFILES_PATH"] = str(home / "profiles.toml")
    os.environ["PREFECT_HOME"] = str(temporary)
    print(
        f"miniplm: {obstacle}; Prefect works in {temporary} and forgets this run's page afterwards. Set PREFECT_HOME to a folder "
        "that this user may write to to keep it",
        file=sys.stderr,
    )

"""A remote folder is one process's at a time, though a process may die without a word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from miniplm.errors import BusyError
from miniplm.storage import claims
from miniplm.storage.claims import claim_remote
from miniplm.storage.root import Storage


@pytest.fixture
def storage() -> Storage:
    root = Storage("memory://claims")
    root.delete("claim.json")
    return root


def write(storage: Storage, **holder: Any) -> None:
    storage.write_json("claim.json", {"token": "other", "pid": 1, "host": "elsewhere", "at": time.time()} | holder)


def hold(storage: Storage) -> dict[str, Any]:
    with claim_remote(storage, "claim.json", "an export"):
        found: dict[str, Any] = json.loads(storage.read_bytes("claim.json"))
    assert not storage.exists("claim.json")
    return found


def test_what_is_held_is_refused_and_free_again_when_the_block_ends(storage: Storage) -> None:
    with (
        claim_remote(storage, "claim.json", "an export"),
        pytest.raises(BusyError, match=rf"pid {os.getpid()} on .* is working on an export"),
    ):
        hold(storage)
    assert hold(storage)["pid"] == os.getpid()


def test_a_dead_process_of_this_machine_is_taken_over_at_once(storage: Storage) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write(storage, pid=gone.pid, host=claims.socket.gethostname())
    assert hold(storage)["pid"] == os.getpid()


def test_another_machine_is_dead_when_it_is_silent_and_not_before(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_DEAD_SECONDS", 0.2)
    monkeypatch.setattr(claims, "_SECONDS_BETWEEN_LOOKS", 0.05)
    write(storage)
    assert hold(storage)["pid"] == os.getpid()
    write(storage)
    read = claims._read
    looks = 0

    def beat(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 2:
            write(storage)
        return read(*arguments)

    monkeypatch.setattr(claims, "_read", beat)
    with pytest.raises(BusyError, match="pid 1 on elsewhere"):
        hold(storage)


def test_a_damaged_claim_holds_nothing(storage: Storage) -> None:
    storage.write_bytes("claim.json", b"[]")
    assert hold(storage)["pid"] == os.getpid()

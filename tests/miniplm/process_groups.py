"""Groups of processes for tests: each a fork, so that it costs little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from miniplm.training.parallel import ProcessGroup, Sharding
from tests.forks import FORKS


def run_group(
    folder: Path, work: Callable[..., None], arguments: list[Any], world_size: int = 2, sharding: Sharding = "ddp"
) -> list[int | None]:
    """Calls `work(group, *arguments)` in each of `world_size` processes; their exit codes, in order of rank."""
    address = f"file://{folder}/meeting-{uuid4().hex}"
    processes = [
        FORKS.Process(target=work, args=(ProcessGroup(rank, world_size, rank, sharding, address), *arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
        process.join()
    assert not alive, "a process of the group did not end"
    return [process.exitcode for process in processes]

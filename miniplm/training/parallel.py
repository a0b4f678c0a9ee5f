"""Several processes that train one model: who they are, what they tell each other, and how the model lies on them.

The micro-batches of a global batch are dealt out to the processes; gradients are summed (ddp), or summed and split
with the weights and moments (fsdp). Plain torch.distributed and not accelerate, which wraps these same two classes,
finds its processes in environment variables, and keeps them in a singleton that outlives a training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

Sharding = Literal["ddp", "fsdp"]
T = TypeVar("T")

# The first process publishes checkpoints while the others wait.
_TIMEOUT = timedelta(minutes=60)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as process `rank` of `world_size` sees them; `local_rank` counts those of one machine.

    `address` is where they find each other, as `torch.distributed.init_process_group` takes it: `env://` under
    torchrun, else `tcp://HOST:PORT` or `file://PATH`. One process alone needs none, and no torch.distributed.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    sharding: Sharding = "ddp"
    address: str = "env://"

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that locks, publishes and reports."""
        return self.rank == 0

    def device(self, planned: torch.device) -> torch.device:
        """The device of this process, where the training was planned for `planned`."""
        return planned if self.is_alone or planned.type != "cuda" else torch.device("cuda", self.local_rank)

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """All processes reach each other within this block; it begins when the last has come.

        A process that fails or dies fails the others at their next exchange.
        """
        if self.is_alone or dist.is_initialized():
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=self.address, rank=self.rank, world_size=self.world_size, timeout=_TIMEOUT)
        yield
        # Not after an error: it would wait for processes that wait for this one.
        dist.destroy_process_group()

    def wait_for_all(self) -> None:
        """Returns when all processes have called it."""
        if not self.is_alone:
            dist.barrier()

    def share(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.is_alone:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def add(self, value: float, device: torch.device) -> float:
        """The sum of all processes' values, in float64; the same to the last bit in all of them."""
        if self.is_alone:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return float(total.item())

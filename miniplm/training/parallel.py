"""Several processes that train one model: who they are, what they tell each other, and how the model lies on them.

The micro-batches of a global batch are dealt out to the processes; gradients are summed (ddp), or summed and split
with the weights and moments (fsdp). Plain torch.distributed and not accelerate, which wraps these same two classes,
finds its processes in environment variables, and keeps them in a singleton that outlives a training.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from miniplm.models.loading import split_head
from miniplm.training.loss_module import LossModule, find_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from miniplm.training.data import MicroBatch

Sharding = Literal["ddp", "fsdp"]
T = TypeVar("T")

# The first process publishes checkpoints while the others wait: of billions of weights, to S3, that may take longer than PyTorch's own
# limit (10 minutes on GPUs, 30 on a CPU).
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

    @property
    def is_sharded(self) -> bool:
        """Whether no process has the whole model."""
        return not self.is_alone and self.sharding == "fsdp"

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

    def least(self, value: int, device: torch.device) -> int:
        """The smallest of all processes' values, in all of them."""
        if self.is_alone:
            return value
        smallest = torch.tensor(value, device=device)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest.item())

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


class ParallelModule:
    """A loss module in the way that its group computes it, and its weights and moments as a whole for checkpoints.

    Made before the optimizer: with fsdp the model's weights become shards on `device`, in place.
    """

    def __init__(self, module: LossModule, group: ProcessGroup, device: torch.device) -> None:
        self._model = module.model
        self._group = group
        self._device = device
        self._module: Any = module
        # Whole weights and moments on the host, where no device has them.
        self._whole: PreTrainedModel | None = None
        if group.is_sharded:
            self._whole = copy.deepcopy(module.model)
            _shard(module, group, device)
        elif not group.is_alone:
            # Looking for unused weights keeps buckets as they were laid out first, and so the order in which three or more
            # processes are summed: a resumed training has the same last bits. It also bears models with unused weights.
            arguments = inspect.signature(DistributedDataParallel).parameters
            unsynced = "forward_sync_buffers" if "forward_sync_buffers" in arguments else "broadcast_buffers"  # before torch 2.13
            options: dict[str, Any] = {unsynced: False}
            self._module = DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True, **options)

    def add_gradient(self, batch: MicroBatch, num_scored: int, is_last: bool) -> Tensor:
        """Adds the gradient of `sum of the loss / num_scored` and gives the sum, (), detached; the last micro-batch brings the processes together.

        All processes call it equally often.
        """
        if self._group.is_sharded:
            self._module.set_requires_gradient_sync(is_last)
        elif not self._group.is_alone:
            self._module.require_backward_grad_sync = is_last
        # Both wrappers give the mean over processes.
        total: Tensor = self._module(batch, self._group.world_size / num_scored)
        total.backward()
        return total.detach()

    def clip_gradient(self, most: float) -> float:
        """Scales the gradient to a norm of at most `most`; gives the norm before, over all processes."""
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), most)
        if hasattr(norm, "full_tensor"):  # of shards
            norm = norm.full_tensor()
        return float(norm.item())

    @torch.no_grad()
    def gather(self, optimizer: torch.optim.Optimizer) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
        """The whole model and an optimizer with its moments; of shards a copy on the host, complete in the first process.

        All processes call it.
        """
        if self._whole is None:
            return self._model, optimizer
        whole_optimizer = torch.optim.AdamW(self._whole.parameters())
        for shard, whole in zip(self._model.parameters(), self._whole.parameters(), strict=True):
            self._gather_into(whole, shard)
            state: dict[str, Any] = optimizer.state.get(shard, {})
            if state:
                whole_optimizer.state[whole] = {key: self._gather_into(None, value) for key, value in state.items()}
        return self._whole, whole_optimizer

    @torch.no_grad()
    def scatter(self, whole_optimizer: torch.optim.Optimizer, optimizer: torch.optim.Optimizer) -> None:
        """Puts into the shards what was put into the model and optimizer that `gather` gave; all processes had put the same."""
        if self._whole is None:
            return
        for shard, whole in zip(self._model.parameters(), self._whole.parameters(), strict=True):
            shard.copy_(self._split_like(shard, whole))
            state = whole_optimizer.state.get(whole, {})
            if state:
                # The count of steps is one number and stays whole.
                optimizer.state[shard] = {
                    key: self._split_like(shard, value) if value.dim() else value.to(self._device) for key, value in state.items()
                }

    def _gather_into(self, target: Tensor | None, value: Tensor) -> Tensor:
        """The whole of a shard (...), put into `target` where there is one; nothing (0,) in a process other than the first.

        All processes call it, since each has a part.
        """
        whole = cast(Any, value).full_tensor() if hasattr(value, "full_tensor") else value
        if not self._group.is_first:
            return whole.new_empty(0)
        return whole.cpu() if target is None else target.copy_(whole)

    def _split_like(self, shard: Any, whole: Tensor) -> Tensor:
        """This process's part of a tensor (...), split as `shard` is."""
        from torch.distributed.tensor import distribute_tensor  # here, as it takes 0.4 s

        # Each process takes its part of what it has itself; nothing is sent.
        return distribute_tensor(whole.detach().to(self._device), shard.device_mesh, shard.placements, src_data_rank=None)


def _shard(module: LossModule, group: ProcessGroup, device: torch.device) -> None:
    """Splits the weights: each layer's are gathered for its own computation, the others for the whole of a pass."""
    from torch.distributed.fsdp import fully_shard  # here, as it takes 0.5 s

    mesh = init_device_mesh(device.type, (group.world_size,))
    layers: list[nn.Module] = find_layers(split_head(module.model)[0])
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)

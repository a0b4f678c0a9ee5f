"""What the processes of a test's group do: it lies in a module of its own, which their server imports once for all."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.distributed.fsdp
import torch.distributed.tensor
import transformers.models.qwen2.modeling_qwen2  # noqa: F401 - would be imported by each process

from miniplm.corpus.reader import load_corpus
from miniplm.storage.root import Storage
from miniplm.training.loop import train_model
from miniplm.training.optimization import Optimization
from miniplm.training.parallel import ParallelModule, ProcessGroup
from tests.miniplm.made_trainings import make_plan, make_training_corpus

# Micro-batches of 2 of a batch of 6: two processes have 2 and 1 of them. 30 reference sequences, 6 steps.
SETTINGS = {"batch_size": 6, "micro_batch_size": 2, "steps": 6}


def prepare_root(root: str) -> None:
    make_training_corpus(Storage(root), reference=(20, 10))


def spoil_micro_batch(patch: pytest.MonkeyPatch, group: ProcessGroup, number: int | None) -> None:
    """The loss of the first process's micro-batch `number` is not finite."""
    add_gradient, num_calls = ParallelModule.add_gradient, 0

    def add(self, batch, num_scored, is_last):
        nonlocal num_calls
        num_calls += 1
        total = add_gradient(self, batch, num_scored, is_last)
        return total * float("nan") if num_calls == number and group.is_first else total

    patch.setattr(ParallelModule, "add_gradient", add)


def train(group: ProcessGroup, root: str, kill_at: int | None = None, spoiled: int | None = None) -> None:
    """Trains at a root; the last process is killed (SIGKILL) when it is about to take step `kill_at`."""
    torch.set_num_threads(1)
    storage, patch = Storage(root), pytest.MonkeyPatch()
    spoil_micro_batch(patch, group, spoiled)
    apply, num_steps = Optimization.apply, 0

    def killed(self, batch, rate):
        nonlocal num_steps
        num_steps += 1
        if num_steps == kill_at and group.rank == group.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return apply(self, batch, rate)

    patch.setattr(Optimization, "apply", killed)
    train_model(storage, make_plan(load_corpus(storage, "made"), **SETTINGS), group=group)

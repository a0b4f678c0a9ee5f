"""In how many processes a model is trained."""

from __future__ import annotations

import torch

from miniplm.config import TrainingConfig
from miniplm.errors import ConfigError


def count_processes(training: TrainingConfig, device: torch.device) -> int:
    """The processes that train together: the given number, or for `auto` one a GPU, at most one a sequence of the batch.

    Only `cuda` without a number is more than one GPU: who names one wants that one. On a CPU `auto` is one, whose threads
    use all cores. Raises `ConfigError` for more processes than the device has GPUs, or than a batch has sequences.
    """
    num_gpus = 0
    if device.type == "cuda":
        num_gpus = torch.cuda.device_count() if device.index is None else 1
    wanted = training.processes
    if wanted == "auto":
        return max(size for size in range(1, max(1, num_gpus) + 1) if training.batch_size % size == 0)
    if wanted == 1:
        return 1
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"training.processes is {wanted}, but on a device of type {device.type} only one can train; use 1 or auto"
        )
    if device.type == "cuda" and wanted > num_gpus:
        raise ConfigError(
            f"training.processes is {wanted}, but there {'is 1 GPU' if num_gpus == 1 else f'are {num_gpus} GPUs'} for it "
            f"(scoring.device: {device}), and each process needs its own; use at most {num_gpus}, or auto"
        )
    if training.batch_size % wanted:
        raise ConfigError(
            f"training.processes is {wanted}, which does not divide training.batch_size {training.batch_size}; each process takes an "
            "equal share of a batch, so use a divisor"
        )
    return wanted

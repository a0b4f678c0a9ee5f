"""In how many processes a model is trained."""

from __future__ import annotations

import torch

from miniplm.config.run import TrainingConfig
from miniplm.errors import ConfigError


def find_inline_reason(launcher: str, storage_root: str) -> str | None:
    """Why a training is done in the process of the run itself; None where it gets processes of its own."""
    if launcher == "inline":
        return "execution.launcher is inline"
    return f"`storage` is {storage_root}, in the memory of the run" if storage_root.startswith("memory:") else None


def count_processes(training: TrainingConfig, device: torch.device, why_one: str | None = None) -> int:
    """The processes that train together: the given number, or for `auto` one a GPU, at most one a micro-batch.

    Only `cuda` without a number is more than one GPU: who names one wants that one. On a CPU `auto` is one, whose threads
    use all cores. `why_one` is what keeps the training in one process (`find_inline_reason`). Raises `ConfigError` for more
    processes than the device has GPUs, than a batch has micro-batches, or than one where there is but one.
    """
    if why_one is not None:
        if training.processes not in (1, "auto"):
            raise ConfigError(
                f"training.processes is {training.processes}, but {why_one}, which is one process; use processes: auto"
            )
        return 1
    num_micro_batches = training.batch_size // training.resolve_micro_batch_size()
    num_gpus = 0
    if device.type == "cuda":
        num_gpus = torch.cuda.device_count() if device.index is None else 1
    wanted = training.processes
    if wanted == "auto":
        return max(1, min(num_gpus, num_micro_batches))
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
    if wanted > num_micro_batches:
        raise ConfigError(
            f"training.processes is {wanted}, but a batch of {training.batch_size} sequences is {num_micro_batches} micro-batches of "
            f"{training.resolve_micro_batch_size()}, and these are what the processes share out; use fewer processes, or a training."
            f"micro_batch_size of at most {max(1, training.batch_size // wanted)}"
        )
    return wanted

"""Which device computes, and in which precision where the configuration says `auto`."""

from __future__ import annotations

from typing import Any

import torch

from miniplm.errors import ConfigError


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises `ConfigError` for a device that this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda" and (not torch.cuda.is_available() or (resolved.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"scoring.device is {device!r}, but this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("scoring.device is 'mps', but this machine has none; use auto or cpu")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """`auto` is float32 on a CPU and bfloat16 on a GPU."""
    if dtype != "auto":
        return dtype
    return "float32" if device.type == "cpu" else "bfloat16"


def torch_dtype(dtype: str) -> torch.dtype:
    resolved: Any = getattr(torch, dtype)
    assert isinstance(resolved, torch.dtype)
    return resolved


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the host had no memory left for an allocation."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in message or "can't allocate memory" in message or "not enough memory" in message
    )


def describe_memory(device: torch.device) -> str:
    """Free and total memory of a device, for an error message."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        import psutil

        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"

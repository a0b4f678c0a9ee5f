"""Which device computes, and in which precision where the configuration says `auto`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch

from miniplm.errors import ConfigError, DeviceError, NoDeviceError, first_line
from miniplm.foreign_errors import is_device_lost as is_device_lost
from miniplm.foreign_errors import is_out_of_memory as is_out_of_memory
from miniplm.models.dtypes import choose_dtype
from miniplm.models.fp8 import FP8_DTYPES, supports_fp8

# Instructions that multiply bfloat16, as Linux names them: AMX and AVX512-BF16 on x86, BFMMLA and BFDOT on ARM.
_BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})

# CUDA devices of this process that stopped answering; a process cannot use such a device again.
_lost: set[int] = set()


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one, the next one where the first was lost.

    Raises `NoDeviceError` for a device that this machine lacks, which another machine may have, and where the device was lost and there
    is no other; `ConfigError` for what is no device.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        left = [index for index in range(torch.cuda.device_count()) if index not in _lost]
        if not left:
            raise NoDeviceError("no GPU of this machine answers any more; look at `nvidia-smi`, then start the command again")
        return torch.device("cuda", left[0]) if _lost else torch.device("cuda")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}; it must be auto, cpu, cuda, cuda:N or mps") from error
    if resolved.type == "cuda" and (not torch.cuda.is_available() or (resolved.index or 0) >= torch.cuda.device_count()):
        raise NoDeviceError(
            f"scoring.device is {device!r}, but this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    if resolved.type == "cuda" and (resolved.index or 0) in _lost:
        raise NoDeviceError(f"{device} stopped answering; look at `nvidia-smi`, then start the command again")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise NoDeviceError("scoring.device is 'mps', but this machine has none; use auto or cpu")
    return resolved


def mark_lost(device: torch.device) -> None:
    """Takes a GPU that stopped answering out of use for this process."""
    if device.type == "cuda":
        _lost.add(device.index or 0)


def free_cached_memory() -> None:
    """Gives back what PyTorch keeps of the GPUs' memory; nothing once a GPU was lost, which every such call would trip over."""
    if torch.cuda.is_available() and not _lost:
        torch.cuda.empty_cache()


@contextmanager
def device_errors(device: torch.device, work: str) -> Iterator[None]:
    """Turns the loss of a device during `work` into a `DeviceError`, and takes the device out of use."""
    try:
        yield
    except RuntimeError as error:
        if not is_device_lost(error):
            raise
        mark_lost(device)
        raise DeviceError(
            f"{device} failed during {work} ({first_line(error)}); what it computed is not kept. "
            "The next try goes to another GPU where there is one; `nvidia-smi` and `dmesg` say more of this one"
        ) from error


def use_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one of this thread for the block: pinned memory and kernels of others go by that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def resolve_dtype(dtype: str, device: torch.device, emulated: bool = False) -> str:
    """The dtype that is meant on a device, `auto` as `choose_dtype` says: what a model is trained and measured in.

    Raises `ConfigError` for fp8 on a device that has none.
    """
    if dtype in FP8_DTYPES and not emulated and not supports_fp8(device):
        raise ConfigError(
            f"dtype {dtype} needs a GPU of compute capability 8.9 or higher (H100, L40S, ...), not {describe_device(device)}; use auto. "
            f"What {dtype} would do to the selection can be measured here: `miniplm score CONFIG --calibrate 200`"
        )
    return choose_dtype(device.type) if dtype == "auto" else dtype


def has_native_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; one that does not is faster in float32."""
    return bool(read_cpu_flags() & _BFLOAT16_FLAGS)


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of the CPU as Linux lists them; empty where it lists none."""
    if not cpuinfo.exists():
        return frozenset()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    # x86 calls them flags, ARM features. Of all cores, since those of one chip may differ, what each has.
    lists = [frozenset(line.partition(":")[2].split()) for line in lines if line.startswith(("flags", "Features"))]
    return frozenset.intersection(*lists) if lists else frozenset()


def describe_device(device: torch.device) -> str:
    """A device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} with {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


def torch_dtype(dtype: str) -> torch.dtype:
    """PyTorch's type of weights and activations; with fp8, what is not multiplied in fp8 is bfloat16."""
    if dtype in FP8_DTYPES:
        return torch.bfloat16
    resolved: Any = getattr(torch, dtype)
    assert isinstance(resolved, torch.dtype)
    return resolved


def free_memory(device: torch.device) -> int:
    """Bytes free on a GPU; what PyTorch keeps for itself is free too."""
    return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def describe_memory(device: torch.device) -> str:
    """Free and total memory of a device, for an error message."""
    if device.type == "cuda":
        free, total = free_memory(device), torch.cuda.mem_get_info(device)[1]
    else:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

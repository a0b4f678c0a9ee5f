"""The settings of PyTorch under which a GPU trains: the same bits each time, and no more precision than the dtype asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic


@contextmanager
def training_numerics(device: torch.device, dtype: str) -> Iterator[None]:
    """Kernels that give the same last bits each time, where there are such; in bfloat16, TF32 for what is left in float32.

    They are settings of the process and are put back at the end. A CPU is deterministic by itself and needs none.
    """
    if device.type != "cuda":
        yield
        return
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    precision = torch.get_float32_matmul_precision()
    # A family whose kernels are not deterministic trains too; that its last bits may differ is what the warning says.
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    if dtype == "bfloat16":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill
        torch.set_float32_matmul_precision(precision)

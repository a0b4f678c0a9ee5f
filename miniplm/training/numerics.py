"""The settings of PyTorch under which a GPU trains: kernels that give the same bits each time, wherever a model has them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.utils.deterministic

from miniplm.errors import first_line

_log = logging.getLogger("miniplm")
_Result = TypeVar("_Result")


@contextmanager
def training_numerics(device: torch.device) -> Iterator[None]:
    """Kernels that give the same last bits each time, for the block.

    Strict: told only to warn, FlashAttention's backward pass takes its kernel that is not deterministic. What is left in
    float32, the position encoding among it, stays float32: nothing of a step's time is in such products.

    They are settings of the process and are put back at the end. A CPU is deterministic by itself and needs none.
    """
    if device.type != "cuda":
        yield
        return
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # By itself PyTorch then fills each new tensor with NaN, to show reads of memory that nobody wrote: a pass over memory each time.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill


def run_deterministically(step: Callable[[], _Result], name: str) -> _Result:
    """The result of `step`, which may be run twice: a model with an operation that has no deterministic kernel trains too, and it is said.

    From then on the rest of the process' `training_numerics` only warns, so that the losses of two trainings of this model may
    differ in their last bits. `name` is what the warning calls the model.
    """
    try:
        return step()
    except RuntimeError as error:
        is_strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        if not is_strict or "deterministic" not in str(error):
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        _log.warning(
            f"{name} has an operation without a deterministic kernel ({first_line(error)}); it trains all the same, and a resumed "
            "training may differ from an uninterrupted one in the last bits"
        )
    return step()

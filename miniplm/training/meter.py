"""How fast a training goes: tokens a second, the share of the matmul peak, and the share of time it waited for data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from miniplm.models.devices import torch_dtype
from miniplm.models.loading import split_head
from miniplm.models.throughput import Throughput, count_flops_per_token, measure_matmul_peak
from miniplm.training.parallel import ProcessGroup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A backward pass makes two products for each of the forward pass.
_PASSES = 3


class TrainingMeter:
    """Counts what all processes of a group train on, from `start` on; waiting is that of this process.

    After each step the host waits for the device, so that while it then waits for data the device has nothing to do.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, dtype: str, mean_length: float, group: ProcessGroup) -> None:
        """`mean_length` of a sequence in tokens. Measures the device's peak (0.2 s); the whole model, before it is split."""
        flops = count_flops_per_token(*split_head(model), max(1.0, mean_length - 1))
        self._flops_per_token = None if flops is None else _PASSES * flops
        self._matmul_peak = measure_matmul_peak(device, torch_dtype(dtype)) * group.world_size if flops is not None else None
        self._started = time.perf_counter()
        self._num_tokens = 0
        self._achieved = Throughput(0, 0.0, None, None, None)

    def start(self) -> None:
        self._started = time.perf_counter()

    def add(self, num_tokens: int, wait_seconds: float) -> None:
        """After each step: its tokens, and the seconds waited for data since `start`."""
        self._num_tokens += num_tokens
        seconds = time.perf_counter() - self._started
        self._achieved = Throughput(self._num_tokens, seconds, wait_seconds, self._flops_per_token, self._matmul_peak)

    @property
    def data_wait_share(self) -> float | None:
        return self._achieved.device_wait_share

    @property
    def matmul_peak_share(self) -> float | None:
        return self._achieved.matmul_peak_share if self._num_tokens else None

    def describe(self) -> str:
        """`12,345 tokens/s, 41 % of matmul peak, waits 0.1 %`."""
        return ", ".join(filter(None, [f"{self._achieved.tokens_per_second:,.0f} tokens/s", self._achieved.describe()]))

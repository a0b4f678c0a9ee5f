"""What a device achieves: tokens a second, the share of its matmul peak, and the share of time it waited.

Tokens are those of the sequences, never padding, so a rate says how fast a corpus is worked off.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from miniplm.models.devices import synchronize
from miniplm.models.nll import Head
from miniplm.models.packed_linear import can_pack, multiply, pack_weight

# Side of the square product by which the peak is measured: large enough for the device, done in a moment.
_PEAK_SIZE = {"cpu": 1536, "cuda": 8192}
_PEAK_SECONDS = 0.2


def count_flops_per_token(body: nn.Module, head: Head, num_inputs: float) -> float | None:
    """Floating-point operations of a forward pass a token, in segments of `num_inputs` inputs (their mean over tokens).

        2 * (weights of linear layers + H * V) + 4 * L * D * (num_inputs + 1) / 2

    with L attention layers of width D and causal attention, which sees half of its square. None where the
    layers are not linear layers (experts of a mixture are used in part only).
    """
    config: Any = body.config
    if any(getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        return None
    modules: list[Any] = list(body.modules())
    weights = sum(module.in_features * module.out_features for module in modules if hasattr(module, "in_features"))
    # GPT-2's Conv1D is a linear layer with a transposed weight.
    weights += sum(module.weight.numel() for module in modules if type(module).__name__ == "Conv1D")
    if not weights:
        return None
    num_heads = getattr(config, "num_attention_heads", None)
    attention = 0
    if num_heads:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        attention = 2.0 * config.num_hidden_layers * num_heads * head_dim * (num_inputs + 1)
    return float(2 * (weights + head.weight_VH.numel()) + attention)


@lru_cache(maxsize=8)
def measure_matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product of random numbers on this device, measured once a process (0.2 s)."""
    size = _PEAK_SIZE.get(device.type, 4096)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    packed = pack_weight(right) if can_pack(device, dtype) else None

    def work() -> None:
        if packed is None:
            torch.mm(left, right)
        else:
            multiply(left, packed)

    passes, seconds = 0, 0.0
    work()  # once unmeasured: libraries choose their kernel in the first call
    synchronize(device)
    started = time.perf_counter()
    while seconds < _PEAK_SECONDS:
        # Several at a time on a GPU, so that waiting for it is no part of what is measured.
        for _ in range(1 if device.type == "cpu" else 5):
            work()
            passes += 1
        synchronize(device)
        seconds = time.perf_counter() - started
    return 2.0 * size**3 * passes / seconds


@dataclass(frozen=True)
class Throughput:
    """What was computed in `seconds` of holding the device; shares are of that time, None where they are not known."""

    num_tokens: int
    seconds: float
    wait_seconds: float | None
    flops_per_token: float | None
    matmul_peak: float | None

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def matmul_peak_share(self) -> float | None:
        if self.flops_per_token is None or not self.matmul_peak:
            return None
        return self.tokens_per_second * self.flops_per_token / self.matmul_peak

    @property
    def device_wait_share(self) -> float | None:
        return min(1.0, self.wait_seconds / self.seconds) if self.seconds > 0 and self.wait_seconds is not None else None

    def describe(self) -> str:
        """`71 % of matmul peak, waits 0.4 %`, for people."""
        parts = []
        if self.matmul_peak_share is not None:
            parts.append(f"{100 * self.matmul_peak_share:.0f} % of matmul peak")
        if self.device_wait_share is not None:
            parts.append(f"waits {100 * self.device_wait_share:.1f} %")
        return ", ".join(parts)


# A moment of the device: an event in its stream, or seconds.
ClockMark = torch.cuda.Event | float


def measure_seconds(begin: ClockMark, end: ClockMark) -> float:
    """Seconds between two moments that the device has reached."""
    if isinstance(begin, float) or isinstance(end, float):
        assert isinstance(begin, float)
        assert isinstance(end, float)
        return end - begin
    return float(begin.elapsed_time(end)) / 1000


class DeviceClock:
    """Measures how long the device computes and how long it waits between batches, by events on the device itself."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._has_events = device.type == "cuda"
        self._last_end: ClockMark | None = None
        self.wait_seconds = 0.0
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def start(self) -> ClockMark:
        """Before a batch is given to the device."""
        now = self._mark()
        if isinstance(now, float):
            if isinstance(self._last_end, float):
                self.wait_seconds += now - self._last_end
        elif isinstance(self._last_end, torch.cuda.Event):
            self._pending.append((self._last_end, now))
        return now

    def stop(self) -> ClockMark:
        """After a batch was given to the device, and where it is first held."""
        self._last_end = self._mark()
        return self._last_end

    def settle(self) -> None:
        """Adds up the waits before those batches that the device has reached."""
        while self._pending and self._pending[0][1].query():
            end, begin = self._pending.popleft()
            self.wait_seconds += max(0.0, end.elapsed_time(begin)) / 1000

    def _mark(self) -> ClockMark:
        if not self._has_events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

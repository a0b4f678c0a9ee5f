"""The head alone: how fast each kernel makes NLL of hidden states, and how fast the bare product would be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from miniplm.errors import first_line
from miniplm.models.fp8 import quantize_rows, supports_fp8
from miniplm.models.packed_linear import can_pack, multiply, pack_weight
from miniplm.nll import Head
from miniplm.scoring import triton_nll
from miniplm.scoring.heads import choose_head_kernel
from miniplm.scoring.throughput import measure_matmul_peak

_NAMES = ("tiles", "compiled", "compiled-small", "triton", "quack")
# Tokens a pass, and of these as many at a time whose logits the bare product can store.
_NUM_TOKENS = {"cuda": 65536}
_NUM_TOKENS_OTHER = 2048
_PRODUCT_TOKENS = 8192
_MIN_SECONDS = 1.0
_MIN_PASSES = 5


def measure_heads(head: Head, warp_specialized: bool = False) -> Iterator[dict[str, Any]]:
    """A row for each kernel and configuration: seconds of the fastest pass, tokens a second, share of the matmul peak, or why not.

    With `warp_specialized` also the configurations of Triton that hang where Triton gets them wrong.
    """
    weight_VH = head.weight_VH
    device, dtype = weight_VH.device, weight_VH.dtype
    num_tokens = _NUM_TOKENS.get(device.type, _NUM_TOKENS_OTHER)
    torch.manual_seed(0)
    hidden_NH = torch.randn(num_tokens, weight_VH.shape[1], device=device).to(dtype)
    targets_N = torch.randint(0, weight_VH.shape[0], (num_tokens,), device=device)
    flops = 2.0 * num_tokens * weight_VH.numel()
    peak = measure_matmul_peak(device, dtype)
    for name, make in _list_ways(head, hidden_NH, targets_N, warp_specialized):
        row: dict[str, Any] = {"kernel": name, "dtype": str(dtype).removeprefix("torch."), "num_tokens": num_tokens}
        row |= {"vocab_size": weight_VH.shape[0], "hidden_size": weight_VH.shape[1], "matmul_peak": peak}
        try:
            seconds = _measure(make(), device)
            row |= {"seconds": seconds, "tokens_per_second": num_tokens / seconds, "matmul_peak_share": flops / seconds / peak}
        except Exception as error:  # a kernel is not for this head or device, or a configuration asks for more than it has
            row["reason"] = f"{type(error).__name__}: {first_line(error)}"
        yield row


def _list_ways(
    head: Head, hidden_NH: Tensor, targets_N: Tensor, warp_specialized: bool
) -> Iterator[tuple[str, Callable[[], Callable[[], object]]]]:
    """Names, and what makes a pass ready to be timed."""
    weight_VH = head.weight_VH
    yield "bare matmul", lambda: _make_product(weight_VH, hidden_NH)
    for name in _NAMES:

        def make(name: str = name) -> Callable[[], object]:
            kernel = choose_head_kernel(head, compile_allowed=True, only=name)
            return lambda: kernel.nll(hidden_NH, targets_N)

        yield name, make
    if not (head.is_plain and triton_nll.is_available(weight_VH.device)):
        return
    for config in _choose_configs(weight_VH.dtype, warp_specialized):
        yield (
            f"triton {_describe(config)}",
            lambda config=config: (  # type: ignore[misc]
                lambda: triton_nll.nll_by_triton(hidden_NH, weight_VH, targets_N, config=config)
            ),
        )
    if not supports_fp8(weight_VH.device):
        return
    weight_q, weight_scale = quantize_rows(weight_VH)
    hidden_q, hidden_scale = quantize_rows(hidden_NH)
    for config in _choose_configs(torch.float8_e4m3fn, warp_specialized):
        yield (
            f"triton fp8 {_describe(config)}",
            lambda config=config: (  # type: ignore[misc]
                lambda: triton_nll.nll_by_triton(hidden_q, weight_q, targets_N, hidden_scale, weight_scale, config=config)
            ),
        )


def _choose_configs(dtype: torch.dtype, warp_specialized: bool) -> list[triton_nll.KernelConfig]:
    return [config for config in triton_nll.CONFIGS.get(dtype, ()) if warp_specialized or not config.warp_specialize]


def _describe(config: triton_nll.KernelConfig) -> str:
    extras = "".join(f" {name}" for name in ("warp_specialize", "promote") if getattr(config, name))
    return f"{config.block_n}x{config.block_v}x{config.block_h} w{config.num_warps} s{config.num_stages}{extras}"


def _make_product(weight_VH: Tensor, hidden_NH: Tensor) -> Callable[[], object]:
    """All logits, a part of the tokens at a time into one buffer, and nothing made of them."""
    if can_pack(weight_VH.device, weight_VH.dtype):
        packed = pack_weight(weight_VH)
        return lambda: multiply(hidden_NH, packed)
    parts = hidden_NH.split(_PRODUCT_TOKENS)
    logits = hidden_NH.new_empty(len(parts[0]), weight_VH.shape[0])
    return lambda: [torch.mm(part, weight_VH.t(), out=logits[: len(part)]) for part in parts]


@torch.no_grad()
def _measure(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of at least five passes, after one that may compile."""

    def run() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    run()
    seconds: list[float] = []
    while sum(seconds) < _MIN_SECONDS or len(seconds) < _MIN_PASSES:
        seconds.append(run())
    return min(seconds)

"""The head alone: how fast each kernel makes NLL of hidden states, and how fast the bare product would be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from miniplm.errors import first_line
from miniplm.models.fp8 import quantize_rows, supports_fp8
from miniplm.models.nll import Head
from miniplm.models.packed_linear import can_pack, multiply, pack_weight
from miniplm.models.throughput import measure_matmul_peak
from miniplm.scoring import triton_nll
from miniplm.scoring.heads import HeadKernel, choose_head_kernel, make_compiled

_NAMES = ("tiles", "compiled", "compiled-small", "triton", "quack")
_FP8_NAMES = ("fp8-tiles", "fp8-compiled", "fp8-compiled-small", "fp8-triton")
# Tokens x vocabulary of a compiled tile; `compiled` is 4096 x 8192, `compiled-small` 4096 x 4096.
_TILES = ((2048, 4096), (8192, 4096), (2048, 8192), (8192, 8192), (4096, 16384))
# Tokens a pass, and of these as many at a time whose logits the bare product can store.
_NUM_TOKENS = {"cuda": 65536}
_NUM_TOKENS_OTHER = 2048
_PRODUCT_TOKENS = 8192
_MIN_PASSES = 5


def measure_heads(
    head: Head, numbers: Sequence[int] = (), least_seconds: float = 1.0, warp_specialized: bool = False
) -> Iterator[dict[str, Any]]:
    """A row for each kernel, configuration and number of tokens a pass: seconds of the fastest pass, tokens a second, share of the matmul
    peak, or why not.

    `numbers` default to 65,536 on a GPU, 2,048 elsewhere; passes fill at least `least_seconds`. With `warp_specialized` also the
    configurations of Triton that hang where Triton gets them wrong.
    """
    weight_VH = head.weight_VH
    device, dtype = weight_VH.device, weight_VH.dtype
    numbers = numbers or (_NUM_TOKENS.get(device.type, _NUM_TOKENS_OTHER),)
    torch.manual_seed(0)
    hidden_NH = torch.randn(max(numbers), weight_VH.shape[1], device=device).to(dtype)
    targets_N = torch.randint(0, weight_VH.shape[0], (max(numbers),), device=device)
    peak = measure_matmul_peak(device, dtype)
    for name, make in _list_ways(head, hidden_NH, targets_N, warp_specialized):
        row: dict[str, Any] = {"kernel": name, "dtype": str(dtype).removeprefix("torch.")}
        row |= {"vocab_size": weight_VH.shape[0], "hidden_size": weight_VH.shape[1], "matmul_peak": peak}
        try:
            work = make()
            for num_tokens in numbers:
                row["num_tokens"] = num_tokens
                seconds = _measure(partial(work, num_tokens), device, least_seconds)
                share = 2.0 * num_tokens * weight_VH.numel() / seconds / peak
                yield row | {"seconds": seconds, "tokens_per_second": num_tokens / seconds, "matmul_peak_share": share}
        except Exception as error:  # a kernel is not for this head or device, or a configuration asks for more than it has
            yield {"num_tokens": max(numbers)} | row | {"reason": f"{type(error).__name__}: {first_line(error)}"}


# A pass over the first so many tokens.
_Work = Callable[[int], object]


def _list_ways(
    head: Head, hidden_NH: Tensor, targets_N: Tensor, warp_specialized: bool
) -> Iterator[tuple[str, Callable[[], _Work]]]:
    """Names, and what makes a way ready to be timed, once for all numbers of tokens."""
    weight_VH = head.weight_VH
    yield "bare matmul", lambda: _make_product(weight_VH, hidden_NH)

    def use(kernel: HeadKernel) -> _Work:
        return lambda num_tokens: kernel.nll(hidden_NH[:num_tokens], targets_N[:num_tokens])

    for name in _NAMES + _FP8_NAMES:
        yield name, lambda name=name: use(choose_head_kernel(head, True, name, in_fp8=name in _FP8_NAMES))  # type: ignore[misc]
    for tile in _TILES:
        yield f"compiled {tile[0]}x{tile[1]}", lambda tile=tile: use(make_compiled(head, tile))  # type: ignore[misc]
    if not (head.is_plain and triton_nll.is_available(weight_VH.device)):
        return

    def use_config(config: triton_nll.KernelConfig, hidden_NH: Tensor, weight_VH: Tensor, *scales: Tensor) -> _Work:
        def work(num_tokens: int) -> Tensor:
            hidden_scale = scales[0][:num_tokens] if scales else None
            given = (hidden_NH[:num_tokens], weight_VH, targets_N[:num_tokens], hidden_scale, scales[1] if scales else None)
            return triton_nll.nll_by_triton(*given, config=config)

        return work

    for config in _choose_configs(weight_VH.dtype, warp_specialized):
        yield f"triton {_describe(config)}", lambda config=config: use_config(config, hidden_NH, weight_VH)  # type: ignore[misc]
    if not supports_fp8(weight_VH.device):
        return
    weight_q, weight_scale = quantize_rows(weight_VH)
    hidden_q, hidden_scale = quantize_rows(hidden_NH)
    for config in _choose_configs(torch.float8_e4m3fn, warp_specialized):
        yield (
            f"triton fp8 {_describe(config)}",
            lambda config=config: use_config(config, hidden_q, weight_q, hidden_scale, weight_scale),  # type: ignore[misc]
        )


def _choose_configs(dtype: torch.dtype, warp_specialized: bool) -> list[triton_nll.KernelConfig]:
    return [config for config in triton_nll.CONFIGS.get(dtype, ()) if warp_specialized or not config.warp_specialize]


def _describe(config: triton_nll.KernelConfig) -> str:
    extras = "".join(f" {name}" for name in ("warp_specialize", "promote") if getattr(config, name))
    return f"{config.block_n}x{config.block_v}x{config.block_h} w{config.num_warps} s{config.num_stages}{extras}"


def _make_product(weight_VH: Tensor, hidden_NH: Tensor) -> _Work:
    """All logits, a part of the tokens at a time into one buffer, and nothing made of them."""
    if can_pack(weight_VH.device, weight_VH.dtype):
        packed = pack_weight(weight_VH)
        return lambda num_tokens: multiply(hidden_NH[:num_tokens], packed)
    parts = hidden_NH.split(_PRODUCT_TOKENS)
    logits = hidden_NH.new_empty(len(parts[0]), weight_VH.shape[0])

    def work(num_tokens: int) -> None:
        for part in hidden_NH[:num_tokens].split(_PRODUCT_TOKENS):
            torch.mm(part, weight_VH.t(), out=logits[: len(part)])

    return work


@torch.no_grad()
def _measure(work: Callable[[], object], device: torch.device, least_seconds: float) -> float:
    """Seconds of the fastest of at least five passes, after one that may compile."""

    def run() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    run()
    seconds: list[float] = []
    while sum(seconds) < least_seconds or len(seconds) < _MIN_PASSES:
        seconds.append(run())
    return min(seconds)

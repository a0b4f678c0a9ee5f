"""The head alone: how fast each kernel makes NLL of hidden states, and how fast the bare product would be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from miniplm.errors import first_line
from miniplm.models.nll import Head
from miniplm.models.packed_linear import can_pack, multiply, pack_weight
from miniplm.models.throughput import measure_matmul_peak
from miniplm.scoring.heads import HeadKernel, choose_head_kernel, make_compiled

_NAMES = ("tiles", "compiled", "compiled-small", "triton")
_FP8_NAMES = ("fp8-tiles", "fp8-compiled", "fp8-compiled-small", "fp8-triton")
# Tokens x vocabulary of a compiled tile; `compiled` is 4096 x 8192, `compiled-small` 4096 x 4096.
_TILES = ((2048, 4096), (8192, 4096), (2048, 8192), (8192, 8192), (4096, 16384))
# Tokens a pass, and of these as many at a time whose logits the bare product can store.
_NUM_TOKENS = {"cuda": 65536}
_NUM_TOKENS_OTHER = 2048
_PRODUCT_TOKENS = 8192
_MIN_PASSES = 5


def measure_heads(head: Head, numbers: Sequence[int] = (), least_seconds: float = 1.0) -> Iterator[dict[str, Any]]:
    """A row for each kernel and number of tokens a pass: seconds of the fastest pass, tokens a second, share of the matmul peak, or why not.

    `numbers` default to 65,536 on a GPU, 2,048 elsewhere; passes fill at least `least_seconds`.
    """
    weight_VH = head.weight_VH
    device, dtype = weight_VH.device, weight_VH.dtype
    numbers = numbers or (_NUM_TOKENS.get(device.type, _NUM_TOKENS_OTHER),)
    torch.manual_seed(0)
    hidden_NH = torch.randn(max(numbers), weight_VH.shape[1], device=device).to(dtype)
    targets_N = torch.randint(0, weight_VH.shape[0], (max(numbers),), device=device)
    peak = measure_matmul_peak(device, dtype)
    for name, make in _list_ways(head, hidden_NH, targets_N):
        row: dict[str, Any] = {"kernel": name, "dtype": str(dtype).removeprefix("torch.")}
        row |= {"vocab_size": weight_VH.shape[0], "hidden_size": weight_VH.shape[1], "matmul_peak": peak}
        try:
            work = make()
            for num_tokens in numbers:
                row["num_tokens"] = row["tokens_per_batch"] = num_tokens
                seconds = _measure(partial(work, num_tokens), device, least_seconds)
                share = 2.0 * num_tokens * weight_VH.numel() / seconds / peak
                yield row | {"seconds": seconds, "tokens_per_second": num_tokens / seconds, "matmul_peak_share": share}
        except Exception as error:  # a kernel is not for this head or device, or a configuration asks for more than it has
            yield {"num_tokens": max(numbers)} | row | {"reason": f"{type(error).__name__}: {first_line(error)}"}


# A pass over the first so many tokens.
_Work = Callable[[int], object]


def _list_ways(head: Head, hidden_NH: Tensor, targets_N: Tensor) -> Iterator[tuple[str, Callable[[], _Work]]]:
    """Names, and what makes a way ready to be timed, once for all numbers of tokens."""
    weight_VH = head.weight_VH
    yield "bare matmul", lambda: _make_product(weight_VH, hidden_NH)

    def use(kernel: HeadKernel) -> _Work:
        return lambda num_tokens: kernel.nll(hidden_NH[:num_tokens], targets_N[:num_tokens])

    for name in _NAMES + _FP8_NAMES:
        yield name, lambda name=name: use(choose_head_kernel(head, True, name, in_fp8=name in _FP8_NAMES))  # type: ignore[misc]
    for tile in _TILES:
        yield f"compiled {tile[0]}x{tile[1]}", lambda tile=tile: use(make_compiled(head, tile))  # type: ignore[misc]


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
    """Seconds of the fastest of at least five passes, after one that may compile; of one pass where no time is given to it."""

    def run() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    run()
    seconds: list[float] = []
    while sum(seconds) < least_seconds or len(seconds) < (_MIN_PASSES if least_seconds else 1):
        seconds.append(run())
    return min(seconds)

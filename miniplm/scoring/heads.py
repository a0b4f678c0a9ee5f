"""The ways to compute NLLs from hidden states without storing logits, and which of them a device uses.

    tiles      any device and head: logits a tile of tokens x vocabulary at a time
    compiled   CUDA: the same, each tile's log-sum-exp fused by torch.compile
    compiled-small  CUDA: the same with tiles of half the vocabulary, whose logits stay in the L2 cache
    triton     CUDA, plain head: a Triton kernel that reduces a tile in registers

With the head in fp8 they are those of `miniplm.scoring.fp8_head`. On a GPU each is tried on the model's own head: one that fails or
differs from `tiles` is left out, the fastest is taken.

Shapes: N tokens, K tokens of a tile, H width of the hidden state, V vocabulary, S of a slice of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from miniplm.errors import first_line
from miniplm.models.compilation import compile_each_shape
from miniplm.models.devices import is_device_lost, is_out_of_memory
from miniplm.models.nll import Head, nll_in_tiles
from miniplm.models.packed_linear import can_pack, multiply, pack_weight
from miniplm.scoring import triton_nll
from miniplm.scoring.fp8_head import RoundedHead

# (hidden_NH, targets_N) -> NLL (N,) float32, in nats.
NllOfHidden = Callable[[Tensor, Tensor], Tensor]

# Logits of a tile: 16 MiB float32 stay in the cache of a CPU, 128 MiB leave a GPU's products large.
_CPU_TILE = (1024, 4096)
_GPU_TILE = (4096, 8192)
# 32 MiB of bfloat16 logits: an H100's L2 cache holds 50 MB.
_SMALL_GPU_TILE = (4096, 4096)
# Two tiles of a GPU, so that what lies between two is tried too.
_PROBE_TOKENS = 8192
# Largest difference from `tiles` that is rounding, nats a token, and largest mean of it: a part of the vocabulary that is
# left out moves all NLLs to one side.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
_MEAN_TOLERANCE = 3e-3
_PROBE_LOGIT_STD = 3.0


@dataclass(frozen=True)
class HeadKernel:
    """A way to make NLL: `nll(hidden_NH, targets_N)` gives (N,) float32 nats. `notes` say which ways were left out, and why."""

    name: str
    nll: NllOfHidden
    notes: tuple[str, ...] = ()


def make_tiles(head: Head) -> HeadKernel:
    """The form that runs everywhere."""
    weight_VH = head.weight_VH
    tile_tokens, slice_size = _CPU_TILE if weight_VH.is_cpu else _GPU_TILE
    slices = weight_VH.split(slice_size)
    biases = [None] * len(slices) if head.bias_V is None else list(head.bias_V.split(slice_size))
    packed = [pack_weight(piece) for piece in slices] if can_pack(weight_VH.device, weight_VH.dtype) else []
    # Float32 logits of a low precision, without rounding them to it on the way.
    has_float32_product = weight_VH.is_cuda and weight_VH.dtype != torch.float32

    def reduce_slice(hidden_KH: Tensor, index: int) -> Tensor:  # (K,)
        if packed:
            logits_KS = multiply(hidden_KH, packed[index])
        elif has_float32_product:
            logits_KS = torch.mm(hidden_KH, slices[index].t(), out_dtype=torch.float32)
        else:
            logits_KS = torch.nn.functional.linear(hidden_KH, slices[index]).float()
        return torch.logsumexp(head.adjust(logits_KS, biases[index]), dim=1)

    return HeadKernel("tiles", lambda hidden, targets: nll_in_tiles(head, hidden, targets, tile_tokens, len(slices), reduce_slice))


def choose_head_kernel(head: Head, compile_allowed: bool, only: str | None = None, in_fp8: bool = False) -> HeadKernel:
    """The fastest way that is right on this device; on anything but CUDA that is `tiles`, or `fp8-tiles`.

    `only` names one to be taken without a race: for a benchmark, or as the choice of an earlier process, since a
    choice that changed between processes would change last bits. Raises `ValueError` where that one does not work here.
    """
    makers: dict[str, Callable[[Head], HeadKernel | None]]
    if in_fp8:
        tiles, makers = _list_fp8(RoundedHead(head), compile_allowed)
    else:
        compiled = {
            "compiled": partial(make_compiled, tile=_GPU_TILE),
            "compiled-small": partial(make_compiled, tile=_SMALL_GPU_TILE),
        }
        tiles, makers = make_tiles(head), {**(compiled if compile_allowed else {}), "triton": _make_triton}
    if only == tiles.name or (only is None and head.weight_VH.device.type != "cuda"):
        return tiles
    hidden_NH, targets_N = _make_probe(head)
    expected_N = tiles.nll(hidden_NH, targets_N)
    candidates, notes = [tiles], []
    if only is not None and only not in makers:
        raise ValueError(f"there is no head {only!r} here; the heads are {tiles.name}, {', '.join(makers)}")
    for name in makers if only is None else [only]:
        kernel, reason = _try_kernel(makers[name], head, hidden_NH, targets_N, expected_N)
        if kernel is not None:
            candidates.append(replace(kernel, name=name))
        else:
            notes.append(f"head {name} left out: {reason}")
    if only is not None and len(candidates) == 1:
        raise ValueError(f"{notes[0]} (on {head.weight_VH.device})")
    best = candidates[1] if only else min(candidates, key=lambda kernel: _measure(kernel, hidden_NH, targets_N))
    return replace(best, notes=tuple(notes))


def _list_fp8(rounded: RoundedHead, compile_allowed: bool) -> tuple[HeadKernel, dict[str, Callable[[Head], HeadKernel | None]]]:
    """The form that runs everywhere, and what makes the others."""

    def make_compiled(_: Head, tile: tuple[int, int]) -> HeadKernel:
        return HeadKernel("fp8-compiled", rounded.nll_by_tiles(tile, compiled=True))

    def make_triton(_: Head) -> HeadKernel | None:
        nll = rounded.nll_by_triton(compile_allowed)
        return None if nll is None else HeadKernel("fp8-triton", nll)

    compiled = {
        "fp8-compiled": partial(make_compiled, tile=_GPU_TILE),
        "fp8-compiled-small": partial(make_compiled, tile=_SMALL_GPU_TILE),
    }
    tile = _CPU_TILE if rounded.q_VH.is_cpu else _GPU_TILE
    tiles = HeadKernel("fp8-tiles", rounded.nll_by_tiles(tile))
    return tiles, {**(compiled if compile_allowed else {}), "fp8-triton": make_triton}


def make_compiled(head: Head, tile: tuple[int, int]) -> HeadKernel:
    """Tiles of so many tokens x so many of the vocabulary, each one's log-sum-exp fused by torch.compile."""
    tile_tokens, slice_size = tile
    slices = head.weight_VH.split(slice_size)
    biases = [None] * len(slices) if head.bias_V is None else list(head.bias_V.split(slice_size))

    def reduce_tile(hidden_KH: Tensor, weight_SH: Tensor, bias_S: Tensor | None) -> Tensor:  # (K,)
        return torch.logsumexp(head.adjust((hidden_KH @ weight_SH.t()).float(), bias_S), dim=1)

    compiled = compile_each_shape(reduce_tile)

    def reduce_slice(hidden_KH: Tensor, index: int) -> Tensor:  # (K,)
        # Filled up to a whole tile, so that what is left over at the end is not compiled for.
        num_tokens = hidden_KH.shape[0]
        whole_KH = (
            torch.nn.functional.pad(hidden_KH, (0, 0, 0, tile_tokens - num_tokens)) if num_tokens < tile_tokens else hidden_KH
        )
        reduced: Tensor = compiled(whole_KH, slices[index], biases[index])
        return reduced[:num_tokens]

    return HeadKernel(
        "compiled", lambda hidden, targets: nll_in_tiles(head, hidden, targets, tile_tokens, len(slices), reduce_slice)
    )


def _make_triton(head: Head) -> HeadKernel | None:
    if not head.is_plain or not triton_nll.is_available(head.weight_VH.device):
        return None
    return HeadKernel("triton", lambda hidden_NH, targets_N: triton_nll.nll_by_triton(hidden_NH, head.weight_VH, targets_N))


def _make_probe(head: Head) -> tuple[Tensor, Tensor]:
    """Hidden states (N, H) that give logits of the size that a trained model has, and targets (N,) over the whole vocabulary."""
    weight_VH = head.weight_VH
    generator = torch.Generator().manual_seed(0)
    targets_N = torch.randint(0, weight_VH.shape[0], (_PROBE_TOKENS,), generator=generator)
    hidden_NH = torch.randn((_PROBE_TOKENS, weight_VH.shape[1]), generator=generator)
    # logit = h . w has a standard deviation of |w| for a standard normal h.
    hidden_NH = hidden_NH * (_PROBE_LOGIT_STD / weight_VH[:4096].float().norm(dim=1).mean().clamp(min=1e-6).cpu())
    return hidden_NH.to(weight_VH.device, weight_VH.dtype), targets_N.to(weight_VH.device)


def _try_kernel(
    make: Callable[[Head], HeadKernel | None], head: Head, hidden_NH: Tensor, targets_N: Tensor, expected_N: Tensor
) -> tuple[HeadKernel | None, str]:
    """A kernel that gives what `tiles` gives, or none and the reason."""
    try:
        kernel = make(head)
        if kernel is None:
            return None, "it is not for this head or device"
        differences_N = kernel.nll(hidden_NH, targets_N) - expected_N
        difference, mean = differences_N.abs().max().item(), abs(differences_N.mean().item())
    except Exception as error:
        # An optional package is missing, too old, or knows no such device; memory and a lost device are no such reason.
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        return None, f"{type(error).__name__}: {first_line(error)}"
    if not (difference <= _TOLERANCE[head.weight_VH.dtype] and mean <= _MEAN_TOLERANCE):
        return None, f"it is wrong here by up to {difference:.3g} nats a token, {mean:.3g} in the mean"
    return kernel, ""


def _measure(kernel: HeadKernel, hidden_NH: Tensor, targets_N: Tensor) -> float:
    """Seconds of the fastest of five passes."""
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize(hidden_NH.device)
        started = time.perf_counter()
        kernel.nll(hidden_NH, targets_N)
        torch.cuda.synchronize(hidden_NH.device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)

"""The NLL of tokens under a plain head, its logits reduced in registers tile by tile and never stored: a Triton kernel.

    nll[t] = logsumexp_v(logits[t, v]) - logits[t, target[t]]        nats, float32
    logits[t, v] = (h_t . W_v) * hidden_scale[t] * weight_scale[v]   products summed in float32, never rounded

A program holds one block of tokens and walks the tiles of one chunk of the vocabulary with a running maximum m and
sum s = sum_v 2**(y_v - m), y = logits * log2(e). A second kernel joins the chunks of a token and takes off the logit
of its target. Chunks depend on the vocabulary alone and nothing is tuned at run time, so a token's NLL has the same
bits whatever other tokens come with it and in every process on devices of one kind.

Shapes: N tokens, H width of the hidden state, V vocabulary, C chunks.
"""

# Kernels are untyped, as Triton is.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without it
    triton = None


# Numbers that must not make Triton compile again for each of their values.
_VARYING = ["N", "V", "C", "first_column", "num_tiles", "num_chunks", "num_blocks", "group_blocks"]


def _jit(function: Any) -> Any:
    return function if triton is None else triton.jit(do_not_specialize=_VARYING)(function)


@dataclass(frozen=True)
class KernelConfig:
    """Tile sizes and how they are run: a program's tile of logits is `block_n` x `block_v`, made `block_h` of H at a time."""

    block_n: int
    block_v: int
    block_h: int
    num_warps: int
    num_stages: int


_HOPPER_16_BIT = KernelConfig(128, 256, 64, num_warps=8, num_stages=4)
# For other GPUs, and for the columns left over when V is no multiple of block_v: within 99 KiB of shared memory.
_PLAIN_16_BIT = KernelConfig(128, 128, 64, num_warps=8, num_stages=3)
_FLOAT32 = KernelConfig(64, 64, 32, num_warps=8, num_stages=2)
HOPPER_CONFIGS = {
    torch.bfloat16: _HOPPER_16_BIT,
    torch.float16: _HOPPER_16_BIT,
    torch.float8_e4m3fn: KernelConfig(128, 128, 128, num_warps=8, num_stages=6),
    torch.float32: _FLOAT32,
}
PLAIN_CONFIGS = {
    torch.bfloat16: _PLAIN_16_BIT,
    torch.float16: _PLAIN_16_BIT,
    torch.float8_e4m3fn: KernelConfig(128, 128, 128, num_warps=8, num_stages=3),
    torch.float32: _FLOAT32,
}

# 33 chunks x 4 blocks of tokens are the 132 multiprocessors of an H100: no wave of programs runs half empty.
_MAX_CHUNKS = 33
_MIN_TILES_PER_CHUNK = 12
# Hidden states that programs running together read again and again: these stay in the L2 cache, beside tiles of the head.
_GROUP_BYTES = 8 << 20


def is_available(device: torch.device) -> bool:
    """Whether Triton is installed and `device` is a CUDA device it compiles this for (compute capability 8.0 or newer)."""
    return triton is not None and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@_jit
def _reduce_tiles(
    hidden_ptr, weight_ptr, hidden_scale_ptr, weight_scale_ptr, max_ptr, sum_ptr,
    N, V, H, first_column, num_tiles, num_chunks, num_blocks, group_blocks,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr, PROMOTE: tl.constexpr,
    SCALED: tl.constexpr, MASKED: tl.constexpr, USE_TMA: tl.constexpr,
):  # fmt: skip
    """Running maximum and sum, (C, N) float32 both, of `num_tiles` tiles from `first_column` on, cut into `num_chunks`."""
    # Blocks of a group come first, then chunks: programs that run together share tiles of the head.
    pid = tl.program_id(0)
    group_programs = group_blocks * num_chunks
    first_block = pid // group_programs * group_blocks
    blocks_here = tl.minimum(group_blocks, num_blocks - first_block)
    block = first_block + pid % group_programs % blocks_here
    chunk = pid % group_programs // blocks_here

    if USE_TMA:
        hidden_descriptor = tl.make_tensor_descriptor(hidden_ptr, [N, H], [H, 1], [BLOCK_N, BLOCK_H])
        weight_descriptor = tl.make_tensor_descriptor(weight_ptr, [V, H], [H, 1], [BLOCK_V, BLOCK_H])
    n0 = block * BLOCK_N
    rows = n0 + tl.arange(0, BLOCK_N)
    factor = 1.4426950408889634  # log2(e)
    column_factor = factor
    if SCALED:
        factor = factor * tl.load(hidden_scale_ptr + rows, mask=rows < N, other=0.0)
        column_factor = factor[:, None]
    running_max = tl.full([BLOCK_N], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_N], tl.float32)

    first_tile = chunk * num_tiles // num_chunks
    end_tile = (chunk + 1) * num_tiles // num_chunks
    # Flattened, the loads of the next tile start while this one is reduced.
    for tile in tl.range(first_tile, end_tile, flatten=True):
        v0 = first_column + tile * BLOCK_V
        products = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        for step in range(tl.cdiv(H, BLOCK_H)):
            h0 = step * BLOCK_H
            if USE_TMA:
                hidden = hidden_descriptor.load([n0, h0])
                weight = weight_descriptor.load([v0, h0])
            else:
                inner = h0 + tl.arange(0, BLOCK_H)
                columns = v0 + tl.arange(0, BLOCK_V)
                row_mask = (rows < N)[:, None] & (inner < H)[None, :]
                column_mask = (columns < V)[:, None] & (inner < H)[None, :]
                hidden = tl.load(hidden_ptr + rows.to(tl.int64)[:, None] * H + inner[None, :], mask=row_mask, other=0.0)
                weight = tl.load(weight_ptr + columns.to(tl.int64)[:, None] * H + inner[None, :], mask=column_mask, other=0.0)
            # Of a float8 sum tensor cores keep about 14 bits: after BLOCK_H products it is added in float32.
            if PROMOTE:
                products += tl.dot(hidden, weight.T)
            else:
                products = tl.dot(hidden, weight.T, products, input_precision="ieee")
        if SCALED or MASKED:
            columns = v0 + tl.arange(0, BLOCK_V)
        if SCALED:
            products = products * tl.load(weight_scale_ptr + columns, mask=columns < V, other=0.0)[None, :]
        # The factor is applied after the maximum, so that it and the subtraction are one instruction.
        candidates = products
        if MASKED:
            candidates = tl.where((columns < V)[None, :], products, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(candidates, 1) * factor)
        powers = tl.exp2(products * column_factor - new_max[:, None])
        if MASKED:
            powers = tl.where((columns < V)[None, :], powers, 0.0)
        running_sum = running_sum * tl.exp2(running_max - new_max) + tl.sum(powers, 1)
        running_max = new_max

    offsets = chunk.to(tl.int64) * N + rows
    tl.store(max_ptr + offsets, running_max, mask=rows < N)
    tl.store(sum_ptr + offsets, running_sum, mask=rows < N)


@_jit
def _join_chunks(
    hidden_ptr, weight_ptr, hidden_scale_ptr, weight_scale_ptr, targets_ptr, max_ptr, sum_ptr, nll_ptr, N, V, H, C,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """nll = ln 2 * (m + log2(sum_c s_c 2**(m_c - m))) - h . W_target, with m the maximum of the m_c."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = rows < N
    chunks = tl.arange(0, BLOCK_C)
    mask = (chunks < C)[:, None] & in_rows[None, :]
    maxima = tl.load(max_ptr + chunks[:, None].to(tl.int64) * N + rows[None, :], mask=mask, other=float("-inf"))
    sums = tl.load(sum_ptr + chunks[:, None].to(tl.int64) * N + rows[None, :], mask=mask, other=0.0)
    maximum = tl.max(maxima, 0)
    total = tl.sum(sums * tl.exp2(maxima - maximum[None, :]), 0)
    logsumexp = (maximum + tl.log2(total)) * 0.6931471805599453

    targets = tl.load(targets_ptr + rows, mask=in_rows, other=0)
    in_vocabulary = (targets >= 0) & (targets < V)
    target_logits = tl.zeros([BLOCK_N], tl.float32)
    for h0 in range(0, H, BLOCK_H):
        inner = h0 + tl.arange(0, BLOCK_H)
        in_hidden = (inner < H)[None, :]
        hidden = tl.load(hidden_ptr + rows[:, None] * H + inner[None, :], mask=in_rows[:, None] & in_hidden, other=0.0)
        weight = tl.load(weight_ptr + targets[:, None] * H + inner[None, :], mask=in_vocabulary[:, None] & in_hidden, other=0.0)
        target_logits += tl.sum(hidden.to(tl.float32) * weight.to(tl.float32), 1)
    if SCALED:
        target_logits *= tl.load(hidden_scale_ptr + rows, mask=in_rows, other=0.0)
        target_logits *= tl.load(weight_scale_ptr + targets, mask=in_vocabulary, other=0.0)
    nll = tl.where(in_vocabulary, logsumexp - target_logits, float("nan"))
    tl.store(nll_ptr + rows, nll, mask=in_rows)


def _check_inputs(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, scale_N: Tensor | None, scale_V: Tensor | None) -> None:
    """Raises `ValueError` for what the kernels would read wrongly and not complain of."""
    (N, H), V = hidden_NH.shape, weight_VH.shape[0]
    expected = [
        ("hidden states", hidden_NH, (N, H), hidden_NH.dtype),
        ("head", weight_VH, (V, H), hidden_NH.dtype),
        ("targets", targets_N, (N,), torch.int64),
        *([("scales of hidden states", scale_N, (N,), torch.float32)] if scale_N is not None else []),
        *([("scales of the head", scale_V, (V,), torch.float32)] if scale_V is not None else []),
    ]
    for name, tensor, shape, dtype in expected:
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != hidden_NH.device or not tensor.is_contiguous():
            raise ValueError(
                f"{name} are {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, strides {tensor.stride()}; "
                f"expected {shape} {dtype} on {hidden_NH.device}, contiguous"
            )
    if hidden_NH.dtype not in PLAIN_CONFIGS or (scale_N is None) != (scale_V is None):
        raise ValueError(
            f"hidden states are {hidden_NH.dtype}, which is none of {list(PLAIN_CONFIGS)}, or one of the scales is missing: scales come in pairs"
        )


def nll_by_triton(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    hidden_scale_N: Tensor | None = None,
    weight_scale_V: Tensor | None = None,
    config: KernelConfig | None = None,
) -> Tensor:
    """NLL (N,) float32, in nats, of int64 targets under the head `weight_VH`; NaN for a target outside [0, V).

    Hidden states and head have one dtype: bfloat16, float16, float32 or float8_e4m3fn. All is contiguous, scales are positive
    float32. Scratch memory is 8 bytes a token and chunk, 18 MB for 65,536 tokens. A token with a NaN or infinite hidden state
    gets a non-finite NLL, the others are as they were without it. There is no gradient.
    """
    if triton is None:
        raise ImportError(
            "nll_by_triton needs the package triton, which CUDA builds of torch bring; use miniplm.models.nll instead"
        )
    hidden_NH = hidden_NH.contiguous()
    _check_inputs(hidden_NH, weight_VH, targets_N, hidden_scale_N, weight_scale_V)
    (N, H), V, device = hidden_NH.shape, weight_VH.shape[0], hidden_NH.device
    nll_N = torch.empty(N, dtype=torch.float32, device=device)
    if N == 0:
        return nll_N
    # The interpreter, which is what computes on a CPU, takes every kind of kernel.
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    # Descriptors want rows and first element at multiples of 16 bytes.
    addresses = (hidden_NH.data_ptr(), weight_VH.data_ptr(), H * hidden_NH.element_size())
    use_tma = capability >= (9, 0) and all(address % 16 == 0 for address in addresses)
    plain = PLAIN_CONFIGS[hidden_NH.dtype]
    if config is None:
        config = HOPPER_CONFIGS[hidden_NH.dtype] if use_tma and capability[0] == 9 else plain

    # Whole tiles, then what is left of V by a kernel of its own: masks would cost each tile a comparison for every logit.
    num_tiles = V // config.block_v
    num_chunks = max(1, min(_MAX_CHUNKS, num_tiles // _MIN_TILES_PER_CHUNK)) if num_tiles else 0
    left_columns = V - num_tiles * config.block_v
    C = num_chunks + (left_columns > 0)
    max_CN = torch.empty((C, N), dtype=torch.float32, device=device)
    sum_CN = torch.empty_like(max_CN)

    def reduce_tiles(config: KernelConfig, first_chunk: int, num_chunks: int, first_column: int, num_tiles: int) -> None:
        num_blocks = -(-N // config.block_n)
        group_blocks = max(1, _GROUP_BYTES // (config.block_n * H * hidden_NH.element_size()))
        _reduce_tiles[(num_blocks * num_chunks,)](
            hidden_NH, weight_VH, hidden_scale_N, weight_scale_V, max_CN[first_chunk:], sum_CN[first_chunk:],
            N, V, H, first_column, num_tiles, num_chunks, num_blocks, group_blocks,
            BLOCK_N=config.block_n, BLOCK_V=config.block_v, BLOCK_H=config.block_h,
            PROMOTE=hidden_NH.dtype == torch.float8_e4m3fn, SCALED=hidden_scale_N is not None, MASKED=first_column + num_tiles * config.block_v > V,
            USE_TMA=use_tma, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip

    def launch() -> None:
        # Descriptors made on the device lie in memory that Triton asks for, 256 bytes a program.
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
        if num_chunks:
            reduce_tiles(config, 0, num_chunks, 0, num_tiles)
        if left_columns:
            reduce_tiles(plain, num_chunks, 1, V - left_columns, -(-left_columns // plain.block_v))
        _join_chunks[(-(-N // 16),)](
            hidden_NH, weight_VH, hidden_scale_N, weight_scale_V, targets_N, max_CN, sum_CN, nll_N, N, V, H, C,
            BLOCK_N=16, BLOCK_C=triton.next_power_of_2(C), BLOCK_H=256, SCALED=hidden_scale_N is not None,
        )  # fmt: skip

    # In a context of its own, so that the allocator of the process stays what it was.
    with torch.cuda.device_of(hidden_NH):
        contextvars.copy_context().run(launch)
    return nll_N

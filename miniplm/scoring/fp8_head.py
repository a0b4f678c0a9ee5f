"""The head in fp8: hidden states and weight rounded to float8_e4m3fn with a scale a row, as fp8 layers are; logits never stored whole.

    logits[t, v] = scale_h[t] * scale_w[v] * sum_k q_h[t, k] * q_w[v, k]

    fp8-tiles      any device and head: logits a tile at a time; where a device has no fp8, in float32 of the same rounded numbers
    fp8-compiled, fp8-compiled-small   CUDA: each tile's log-sum-exp fused by torch.compile
    fp8-triton     CUDA, plain head: the Triton kernel, its products summed in float32

The logit of a target is of the same rounded numbers, summed in float32.

Shapes: N tokens, K tokens of a tile, H width of the hidden state, V vocabulary, S of a slice of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from miniplm.models.compilation import CompiledCall, compile_each_shape, vary_shape
from miniplm.models.fp8 import DIMENSION_MULTIPLE, multiply_quantized, quantize_rows, supports_fp8
from miniplm.models.nll import Head, nll_in_tiles
from miniplm.scoring import triton_nll

# (hidden_NH, targets_N) -> NLL (N,) float32, in nats.
NllOfHidden = Callable[[Tensor, Tensor], Tensor]


class RoundedHead:
    """A head whose weight is rounded once; beside the given one it takes a byte an element."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.q_VH, self.scale_V = quantize_rows(head.weight_VH.detach())
        self._on_tensor_cores = supports_fp8(head.weight_VH.device)

    def nll_by_tiles(self, tile: tuple[int, int], compiled: bool = False) -> NllOfHidden:
        """What makes NLL (N,) float32 of hidden states and targets, by tiles of so many tokens x so many of the vocabulary."""
        tile_tokens, slice_size = tile
        bounds = [(start, min(start + slice_size, len(self.q_VH))) for start in range(0, len(self.q_VH), slice_size)]
        slices = [self._cut(start, stop) for start, stop in bounds]
        round_tile: Callable[[Tensor], tuple[Tensor, Tensor]] = quantize_rows
        reduce: Callable[..., Tensor] = self._reduce
        if compiled:
            round_tile, reduce = compile_each_shape(quantize_rows), compile_each_shape(self._reduce)

        def nll_of_tile(hidden_KH: Tensor, targets_K: Tensor) -> Tensor:  # (K,)
            num_tokens = len(hidden_KH)
            # Filled up to a whole tile, so that what is left over at the end is not compiled for.
            whole_KH = pad(hidden_KH, (0, 0, 0, tile_tokens - num_tokens)) if compiled and num_tokens < tile_tokens else hidden_KH
            q_KH, scale_K = round_tile(whole_KH)

            # The hidden states that both are given (K, H) are the tile's, which is rounded already.
            def reduce_slice(_: Tensor, index: int) -> Tensor:  # (K,)
                return reduce(q_KH, scale_K, *slices[index])[:num_tokens]

            def multiply_targets(_: Tensor, targets_K: Tensor) -> Tensor:  # (K,)
                products_K = (q_KH[:num_tokens].float() * self.q_VH[targets_K].float()).sum(dim=1)
                return products_K * scale_K[:num_tokens] * self.scale_V[targets_K]

            return nll_in_tiles(self.head, hidden_KH, targets_K, max(1, num_tokens), len(slices), reduce_slice, multiply_targets)

        def nll(hidden_NH: Tensor, targets_N: Tensor) -> Tensor:  # (N,)
            tiles = zip(hidden_NH.split(tile_tokens), targets_N.split(tile_tokens), strict=True)
            return torch.cat([nll_of_tile(hidden_KH, targets_K) for hidden_KH, targets_K in tiles])

        return nll

    def nll_by_triton(self, compile_allowed: bool) -> NllOfHidden | None:
        """The same by the Triton kernel; None where it is not for this head or device."""
        if not (self.head.is_plain and self._on_tensor_cores and triton_nll.is_available(self.q_VH.device)):
            return None
        # In one pass over the hidden states instead of five.
        round_rows = CompiledCall(quantize_rows, "the rounding of hidden states") if compile_allowed else quantize_rows

        def nll(hidden_NH: Tensor, targets_N: Tensor) -> Tensor:  # (N,)
            if compile_allowed:
                vary_shape(hidden_NH)
            q_NH, scale_N = round_rows(hidden_NH)
            return triton_nll.nll_by_triton(q_NH, self.q_VH, targets_N, scale_N, self.scale_V)

        return nll

    def _cut(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """A slice of the vocabulary: weight (S, H) and scales (S,), bias (stop - start,), how many there are.

        Tensor cores want a multiple of 16: zeros fill up.
        """
        missing = -(stop - start) % DIMENSION_MULTIPLE
        weight_SH, scale_S = self.q_VH[start:stop], self.scale_V[start:stop]
        if missing:
            zeros_SH = torch.zeros((missing, weight_SH.shape[1]), device=weight_SH.device).to(weight_SH.dtype)
            weight_SH, scale_S = torch.cat([weight_SH, zeros_SH]), pad(scale_S, (0, missing), value=1.0)
        return weight_SH, scale_S, None if self.head.bias_V is None else self.head.bias_V[start:stop], stop - start

    def _reduce(
        self, q_KH: Tensor, scale_K: Tensor, weight_SH: Tensor, scale_S: Tensor, bias_S: Tensor | None, num_columns: int
    ) -> Tensor:
        """Log-sum-exp (K,) of the logits of a tile."""
        logits_KS = multiply_quantized(q_KH, scale_K, weight_SH, scale_S, None, self._on_tensor_cores)
        return torch.logsumexp(self.head.adjust(logits_KS[:, :num_columns].float(), bias_S), dim=1)

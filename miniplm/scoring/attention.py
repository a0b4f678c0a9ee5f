"""Causal attention over segments that lie one after the other in one row: none sees another, and no mask is stored.

Registered with transformers as `miniplm-segments`; the body is called with the segments' borders under the names that
transformers gives them (`cu_seq_lens_q`, `max_length_q`).

Shapes: N tokens of all segments, S segments, Q query heads, K key heads, D width of a head.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "miniplm-segments"


def register_segment_attention() -> None:
    """Makes `miniplm-segments` known to transformers; may be called again."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend_within_segments)


def attend_within_segments(
    module: torch.nn.Module,
    query_1QND: Tensor,
    key_1KND: Tensor,
    value_1KND: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention output (1, N, Q, D), in the form that transformers' models expect of an attention function.

    Raises `NotImplementedError` for what it does not compute: capped logits and attention sinks.
    """
    if softcap is not None or s_aux is not None or attention_mask is not None:
        raise NotImplementedError("attention with capped logits, sinks or a mask is not computed over segments")
    if cu_seq_lens_q is None or max_length_q is None:
        raise NotImplementedError("this model does not hand the segments' borders to its attention")
    window = sliding_window or 0
    scale = query_1QND.shape[-1] ** -0.5 if scaling is None else scaling
    if query_1QND.is_cuda:
        attended = _attend_by_flash(query_1QND, key_1KND, value_1KND, cu_seq_lens_q, max_length_q, scale, window)
    else:
        attended = _attend_one_by_one(query_1QND, key_1KND, value_1KND, cu_seq_lens_q, scale, window)
    return attended, None


def _attend_by_flash(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scale: float, window: int) -> Tensor:
    """PyTorch's own FlashAttention with variable lengths; an empty segment (two equal borders) costs nothing."""
    attended_NQD = torch.ops.aten._flash_attention_forward(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).contiguous(),
        value[0].transpose(0, 1).contiguous(),
        borders,
        borders,
        longest,
        longest,
        0.0,
        True,
        False,
        scale=scale,
        window_size_left=window - 1 if window else None,
        window_size_right=0 if window else None,
    )[0]
    result: Tensor = attended_NQD[None]
    return result


# A custom operator, so that a compiled body calls it instead of being cut in two at each layer.
@torch.library.custom_op("miniplm::attend_one_by_one", mutates_args=())
def _attend_one_by_one(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, scale: float, window: int) -> Tensor:
    attended_1QND = torch.empty_like(query)
    ends = borders.tolist()
    for start, stop in pairwise(ends):
        length = stop - start
        mask = None
        if 0 < window < length:
            places = torch.arange(length, device=query.device)
            distance = places[:, None] - places[None, :]
            mask = (distance >= 0) & (distance < window)
        attended_1QND[:, :, start:stop] = scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, start:stop],
            value[:, :, start:stop],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return attended_1QND.transpose(1, 2).contiguous()


@_attend_one_by_one.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, scale: float, window: int) -> Tensor:
    return query.new_empty((query.shape[0], query.shape[2], query.shape[1], query.shape[3]))

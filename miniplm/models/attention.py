"""Causal attention for which no mask is stored, over segments that lie one after the other in one row, and over rows.

Registered with transformers as `miniplm-segments` and `miniplm-rows`. For segments the body is called with their borders under the
names that transformers gives them (`cu_seq_lens_q`, `max_length_q`): none sees another. Rows begin with a text and end with padding, which
no token before it sees. What transformers itself does instead under torch.compile is a mask of all pairs of tokens, which keeps
PyTorch from its fast kernels.

Shapes: N tokens of all segments, S segments, B rows of T tokens, H width of the hidden state; Q query heads, K key heads, D width of
a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from miniplm.errors import first_line
from miniplm.models.devices import is_device_lost, is_out_of_memory
from miniplm.models.lengths import choose_probe_length
from miniplm.models.probing import ROUNDING, differences, make_probe

NAME = "miniplm-segments"
ROWS = "miniplm-rows"
# The same, with what each layer's mask would have been: to prove that nothing is lost without masks, not to compute with.
PROOF = "miniplm-segments-proof"
ROWS_PROOF = "miniplm-rows-proof"

# A window is looked for up to this length; a longer one counts as none.
_REACH = 1 << 17
# Arguments that models pass to any attention and that change nothing here.
_HARMLESS = {
    "position_ids", "use_cache", "cache_position", "past_key_values", "cu_seq_lens_k", "max_length_k", "return_dict",
    "output_attentions", "output_hidden_states", "output_router_logits", "deterministic", "layer_idx", "logits_to_keep",
}  # fmt: skip


def register_attention() -> None:
    """Makes all of them known to transformers; may be called again."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend_within_segments)
    ALL_ATTENTION_FUNCTIONS.register(ROWS, attend_in_rows)
    for name, attention in ((PROOF, attend_within_segments), (ROWS_PROOF, attend_in_rows)):
        ALL_ATTENTION_FUNCTIONS.register(name, partial(_attend_and_prove, attention))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, _describe_mask)


def set_attention(body: Any, name: str) -> None:
    """Has a body compute with this attention. Raises `NotImplementedError` where it takes only its own."""
    body.set_attn_implementation(name)
    if body.config._attn_implementation != name:
        raise NotImplementedError("this model does not take another attention")


@torch.no_grad()
def use_attention_in_rows(body: Any, vocab_size: int) -> str:
    """Has a body attend without masks, where its hidden states are then what they were; else says why not, and changes nothing.

    What was computed before with a mask is now computed without: padding has to come after the text of its row.
    """
    register_attention()
    own, device = body.config._attn_implementation, next(body.parameters()).device
    token_ids_BT = torch.stack([make_probe(vocab_size, choose_probe_length(body.config), device, shift) for shift in (0, 31)])
    expected_BTH = body(input_ids=token_ids_BT, use_cache=False).last_hidden_state
    try:
        # A mask's window may be longer than what can be tried, so it is proved first.
        set_attention(body, ROWS_PROOF)
        body(input_ids=token_ids_BT[:, :2], use_cache=False)  # two tokens will do: the rule of a mask is asked, not the mask
        set_attention(body, ROWS)
        found_BTH = body(input_ids=token_ids_BT, use_cache=False).last_hidden_state
        difference = differences(found_BTH.flatten(0, 1), expected_BTH.flatten(0, 1)).nan_to_num(torch.inf).max().item()
        if difference <= ROUNDING[expected_BTH.dtype]:
            return ""
        reason = f"hidden states differ by {difference:.2g} of themselves"
    except Exception as error:  # a family whose attention needs its mask, or is its own; it raises what it likes
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        reason = first_line(error)
    body.set_attn_implementation(own)
    return reason


def _describe_mask(
    mask_function: Callable[..., Tensor], device: torch.device, attention_mask: Tensor | None = None, **_: Any
) -> Tensor:
    """The window of a causal mask as (1, 1, 1, 1) int64, 0 where it has none, handed to the layers in the mask's place.

    Asked of the rule that the mask would be made by, so a window of any length costs no text of that length.
    """
    if attention_mask is not None and not attention_mask.all():
        raise NotImplementedError("this model makes a padding mask of its own")
    zero, keys = torch.zeros((), dtype=torch.long, device=device), torch.arange(_REACH, device=device)
    window = 0
    # The last place sees the whole window, which the others then have to agree with; they are at no round number, where chunks would end.
    for query in (_REACH - 1, _REACH // 2 + 1, 12345, 777, 5, 0):
        seen = mask_function(zero, zero, torch.full((), query, device=device), keys)
        seen = torch.as_tensor(seen, device=device).expand(_REACH)
        if query == _REACH - 1:
            window = int(seen.sum())
        if not torch.equal(seen, (keys <= query) & (keys > query - window)):
            raise NotImplementedError("its mask is neither causal nor a window of fixed length")
    return torch.full((1, 1, 1, 1), 0 if window == _REACH else window, dtype=torch.long, device=device)


def _attend_and_prove(
    attention: Callable[..., tuple[Tensor, None]],
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """What `attention` gives, where the layer itself names the window that its mask would have had.

    Query, key and value as `attention` takes them; the mask is that of `_describe_mask`, (1, 1, 1, 1).
    """
    if attention_mask is None or attention_mask.shape != (1, 1, 1, 1):
        raise NotImplementedError("a layer's mask is not of transformers' making")
    in_mask, named = int(attention_mask), arguments.get("sliding_window") or 0
    if in_mask != (0 if named >= _REACH else named):
        raise NotImplementedError(f"a layer names a window of {named or 'any length'}, and its mask has {in_mask or 'none'}")
    return attention(module, query, key, value, None, **arguments)


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
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention output (1, N, Q, D), in the form that transformers' models expect of an attention function.

    `cu_seq_lens_q` (S + 1,) int32 are the places where segments begin, and where the last one ends; a mask or sinks are refused.
    Raises `NotImplementedError` for what it does not compute: capped logits, attention sinks, and whatever it does not know.
    """
    _refuse_unknown(others, is_causal, softcap, s_aux, attention_mask)
    if cu_seq_lens_q is None or max_length_q is None:
        raise NotImplementedError("this model does not hand the segments' borders to its attention")
    window = sliding_window or 0
    scale = query_1QND.shape[-1] ** -0.5 if scaling is None else scaling
    if query_1QND.is_cuda:
        attended = _attend_by_flash(query_1QND, key_1KND, value_1KND, cu_seq_lens_q, max_length_q, scale, window)
    else:
        attended = _attend_one_by_one(query_1QND, key_1KND, value_1KND, cu_seq_lens_q, scale, window)
    return attended, None


def attend_in_rows(
    module: torch.nn.Module,
    query_BQTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention output (B, T, Q, D), each token seeing those before it in its row. Raises as `attend_within_segments`.

    A mask (B, 1, T, T) or sinks (Q,) are refused.
    """
    _refuse_unknown(others, is_causal, softcap, s_aux, attention_mask)
    length = query_BQTD.shape[2]
    mask_TT = None
    if sliding_window and sliding_window < length:
        places = torch.arange(length, device=query_BQTD.device)
        distance_TT = places[:, None] - places[None, :]
        mask_TT = (distance_TT >= 0) & (distance_TT < sliding_window)
    attended_BQTD = scaled_dot_product_attention(
        query_BQTD,
        key_BKTD,
        value_BKTD,
        attn_mask=mask_TT,
        dropout_p=dropout,
        is_causal=mask_TT is None,  # one or the other: PyTorch refuses both, and only without a mask it has its fast kernels
        scale=scaling,
        enable_gqa=query_BQTD.shape[1] != key_BKTD.shape[1],
    )
    return attended_BQTD.transpose(1, 2).contiguous(), None


def _refuse_unknown(
    others: dict[str, Any], is_causal: bool | None, softcap: float | None, s_aux: Tensor | None, attention_mask: Tensor | None
) -> None:
    """Raises `NotImplementedError` for whatever would change the result and is not computed: sinks (Q,), a mask (B, 1, T, T)."""
    unknown = [name for name, value in others.items() if value is not None and name not in _HARMLESS]
    if unknown or is_causal is False:
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'is_causal: false'} is not computed without a mask")
    if softcap is not None or s_aux is not None or attention_mask is not None:
        raise NotImplementedError("attention with capped logits, sinks or a mask is not computed here")


def _attend_by_flash(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scale: float, window: int) -> Tensor:
    """PyTorch's own FlashAttention with variable lengths; an empty segment (two equal borders) costs nothing.

    Query (1, Q, N, D), key and value (1, K, N, D), borders (S + 1,) int32; the output is (1, N, Q, D).
    """
    query_NQD, key_NKD, value_NKD = (_with_whole_heads(heads[0].transpose(0, 1)) for heads in (query, key, value))
    attended_NQD = torch.ops.aten._flash_attention_forward(
        query_NQD,
        key_NKD,
        value_NKD,
        borders,
        borders,
        longest,
        longest,
        0.0,  # dropout
        True,  # causal
        False,  # no mask of the dropout to debug with
        scale=scale,
        window_size_left=window - 1 if window else None,
        window_size_right=0 if window else None,
    )[0]
    result: Tensor = attended_NQD[None]
    return result


def _with_whole_heads(heads_NKD: Tensor) -> Tensor:
    """The same (N, K, D) as FlashAttention reads it: tokens and heads may lie anywhere, as columns of a fused product do, the numbers of a head side by side."""
    return heads_NKD if heads_NKD.stride(-1) == 1 else heads_NKD.contiguous()


# A custom operator, so that a compiled body calls it instead of being cut in two at each layer.
@torch.library.custom_op("miniplm::attend_one_by_one", mutates_args=())
def _attend_one_by_one(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, scale: float, window: int) -> Tensor:
    """As `_attend_by_flash`, by a product a segment: PyTorch has no attention of variable lengths for a CPU.

    Query (1, Q, N, D), key and value (1, K, N, D), borders (S + 1,) int32; the output is (1, N, Q, D). One mask over the whole row
    would cost N * N numbers and their products; a call a segment costs some microseconds.
    """
    attended_1QND = torch.empty_like(query)
    ends = borders.tolist()
    for start, stop in pairwise(ends):
        length = stop - start
        mask_TT = None
        if 0 < window < length:
            places = torch.arange(length, device=query.device)
            distance_TT = places[:, None] - places[None, :]
            mask_TT = (distance_TT >= 0) & (distance_TT < window)
        attended_1QND[:, :, start:stop] = scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, start:stop],
            value[:, :, start:stop],
            attn_mask=mask_TT,
            is_causal=mask_TT is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    # Contiguous, as the fake version promises: torch.compile lays out what follows by that.
    return attended_1QND.transpose(1, 2).contiguous()


@_attend_one_by_one.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, scale: float, window: int) -> Tensor:
    """The shape (1, N, Q, D) alone, for torch.compile."""
    return query.new_empty((query.shape[0], query.shape[2], query.shape[1], query.shape[3]))

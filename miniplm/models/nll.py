"""The negative log-likelihood of tokens: all of its arithmetic, for scoring, training and evaluation alike.

    nll[t] = logsumexp_v(logits[t, v]) - logits[t, target[t]]        nats, float32

The logits of a batch never exist whole: the head runs over blocks of tokens, and only one block's logits,
`block_tokens` x V float32, are alive. Sums over a sequence are float64.

Shapes: B sequences, T tokens of the longest, N tokens of any kind, K tokens of a block, H width of the hidden state, V vocabulary,
S slices of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

from miniplm.models.compilation import CompiledCall, vary_shape

# Logits alive at a time: 2**25 float32 values, 128 MiB.
_BLOCK_ELEMENTS = 1 << 25
# On a CPU, in training: 24 MiB, small enough for malloc to give the same memory again.
_CPU_BLOCK_ELEMENTS = 3 << 21
# On a CPU, in training in bfloat16: 256 MiB of logits a product. The gradient of the head's weight is read and written once a
# product, in float32, which with few tokens takes longer than all three products; only a part of them is in float32 at a time.
_CPU_PRODUCT_BYTES = 1 << 28
# Of that gradient, what a CPU's product gives in bfloat16 before it is added: 2 MiB, which stay in the cache.
_CPU_SUM_ELEMENTS = 1 << 20
# On a GPU, in training: 2.5 GiB in bfloat16. The gradient of the head's weight is read and written once a block.
_GPU_BLOCK_ELEMENTS = 5 << 28


@dataclass(frozen=True)
class Head:
    """How a model makes logits of its last hidden state: `softcap * tanh(scale * (W h + b) / softcap)`.

    `scale` and `softcap` are those of families that have them (Cohere, Granite, Gemma 2); None leaves the step out.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether logits are `W h` and nothing more."""
        return self.bias_V is None and self.scale is None and self.softcap is None

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Float32 logits (N, V) of hidden states, taken in the weights' dtype.

        A product in bfloat16 is rounded to 8 bits, as in transformers' own models: a logit between 16 and 32 is off by up to 0.06.
        All that follows is float32, at twice the memory of a block; sums of exponentials over V would not survive those 8 bits.
        """
        return self.adjust(torch.nn.functional.linear(self._cast(hidden_NH), self.weight_VH, self.bias_V).float())

    def _cast(self, hidden_NH: Tensor) -> Tensor:
        """Hidden states (N, H) in the weights' dtype, which some families' hidden states are not (Mamba: float32); autocast does so by itself."""
        return hidden_NH if torch.is_autocast_enabled(hidden_NH.device.type) else hidden_NH.to(self.weight_VH.dtype)

    def adjust(self, logits: Tensor, bias: Tensor | None = None) -> Tensor:
        """What comes after `W h`, elementwise on float32 logits (N, V), or (N,) with a bias for each: a bias where it is not added yet, scale and softcap."""
        if bias is not None:
            logits = logits + bias.float()
        if self.scale is not None:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def default_block_tokens(self) -> int:
        """Tokens whose float32 logits take about 128 MiB, at least one."""
        return max(1, _BLOCK_ELEMENTS // self.weight_VH.shape[0])


def mask_scored_targets(token_ids_BT: Tensor, num_tokens_B: Tensor, eos_token_id: int) -> Tensor:
    """Which targets count, (B, T-1) bool: entry t is the target `token_ids[t + 1]`, predicted from inputs up to t.

    A target counts unless its input token `token_ids[t]` is EOS (the first token of a document is not
    predictable from the document before it) or the target is padding, at or beyond `num_tokens`.
    Method: MiniPLM reference code, `LMDataset.collate`.
    """
    inputs_BT = token_ids_BT[:, :-1]
    positions = torch.arange(1, token_ids_BT.shape[1], device=token_ids_BT.device)
    return (inputs_BT != eos_token_id) & (positions[None, :] < num_tokens_B[:, None])


def nll_of_logits(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """NLL (N,) float32, in nats, of int64 targets under float32 logits."""
    return torch.logsumexp(logits_NV, dim=-1) - logits_NV.gather(1, targets_N[:, None]).squeeze(1)


def nll_of_hidden(head: Head, hidden_NH: Tensor, targets_N: Tensor, block_tokens: int | None = None) -> Tensor:
    """NLL (N,) float32, in nats, one block of tokens at a time.

    With gradients on, a block's logits are computed again in the backward pass instead of being kept, unless
    there is only one block.
    """
    block_tokens = block_tokens or head.default_block_tokens()

    def block_nll(hidden_KH: Tensor, targets_K: Tensor) -> Tensor:  # (K,)
        return nll_of_logits(head.logits(hidden_KH), targets_K)

    hidden_blocks = hidden_NH.split(block_tokens)
    run: Callable[[Tensor, Tensor], Tensor] = block_nll
    if torch.is_grad_enabled() and len(hidden_blocks) > 1:

        def run(hidden_KH: Tensor, targets_K: Tensor) -> Tensor:  # (K,)
            result: Tensor = checkpoint(block_nll, hidden_KH, targets_K, use_reentrant=False)
            return result

    blocks = [run(hidden, targets) for hidden, targets in zip(hidden_blocks, targets_N.split(block_tokens), strict=True)]
    return torch.cat(blocks) if blocks else hidden_NH.new_zeros(0, dtype=torch.float32)


def sum_nll_of_hidden(
    head: Head, hidden_NH: Tensor, targets_N: Tensor, block_tokens: int | None = None, gradient_scale: float | None = None
) -> Tensor:
    """The sum over N of `nll_of_hidden`, scalar float32, for training: to be differentiated once, not twice.

    With `gradient_scale` it is where the backward pass begins, and its gradient is that of `gradient_scale * sum` (`sum_in_blocks`).

    The gradient of a plain linear head is made in the forward pass, while a block's logits are there:

        d sum / d logits[t, v] = softmax(logits[t])[v] - [v == target[t]]

    so that logits are made once and live in one buffer; under autocast in its dtype, with float32 sums.
    """
    if not head.is_plain or not torch.is_grad_enabled():
        return scale_gradient(nll_of_hidden(head, hidden_NH, targets_N, block_tokens).sum(), gradient_scale)
    vocab_size = head.weight_VH.shape[0]
    if hidden_NH.is_cuda:
        block_tokens = block_tokens or max(1, _GPU_BLOCK_ELEMENTS // vocab_size)
        run = fuse_in_blocks(differentiate_nll_at_once, "the loss of the head")
        return sum_in_blocks(
            head, hidden_NH, lambda logits_KV, tokens: run(logits_KV, targets_N[tokens]), block_tokens, False, gradient_scale
        )
    # On a CPU a buffer that stays in the cache is worth more than larger products.
    block_tokens = block_tokens or max(1, _CPU_BLOCK_ELEMENTS // vocab_size)
    return sum_in_blocks(
        head,
        hidden_NH,
        lambda logits_KV, tokens: _differentiate_nll(logits_KV, targets_N[tokens]),
        block_tokens,
        gradient_scale=gradient_scale,
    )


def differentiate_nll_at_once(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """NLL (K,) float32, as `_differentiate_nll`, computed in float32 on logits of any dtype, in a form that torch.compile makes two passes of."""
    # As one operation: maximum and sum are then taken in one pass.
    log_probabilities_KV = torch.log_softmax(logits_KV.float(), dim=1)
    targets_K1 = targets_K[:, None]
    is_target_KV = torch.arange(logits_KV.shape[1], device=logits_KV.device) == targets_K1
    logits_KV.copy_(log_probabilities_KV.exp() - is_target_KV.float())
    return -log_probabilities_KV.gather(1, targets_K1).squeeze(1)


@lru_cache
def fuse_in_blocks(function: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """A function of tensors (K, ...) that have a row a token, whose result is (K,), compiled once for any number of rows; `name` is what a warning calls it."""
    compiled = CompiledCall(function, name)

    def run(*arguments: Any) -> Tensor:  # (K,)
        for argument in arguments:
            if isinstance(argument, Tensor):
                # How many targets a micro-batch has changes all the time; it is not to be compiled for each number.
                vary_shape(argument)
        result: Tensor = compiled(*arguments)
        return result

    return run


def _differentiate_nll(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """NLL (K,) of float32 logits; in their place it leaves the gradient, softmax less 1 at the target.

    Each step is in place: a second buffer of K x V numbers would push the first out of the cache.
    """
    targets_K1 = targets_K[:, None]
    target_logits_K1 = logits_KV.gather(1, targets_K1)  # before they are overwritten
    maxima_K1 = logits_KV.amax(dim=1, keepdim=True)
    logits_KV.sub_(maxima_K1).exp_()
    sums_K1 = logits_KV.sum(dim=1, keepdim=True)
    logits_KV.div_(sums_K1)  # softmax
    logits_KV.scatter_add_(1, targets_K1, torch.full_like(target_logits_K1, -1.0))
    return (sums_K1.log() + maxima_K1 - target_logits_K1).squeeze(1)


# (logits (K, V) of a block, float32 unless asked for as they are made, its place among the tokens) -> loss (K,) float32 of
# its tokens. Where the logits were, d loss / d logits is left.
BlockLoss = Callable[[Tensor, slice], Tensor]


def sum_in_blocks(
    head: Head,
    hidden_NH: Tensor,
    block_loss: BlockLoss,
    block_tokens: int,
    in_float32: bool = True,
    gradient_scale: float | None = None,
) -> Tensor:
    """The sum over N of a loss of a plain head's logits, scalar float32, to be differentiated once; logits exist a block at a time.

    The loss is given `block_tokens` or fewer at a time, of a product that may have more. Without `in_float32` it is given them in the
    dtype in which they are made, and turns them into float32 itself.
    With `gradient_scale` the gradient is that of `gradient_scale * sum`, where a product makes it at no cost, and nothing may come
    between the sum and the start of the backward pass: `RuntimeError`, on a GPU at its next exchange, unless it begins with 1.
    """
    assert head.is_plain, "only of W h is the gradient known from that of the logits"
    total: Tensor = _SumInBlocks.apply(  # type: ignore[no-untyped-call]
        hidden_NH, head.weight_VH, block_loss, block_tokens, in_float32, gradient_scale
    )
    return total


def scale_gradient(value: Tensor, scale: float | None) -> Tensor:
    """The value (), or of any shape (...), as it is; its gradient is `scale` times what comes to it."""
    if scale is None:
        return value
    scaled: Tensor = _ScaleGradient.apply(value, scale)  # type: ignore[no-untyped-call]
    return scaled


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: float) -> Tensor:  # (...), as the value
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # (...), as the value
        return gradients[0] * ctx.scale, None


def product_dtype(operand: Tensor) -> torch.dtype:
    """The dtype in which a product with this operand (..., H) is computed: autocast's, or its own."""
    device_type = operand.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else operand.dtype


def sums_in_product(left: Tensor, total: Tensor) -> bool:
    """Whether `torch.addmm` adds a product of this dtype (V, H) to sums (V, H) of `total`'s, rounding it only to those.

    Of one dtype any device does. bfloat16 to float32 does CUDA, since PyTorch 2.11: before, the sums had to be bfloat16 too.
    """
    return left.dtype == total.dtype or (left.is_cuda and TorchVersion(torch.__version__) >= "2.11")


class _SumInBlocks(torch.autograd.Function):
    """Sum of a loss of `W h`, with the gradients for h and W made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        block_loss: BlockLoss,
        block_tokens: int,
        in_float32: bool,
        gradient_scale: float | None,
    ) -> Tensor:
        """The sum, () float32. The gradients (N, H) and (V, H) are kept for `backward`: no logits are."""
        dtype = product_dtype(hidden_NH)
        N = hidden_NH.shape[0]
        input_NH, W_VH = hidden_NH.to(dtype), weight_VH.to(dtype)
        hidden_gradient_NH = torch.empty_like(hidden_NH)
        weight_gradient_VH = torch.zeros_like(weight_VH)
        product_tokens = block_tokens
        if in_float32 and dtype.itemsize < 4:
            product_tokens *= max(1, _CPU_PRODUCT_BYTES // (block_tokens * W_VH.shape[0] * dtype.itemsize))
        buffer_KV = input_NH.new_empty((min(product_tokens, N), W_VH.shape[0]))
        adds_in_product = sums_in_product(input_NH, weight_gradient_VH)
        # A GPU's time goes to memory here, and its products scale at no cost; a CPU keeps the last bits that it always gave.
        product_scale = gradient_scale if adds_in_product and input_NH.is_cuda and gradient_scale is not None else 1.0
        losses = []
        for start in range(0, N, product_tokens):
            tokens = slice(start, min(start + product_tokens, N))
            block_KH = input_NH[tokens]
            gradient_KV = torch.mm(block_KH, W_VH.t(), out=buffer_KV[: len(block_KH)])  # logits, then their gradient
            for first in range(0, len(block_KH), block_tokens):
                made_KV = gradient_KV[first : first + block_tokens]
                values_KV = made_KV.float() if in_float32 else made_KV
                losses.append(block_loss(values_KV, slice(start + first, start + first + len(made_KV))))
                if values_KV is not made_KV:
                    made_KV.copy_(values_KV)
            hidden_gradient_NH[tokens] = gradient_KV @ W_VH
            add_product(weight_gradient_VH, gradient_KV.t(), block_KH, product_scale, adds_in_product)
        if gradient_scale is not None:
            hidden_gradient_NH.mul_(gradient_scale)
            if product_scale == 1.0:
                weight_gradient_VH.mul_(gradient_scale)
        ctx.is_scaled = gradient_scale is not None
        ctx.save_for_backward(hidden_gradient_NH, weight_gradient_VH)
        return torch.cat(losses).sum() if losses else hidden_NH.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        """Gradients (N, H) and (V, H), those of `forward` times that of the sum, ()."""
        hidden_gradient_NH, weight_gradient_VH = ctx.saved_tensors
        if ctx.is_scaled:
            # On a GPU without waiting for it: the check runs in its stream, and raises when the host next waits.
            torch._assert_async(gradients[0] == 1, "a sum with a gradient_scale is where the backward pass begins")
        else:
            # In place, as they are used once: a copy of the head's gradient would be the largest tensor of a step.
            hidden_gradient_NH, weight_gradient_VH = hidden_gradient_NH.mul_(gradients[0]), weight_gradient_VH.mul_(gradients[0])
        return hidden_gradient_NH, weight_gradient_VH, None, None, None, None


def add_product(total: Tensor, left: Tensor, right: Tensor, scale: float, in_product: bool) -> None:
    """`total += scale * left @ right`, (V, H) += (V, K) @ (K, H), in one pass over `total` where the device can."""
    if left.dtype == total.dtype:
        total.addmm_(left, right, alpha=scale)
    elif in_product:
        torch.addmm(total, left, right, alpha=scale, out_dtype=total.dtype, out=total)
    elif left.is_cuda:
        # Not rounded to the operands' dtype on the way.
        total.add_(torch.mm(left, right, out_dtype=total.dtype), alpha=scale)
    else:
        # A CPU turns what it adds into float32 first: a part at a time, else in memory that it has to ask for.
        rows = max(1, _CPU_SUM_ELEMENTS // total.shape[1])
        for start in range(0, total.shape[0], rows):
            total[start : start + rows].add_(left[start : start + rows] @ right, alpha=scale)


# (hidden_KH, index of a slice of the vocabulary) -> logsumexp (K,) float32 of its logits.
SliceLogSumExp = Callable[[Tensor, int], Tensor]

# (hidden_KH, targets_K) -> W_target h (K,) float32.
TargetProducts = Callable[[Tensor, Tensor], Tensor]


def nll_in_tiles(
    head: Head,
    hidden_NH: Tensor,
    targets_N: Tensor,
    tile_tokens: int,
    num_slices: int,
    reduce_slice: SliceLogSumExp,
    multiply_targets: TargetProducts | None = None,
) -> Tensor:
    """NLL (N,) float32, in nats, without gradient: logits exist a tile at a time, `tile_tokens` x one slice of the vocabulary.

        logsumexp_v(logits[v]) = logsumexp_s(logsumexp_{v in slice s}(logits[v]))

    The target's logit is made once more by itself, in float32, so that no rounding of a tile touches it: by `multiply_targets`
    where the weight is not used as it is. A tile that fits into the cache is worth more than a large product.
    """
    nll_N = hidden_NH.new_empty(hidden_NH.shape[0], dtype=torch.float32)
    for start in range(0, hidden_NH.shape[0], tile_tokens):
        hidden_KH, targets_K = hidden_NH[start : start + tile_tokens], targets_N[start : start + tile_tokens]
        slices_SK = torch.stack([reduce_slice(hidden_KH, index) for index in range(num_slices)])
        if multiply_targets is None:
            target_logits_K = (hidden_KH.float() * head.weight_VH[targets_K].float()).sum(dim=1)
        else:
            target_logits_K = multiply_targets(hidden_KH, targets_K)
        target_logits_K = head.adjust(target_logits_K, None if head.bias_V is None else head.bias_V[targets_K])
        nll_N[start : start + tile_tokens] = torch.logsumexp(slices_SK, dim=0) - target_logits_K
    return nll_N

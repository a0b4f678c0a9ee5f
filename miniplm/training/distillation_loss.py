"""The loss of vanilla knowledge distillation, in blocks of tokens: no tensor of all tokens and the whole vocabulary is ever made.

    loss[t] = (1 - a) * nll[t] + a * KL(p_teacher[t] || p_student[t])        nats, float32

with p the distributions of the next token and a the weight of the KL divergence (arXiv 2410.17215, section 3.1, baseline "Vanilla KD").

Embeddings are padded differently, so the two models may have a different number of logits; an id means the same
token in both. The teacher's distribution is that of the ids that both have, renormalised: its probability on ids that the
student lacks is dropped. The student's is over all its ids in both terms, so that what it gives to padding costs it.

Shapes: K tokens of a block, N of all; V ids of the student, U that both have; H and G widths of student and teacher.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from miniplm.models.nll import Head, fuse_in_blocks, product_dtype, scale_gradient, sum_in_blocks

# Logits of a block, of both models together. On a CPU three buffers in float32 (the third for what is between), which should
# stay in the cache. On a GPU two in the models' own dtypes: in bfloat16 with 151,936 ids 4,416 tokens, for each block reads and
# writes the gradient of the head once, which takes as long as 1,000 tokens' products.
_CPU_BLOCK_MIB = 24
_GPU_BLOCK_MIB = 2560


def sum_distillation_loss(
    head: Head,
    hidden_NH: Tensor,
    targets_N: Tensor,
    teacher_head: Head,
    teacher_hidden_NG: Tensor,
    kl_weight: float,
    block_tokens: int | None = None,
    gradient_scale: float | None = None,
) -> Tensor:
    """The loss summed over N tokens, scalar float32, to be differentiated once with respect to the student; the teacher is constant.

    The KL divergence is the whole one, the teacher's entropy included. The gradient of a plain head is made in the
    forward pass, while a block's logits are there:

        d sum / d logits[t, v] = p_student[t, v] - (1 - a) * [v == target[t]] - a * p_teacher[t, v]

    Of other heads a block's logits are made again in the backward pass. The teacher computes in its own dtype, autocast or not.
    `gradient_scale` is that of `sum_in_blocks`.
    """
    teacher_head = _keep_ids(teacher_head, head.weight_VH.shape[0])
    if block_tokens is None:
        block_tokens = count_block_tokens(head.weight_VH, product_dtype(head.weight_VH), teacher_head.weight_VH)
    if head.is_plain and torch.is_grad_enabled():
        if hidden_NH.is_cuda:
            run = fuse_in_blocks(differentiate_distillation_at_once, "the loss of distillation")

            def fused_loss(logits_KV: Tensor, tokens: slice) -> Tensor:  # (K,)
                teacher_KU = _logits(teacher_head, teacher_hidden_NG[tokens])
                return run(logits_KV, targets_N[tokens], teacher_KU, kl_weight)

            return sum_in_blocks(head, hidden_NH, fused_loss, block_tokens, False, gradient_scale)

        def block_loss(logits_KV: Tensor, tokens: slice) -> Tensor:  # (K,)
            teacher_KU = _log_probabilities(teacher_head, teacher_hidden_NG[tokens])
            return _differentiate(logits_KV, targets_N[tokens], teacher_KU, kl_weight)

        return sum_in_blocks(head, hidden_NH, block_loss, block_tokens, gradient_scale=gradient_scale)

    def recomputed_loss(hidden_KH: Tensor, targets_K: Tensor, teacher_hidden_KG: Tensor) -> Tensor:  # ()
        student_KV = torch.log_softmax(head.logits(hidden_KH), dim=1)
        teacher_KU = _log_probabilities(teacher_head, teacher_hidden_KG)
        nll_K = -student_KV.gather(1, targets_K[:, None]).squeeze(1)
        kl_K = (teacher_KU.exp() * (teacher_KU - student_KV[:, : teacher_KU.shape[1]])).sum(dim=1)
        return ((1 - kl_weight) * nll_K + kl_weight * kl_K).sum()

    blocks = zip(*(tensor.split(block_tokens) for tensor in (hidden_NH, targets_N, teacher_hidden_NG)), strict=True)
    # With no token there is one empty block, whose sum has a gradient as any other.
    sums: list[Tensor] = [checkpoint(recomputed_loss, *block, use_reentrant=False) for block in blocks]
    return scale_gradient(torch.stack(sums).sum(), gradient_scale)


def count_block_tokens(weight_VH: Tensor, dtype: torch.dtype, teacher_weight_UG: Tensor) -> int:
    """Tokens of a block whose logits of both models take at most 24 MiB on a CPU, 2,560 MiB on a GPU; at least one.

    The student's are in `dtype`, the teacher's in that of its weights.
    """
    if weight_VH.is_cpu:
        return max(1, (_CPU_BLOCK_MIB << 20) // (3 * 4 * weight_VH.shape[0]))
    num_bytes = dtype.itemsize * weight_VH.shape[0] + teacher_weight_UG.element_size() * teacher_weight_UG.shape[0]
    return max(1, (_GPU_BLOCK_MIB << 20) // num_bytes)


def _keep_ids(head: Head, num_ids: int) -> Head:
    """The head without the logits of ids from `num_ids` on."""
    return replace(head, weight_VH=head.weight_VH[:num_ids], bias_V=None if head.bias_V is None else head.bias_V[:num_ids])


@torch.no_grad()
def _logits(head: Head, hidden_KG: Tensor) -> Tensor:
    """A head's logits (K, U), in the dtype of its weights where they are no more than a product, else float32; autocast or not."""
    with torch.autocast(hidden_KG.device.type, enabled=False):
        return hidden_KG.to(head.weight_VH.dtype) @ head.weight_VH.t() if head.is_plain else head.logits(hidden_KG)


@torch.no_grad()
def _log_probabilities(head: Head, hidden_KG: Tensor) -> Tensor:
    """The teacher's log-probabilities (K, U) float32 of the ids that both have."""
    with torch.autocast(hidden_KG.device.type, enabled=False):
        logits_KU = head.logits(hidden_KG)
    return logits_KU.sub_(logits_KU.logsumexp(dim=1, keepdim=True))


def differentiate_distillation_at_once(logits_KV: Tensor, targets_K: Tensor, teacher_KU: Tensor, kl_weight: float) -> Tensor:
    """Loss (K,) as `_differentiate` leaves it, on logits of any dtype (also the teacher's, as they are made), in a form that torch.compile fuses."""
    log_student_KV = torch.log_softmax(logits_KV.float(), dim=1)
    log_teacher_KU = torch.log_softmax(teacher_KU.float(), dim=1)
    teacher_probabilities_KU = log_teacher_KU.exp()
    num_ids, num_shared = logits_KV.shape[1], teacher_KU.shape[1]
    targets_K1 = targets_K[:, None]
    is_target_KV = torch.arange(num_ids, device=logits_KV.device) == targets_K1
    wanted_KV = kl_weight * torch.nn.functional.pad(teacher_probabilities_KU, (0, num_ids - num_shared))
    logits_KV.copy_(log_student_KV.exp() - wanted_KV - (1 - kl_weight) * is_target_KV.float())
    divergence_K = (teacher_probabilities_KU * (log_teacher_KU - log_student_KV[:, :num_shared])).sum(dim=1)
    return kl_weight * divergence_K - (1 - kl_weight) * log_student_KV.gather(1, targets_K1).squeeze(1)


def _differentiate(logits_KV: Tensor, targets_K: Tensor, teacher_KU: Tensor, kl_weight: float) -> Tensor:
    """Loss (K,); leaves its gradient where the student's logits were, and nothing of use where the teacher's were."""
    targets_K1 = targets_K[:, None]
    logits_KV.sub_(logits_KV.amax(dim=1, keepdim=True))
    target_logits_K1 = logits_KV.gather(1, targets_K1)
    shared_KU = logits_KV[:, : teacher_KU.shape[1]]
    teacher_probabilities_KU = teacher_KU.exp()
    ratio_sums_K1 = teacher_KU.sub_(shared_KU).mul_(teacher_probabilities_KU).sum(dim=1, keepdim=True)
    sums_K1 = logits_KV.exp_().sum(dim=1, keepdim=True)
    log_sums_K1 = sums_K1.log()
    logits_KV.div_(sums_K1)  # softmax
    shared_KU.sub_(teacher_probabilities_KU, alpha=kl_weight)
    logits_KV.scatter_add_(1, targets_K1, torch.full_like(target_logits_K1, kl_weight - 1))
    # log p_student = logit - log_sum, and the teacher's probabilities add up to 1.
    loss_K1 = (1 - kl_weight) * (log_sums_K1 - target_logits_K1) + kl_weight * (ratio_sums_K1 + log_sums_K1)
    return loss_K1.squeeze(1)

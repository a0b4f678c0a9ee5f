"""The loss of vanilla knowledge distillation, in blocks of tokens: no tensor of all tokens and the whole vocabulary is ever made.

    loss[t] = (1 - a) * nll[t] + a * KL(p_teacher[t] || p_student[t])        nats, float32

with p the distributions of the next token and a the weight of the KL divergence (arXiv 2410.17215, section 3.1, baseline "Vanilla KD").

Embeddings are padded differently, so the two models may have a different number of logits; an id means the same
token in both. The teacher's distribution is that of the ids that both have, renormalised: its probability on ids that the
student lacks is dropped. The student's is over all its ids in both terms, so that what it gives to padding costs it.

Shapes: K tokens of a block, N of all; V ids of the student, U that both have; H and G widths of student and teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from miniplm.nll import Head, sum_in_blocks

# Float32 values of one buffer of a block, of which there are three: 24 MiB together on a CPU, where they should stay in the
# cache; 1.5 GiB on a GPU, where products of few tokens would spend their time adding to the head's gradient.
_CPU_BLOCK_ELEMENTS = 1 << 21
_BLOCK_ELEMENTS = 1 << 27


def sum_distillation_loss(
    head: Head,
    hidden_NH: Tensor,
    targets_N: Tensor,
    teacher_head: Head,
    teacher_hidden_NG: Tensor,
    kl_weight: float,
    block_tokens: int | None = None,
) -> Tensor:
    """The loss summed over N tokens, scalar float32, to be differentiated once with respect to the student; the teacher is constant.

    The KL divergence is the whole one, the teacher's entropy included. The gradient of a plain head is made in the
    forward pass, while a block's logits are there:

        d sum / d logits[t, v] = p_student[t, v] - (1 - a) * [v == target[t]] - a * p_teacher[t, v]

    Of other heads a block's logits are made again in the backward pass. The teacher computes in its own dtype, autocast or not.
    """
    if block_tokens is None:
        num_elements = _CPU_BLOCK_ELEMENTS if hidden_NH.is_cpu else _BLOCK_ELEMENTS
        block_tokens = max(1, num_elements // head.weight_VH.shape[0])
    if head.is_plain and torch.is_grad_enabled():

        def block_loss(logits_KV: Tensor, tokens: slice) -> Tensor:
            teacher_KU = _log_probabilities(teacher_head, teacher_hidden_NG[tokens], logits_KV.shape[1])
            return _differentiate(logits_KV, targets_N[tokens], teacher_KU, kl_weight)

        return sum_in_blocks(head, hidden_NH, block_loss, block_tokens)

    def recomputed_loss(hidden_KH: Tensor, targets_K: Tensor, teacher_hidden_KG: Tensor) -> Tensor:
        student_KV = torch.log_softmax(head.logits(hidden_KH), dim=1)
        teacher_KU = _log_probabilities(teacher_head, teacher_hidden_KG, student_KV.shape[1])
        nll_K = -student_KV.gather(1, targets_K[:, None]).squeeze(1)
        kl_K = (teacher_KU.exp() * (teacher_KU - student_KV[:, : teacher_KU.shape[1]])).sum(dim=1)
        return ((1 - kl_weight) * nll_K + kl_weight * kl_K).sum()

    blocks = zip(*(tensor.split(block_tokens) for tensor in (hidden_NH, targets_N, teacher_hidden_NG)), strict=True)
    # With no token there is one empty block, whose sum has a gradient as any other.
    sums: list[Tensor] = [checkpoint(recomputed_loss, *block, use_reentrant=False) for block in blocks]
    return torch.stack(sums).sum()


@torch.no_grad()
def _log_probabilities(head: Head, hidden_KG: Tensor, num_student_ids: int) -> Tensor:
    """The teacher's log-probabilities (K, U) float32 of the ids that both have."""
    with torch.autocast(hidden_KG.device.type, enabled=False):
        logits_KU = head.logits(hidden_KG)[:, :num_student_ids]
    return logits_KU.sub_(logits_KU.logsumexp(dim=1, keepdim=True))


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

"""What is minimised: a sum over the scored targets of a micro-batch, which the loop divides by those of the global batch.

Shapes: B sequences, S inputs of each, N scored targets, H and G widths of student and teacher.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from miniplm.models.loading import LoadedModel
from miniplm.models.nll import Head, sum_nll_of_hidden
from miniplm.training.data import MicroBatch
from miniplm.training.distillation_loss import sum_distillation_loss
from miniplm.training.teacher import compile_teacher, run_teacher

# From the student's body and head and a micro-batch on their device to a float32 scalar, differentiable once. With a scale that is
# where the backward pass begins, and its gradient is that of scale * loss: nothing then has to go over the head's gradient again.
LossFunction = Callable[[nn.Module, Head, MicroBatch, float | None], Tensor]


def sum_language_model_loss(body: nn.Module, head: Head, batch: MicroBatch, gradient_scale: float | None = None) -> Tensor:
    """The NLL in nats, summed over the scored targets, scalar float32; logits are made of those only."""
    hidden_BSH = body(input_ids=batch.token_ids_BT[:, :-1], use_cache=False).last_hidden_state
    return sum_nll_of_hidden(head, batch.select(hidden_BSH), batch.targets_N, gradient_scale=gradient_scale)


def make_distillation_loss(teacher: LoadedModel, kl_weight: float, compile: bool = False) -> LossFunction:
    """The loss of `miniplm.training.distillation_loss`, summed over the scored targets; the teacher reads what the student reads.

    With `compile` the teacher runs compiled, for the one shape that a compiled student's micro-batches have.
    """
    if compile:
        teacher = compile_teacher(teacher)

    def sum_loss(body: nn.Module, head: Head, batch: MicroBatch, gradient_scale: float | None = None) -> Tensor:  # ()
        inputs_BS = batch.token_ids_BT[:, :-1]
        # First, so that what it takes on the way is free again when the student's activations are kept.
        teacher_NG = batch.select(run_teacher(teacher, inputs_BS, [max(length - 1, 0) for length in batch.lengths]))
        hidden_NH = batch.select(body(input_ids=inputs_BS, use_cache=False).last_hidden_state)
        return sum_distillation_loss(
            head, hidden_NH, batch.targets_N, teacher.head, teacher_NG, kl_weight, gradient_scale=gradient_scale
        )

    return sum_loss

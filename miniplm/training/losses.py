"""What is minimised: a sum over the scored targets of a micro-batch, which the loop divides by those of the global batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from miniplm.nll import Head, sum_nll_of_hidden
from miniplm.training.data import MicroBatch

# From the student's body and head and a micro-batch on their device to a float32 scalar, differentiable once.
LossFunction = Callable[[nn.Module, Head, MicroBatch], Tensor]


def sum_language_model_loss(body: nn.Module, head: Head, batch: MicroBatch) -> Tensor:
    """The NLL in nats, summed over the scored targets; logits are made of those only."""
    hidden_BSH = body(input_ids=batch.token_ids_BT[:, :-1], use_cache=False).last_hidden_state
    return sum_nll_of_hidden(head, batch.select(hidden_BSH), batch.targets_N)

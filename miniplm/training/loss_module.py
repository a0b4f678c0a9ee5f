"""Model and loss as one module: from a micro-batch to its loss, so that whoever wraps the model sees all that is done with it.

Shapes: B sequences, S inputs of each, H width of the hidden state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from miniplm.models.compilation import CompiledCall
from miniplm.models.loading import split_head
from miniplm.training.data import MicroBatch
from miniplm.training.losses import LossFunction

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LossModule(nn.Module):
    """The sum of a loss over the scored targets of a micro-batch, scalar float32, computed in `dtype` (by autocast, unless float32)."""

    def __init__(self, model: PreTrainedModel, loss_function: LossFunction, dtype: str) -> None:
        super().__init__()
        self.model = model
        self._loss_function = loss_function
        self._dtype = dtype
        self._compiled_body: CompiledCall | None = None

    def compile_body(self) -> None:
        """Compiles the body whole."""
        self._compiled_body = CompiledCall(split_head(self.model)[0], type(self.model).__name__, fixes_shapes=True)

    def compile_layers(self) -> None:
        """Compiles each layer by itself, for models whose weights are gathered a layer at a time."""
        for layer in find_layers(split_head(self.model)[0]):
            layer.forward = CompiledCall(layer.forward, type(layer).__name__)

    def forward(self, batch: MicroBatch, gradient_scale: float | None = None) -> Tensor:
        """The sum, (): the backward pass begins at it, and its gradient is `gradient_scale` times that of the sum.

        Of a micro-batch without a scored target 0, with a gradient of 0: a process without work takes part in what all do."""
        # Asked for each time: a sharded model's weights are there only within its forward pass.
        body, head = split_head(self.model)
        with torch.autocast(batch.token_ids_BT.device.type, dtype=torch.bfloat16, enabled=self._dtype == "bfloat16"):
            if len(batch.scored_N) == 0:
                hidden_BSH = body(input_ids=batch.token_ids_BT[:, :-1], use_cache=False).last_hidden_state
                unused = [hidden_BSH, head.weight_VH, *([] if head.bias_V is None else [head.bias_V])]
                return torch.stack([tensor.flatten()[:1].float().sum() * 0.0 for tensor in unused]).sum()
            run = body if self._compiled_body is None else cast(nn.Module, self._compiled_body)
            return self._loss_function(run, head, batch, gradient_scale)


def find_layers(body: nn.Module) -> list[Any]:
    """The body's repeated layers: its list of modules with the most weights; empty where it has none."""
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda layers: sum(weight.numel() for weight in layers.parameters()), default=[]))

"""How many sequences a GPU takes in a forward and backward pass where the configuration leaves it open: many, as far as they fit.

A pass has costs that do not grow with its tokens: the starts of its kernels, the weights rounded to bfloat16, their gradients
added up. Which sequences share a pass changes a training's numbers by rounding only, so the choice is in no training's id, and a
checkpoint keeps it, so that a resumed training has the same last bits. A CPU's caches want few: there it stays what it always was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from miniplm.config.run import TrainingConfig
from miniplm.models.architectures import count_parameters
from miniplm.models.devices import free_memory, torch_dtype
from miniplm.models.loading import split_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What 6 FLOPs a parameter and token come to in a pass: about a tenth of a second of an H100. At 200M parameters these are 32
# sequences of 1,024 tokens (40, of which 32 divides a batch of 512), which were measured to be a fifth faster than 8.
_PASS_FLOPS = 5e13
# Beyond that no pass gets better.
_MOST_TOKENS = 1 << 16
# Of the free memory: allocators lose some to gaps.
_USABLE_SHARE = 0.85
# The blocks of logits (`nll`, `distillation_loss`) and what is made of them.
_HEAD_BYTES = 3 << 30


def choose_micro_batch_size(
    config: TrainingConfig, model: PreTrainedModel, num_inputs: int, dtype: str, free_bytes: int, num_processes: int = 1
) -> int:
    """Sequences of `num_inputs` tokens in a pass of this model, at least what the configuration resolves to.

    `free_bytes` are free beside the weights, before there are gradients and moments.
    """
    least = config.resolve_micro_batch_size()
    if config.micro_batch_size is not None:
        return least
    tokens = min(_MOST_TOKENS, _PASS_FLOPS / (6 * count_parameters(model)))
    fitting = (_USABLE_SHARE * free_bytes - count_fixed_bytes(model)) / (num_inputs * count_activation_bytes(model, dtype))
    # Each process of a group has its part of a batch.
    most = int(min(tokens / num_inputs, fitting, config.batch_size / num_processes))
    if most <= least:
        return least
    size = max(size for size in range(1, most + 1) if config.batch_size % size == 0)
    # A batch that has no divisor near is dealt out as evenly as it goes.
    return max(least, size if 2 * size > most else -(-config.batch_size // -(-config.batch_size // most)))


def choose_on_device(
    config: TrainingConfig, model: PreTrainedModel, num_inputs: int, dtype: str, device: torch.device, num_processes: int = 1
) -> int:
    """`choose_micro_batch_size` by the memory that is free on a GPU now; on any other device what the configuration resolves to."""
    if device.type != "cuda":
        return config.resolve_micro_batch_size()
    return choose_micro_batch_size(config, model, num_inputs, dtype, free_memory(device), num_processes)


def count_activation_bytes(model: PreTrainedModel, dtype: str) -> int:
    """What a token leaves behind in the body for the backward pass, estimated by the shapes of its weights alone.

    1.6 times what goes into and comes out of its products; the rest is for what stays in float32 between them. torch.compile
    keeps less: 0.7 of this at 200M. Of experts all count, though a token goes to a few.
    """
    body, _ = split_head(model)
    tables = {id(module.weight) for module in body.modules() if isinstance(module, nn.Embedding)}
    widths = sum(
        weight.numel() // (weight.shape[-1] * weight.shape[-2]) * (weight.shape[-1] + weight.shape[-2])
        for weight in body.parameters()
        if weight.dim() >= 2 and id(weight) not in tables
    )
    return 8 * widths * torch_dtype(dtype).itemsize // 5


def count_fixed_bytes(model: PreTrainedModel) -> int:
    """What training takes beside weights and activations: gradients and two moments in float32, weights in bfloat16, the head's blocks."""
    _, head = split_head(model)
    return 14 * count_parameters(model) + 6 * head.weight_VH.numel() + _HEAD_BYTES

"""One optimizer step: the gradient of a global batch, made in micro-batches, clipped, and given to AdamW."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from miniplm.config import TrainingConfig
from miniplm.models.loading import split_head
from miniplm.training.data import collate
from miniplm.training.losses import LossFunction

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StepResult:
    """Mean loss in nats a scored target of the global batch, and the gradient's norm before clipping."""

    loss: float
    gradient_norm: float
    num_tokens: int

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Optimization:
    """A model in training: float32 weights and AdamW, computing in `dtype` (float32 or bfloat16 by autocast)."""

    def __init__(
        self, model: PreTrainedModel, loss_function: LossFunction, config: TrainingConfig, dtype: str, eos_token_id: int
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._body, self._head = split_head(model)
        self._loss_function = loss_function
        self._config = config
        self._dtype = dtype
        self._eos_token_id = eos_token_id

    def take_step(self, sequences: Sequence[NDArray[np.unsignedinteger]], learning_rate: float) -> StepResult:
        """Trains on one global batch. Where loss or gradient is not finite, weights and moments stay as they are.

            loss = sum of NLL over all micro-batches / scored targets of all micro-batches

        so that the size of micro-batches changes rounding only.
        """
        result = self.compute_gradient(sequences)
        if result.is_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        return result

    def compute_gradient(self, sequences: Sequence[NDArray[np.unsignedinteger]]) -> StepResult:
        """Leaves the clipped gradient of the global batch in the parameters. The loss of nothing scored is NaN."""
        size = self._config.resolve_micro_batch_size()
        batches = [collate(sequences[start : start + size], self._eos_token_id) for start in range(0, len(sequences), size)]
        num_scored = sum(int(batch.mask_BS.sum()) for batch in batches)
        self.optimizer.zero_grad(set_to_none=True)
        totals = []
        for batch in batches:
            if not batch.mask_BS.any():
                continue
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._dtype == "bfloat16"):
                total = self._loss_function(self._body, self._head, batch.to(self.device))
            (total / num_scored).backward()
            totals.append(total.detach())
        loss = torch.stack(totals).cpu().double().sum().item() / num_scored if totals else math.nan
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        return StepResult(loss, norm.item(), sum(batch.num_tokens for batch in batches))

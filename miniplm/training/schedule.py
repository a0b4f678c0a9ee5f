"""The learning rate of a step: linear warm-up, then cosine (arXiv 2410.17215, appendix)."""

from __future__ import annotations

import math

from miniplm.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, num_steps: int) -> float:
    """The learning rate of step 1 ... `num_steps`.

        step <= warmup:  peak * step / warmup
        later:           low + (peak - low) * (1 + cos(pi * (step - warmup) / (num_steps - warmup))) / 2

    with low = `min_learning_rate_ratio` * peak, reached at the last step; the first step is not 0.
    """
    peak, warmup = config.learning_rate, config.resolve_warmup_steps(num_steps)
    if step <= warmup:
        return peak * step / warmup
    low = config.min_learning_rate_ratio * peak
    return low + (peak - low) * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup))) / 2

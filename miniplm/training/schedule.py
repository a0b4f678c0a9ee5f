"""The learning rate of a step: linear warm-up, then cosine (arXiv 2410.17215, appendix) or a peak that ends in a line.

The second, warmup-stable-decay (arXiv 2404.06395), reaches its end from any step of the peak, so that one long run
serves several lengths.
"""

from __future__ import annotations

import math

from miniplm.config.run import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, num_steps: int) -> float:
    """The learning rate of step 1 ... `num_steps`.

        step <= warmup:         peak * step / warmup
        cosine:                 low + (peak - low) * (1 + cos(pi * (step - warmup) / (num_steps - warmup))) / 2
        warmup-stable-decay:    peak, and in the last `decay` steps  low + (peak - low) * (num_steps - step) / decay

    with low = `min_learning_rate_ratio` * peak, reached at the last step; the first step is not 0. `decay` is
    `decay_share` of all steps, at least one and at most those after the warm-up.
    """
    peak, warmup = config.learning_rate, config.resolve_warmup_steps(num_steps)
    if step <= warmup:
        return peak * step / warmup
    low = config.min_learning_rate_ratio * peak
    if config.schedule == "warmup-stable-decay":
        decay = min(max(1, round(config.decay_share * num_steps)), num_steps - warmup)
        return peak if step <= num_steps - decay else low + (peak - low) * (num_steps - step) / decay
    return low + (peak - low) * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup))) / 2

"""What training costs in floating-point operations, counted from the parameters (Hoffmann et al., arXiv 2203.15556, appendix F)."""

from __future__ import annotations

from fractions import Fraction

from miniplm.config.run import TrainingConfig, config_as_dict


def training_flops_per_token(num_parameters: int, num_teacher_parameters: int = 0) -> float:
    """FLOPs of training on one token: 6 N, and 2 N_teacher where a teacher of `num_teacher_parameters` runs along.

    2 N a forward pass, twice that a backward pass; the teacher has no backward pass. Embeddings count as parameters, as in the
    published figures; attention scores are left out, as they are there.
    """
    return 6.0 * num_parameters + 2.0 * num_teacher_parameters


def matched_share(num_parameters: int, num_teacher_parameters: int) -> Fraction:
    """The share of the steps without a teacher that cost as much with one: 3 N / (3 N + N_teacher) (arXiv 2410.17215, section 3.1).

    That is 6 N of the 6 N + 2 N_teacher FLOPs of a token.
    """
    return Fraction(3 * num_parameters, 3 * num_parameters + num_teacher_parameters)


def match_training(training: TrainingConfig, num_parameters: int, num_teacher_parameters: int) -> TrainingConfig:
    """The training with a teacher that costs as much as `training` without: fewer steps or epochs, all else as it is.

    Steps are rounded down, to at least 1; a warm-up that was longer takes all of them.
    """
    share = matched_share(num_parameters, num_teacher_parameters)
    if training.steps is None:
        assert training.epochs is not None
        return training.model_copy(update={"epochs": float(Fraction(training.epochs) * share)})
    steps = max(1, int(training.steps * share))
    warmup_steps = None if training.warmup_steps is None else min(training.warmup_steps, steps)
    return TrainingConfig.model_validate(config_as_dict(training) | {"steps": steps, "warmup_steps": warmup_steps})


def count_unmatched_steps(training: TrainingConfig, num_steps: int, num_parameters: int, num_teacher_parameters: int) -> int:
    """Steps of `training` as it was before it was matched, and then had `num_steps`; of epochs, to the nearest."""
    return training.steps or round(num_steps / matched_share(num_parameters, num_teacher_parameters))

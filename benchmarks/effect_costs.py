"""What each arm of the experiment on the effect costs in floating-point operations, all counted: scores, teachers in and before training, training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.effect_arms import Arm
from miniplm.training.flops import training_flops_per_token

Row = dict[str, Any]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations; the teacher's are those of scoring, of being tuned, of running along and of writing text."""

    teacher: float = 0.0
    reference: float = 0.0
    proxy: float = 0.0
    training: float = 0.0

    @property
    def in_all(self) -> float:
        return self.teacher + self.reference + self.proxy + self.training


def count_scores(facts: Row) -> Flops:
    """Of the scores that a row describes: 2 N a token that is scored, 6 N one of training."""
    num_tokens = facts["num_candidate_tokens"]
    scored, tuned = facts.get("teacher_tokens", num_tokens), facts.get("tuning_tokens", 0)
    return Flops(
        teacher=facts["teacher_parameters"] * (2.0 * scored + 6.0 * tuned),
        reference=facts["reference_parameters"] * (6.0 * facts["reference_tokens"] + 2.0 * num_tokens),
        proxy=facts.get("proxy_flops", 0.0),
    )


def count_student(arm: Arm, row: Row, scores: Row | None) -> Flops:
    """Of a student with all that it needed; `scores` describes those of the arm, where it goes by some."""
    of_scores = Flops() if scores is None or not arm.needs_scores else count_scores(scores)
    has_reference = arm.rule != "perplexity"
    of_teacher = 2.0 * row.get("teacher_parameters", 0) * (row.get("tokens_along", 0) + row.get("tokens_written", 0))
    return Flops(
        teacher=of_scores.teacher + of_teacher,
        reference=of_scores.reference if has_reference else 0.0,
        proxy=of_scores.proxy,
        training=training_flops_per_token(row["num_parameters"]) * row["num_tokens"],
    )


def match_steps(
    steps: int, tokens_per_step: float, num_parameters: int, scores: Flops, num_along_parameters: int = 0, written: float = 0.0
) -> int:
    """So many steps as cost, with `written` FLOPs before them and a teacher of `num_along_parameters` along, what `scores` and `steps` without a
    teacher cost; at least one.
    """
    budget = scores.in_all + steps * tokens_per_step * training_flops_per_token(num_parameters)
    per_step = tokens_per_step * training_flops_per_token(num_parameters, num_along_parameters)
    return max(1, int((budget - written) / per_step))

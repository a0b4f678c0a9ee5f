"""The methods of training a student: their names, and what is said and decided by a name alone. How each trains is in `training/methods/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal["miniplm", "pretrain", "vanilla-kd", "seqkd", "miniplm+vanilla-kd"]


@dataclass(frozen=True)
class MethodFacts:
    """`summary` completes "the student is", `card` "the student was trained by"; the flags say what a method takes.

    `uses_selection`: its text is the selection; `has_teacher_along`: the teacher's forward pass is part of each step;
    `has_written_text`: the teacher writes text before it starts.
    """

    summary: str
    card: str
    uses_selection: bool = False
    has_teacher_along: bool = False
    has_written_text: bool = False


# In the order in which they are to be told of, those on the selection first.
METHOD_FACTS: dict[str, MethodFacts] = {
    "miniplm": MethodFacts(
        "trained on the selection",
        "language modelling on the sequences that Difference Sampling kept (MiniPLM, arXiv 2410.17215)",
        uses_selection=True,
    ),
    "miniplm+vanilla-kd": MethodFacts(
        "trained on the selection; the teacher runs along, and the student learns its distributions too, as with vanilla-kd",
        "knowledge distillation of the teacher's token distributions on the sequences that Difference Sampling kept",
        uses_selection=True,
        has_teacher_along=True,
    ),
    "pretrain": MethodFacts(
        "the baseline: trained on sequences drawn at random from the candidates, as many tokens as the selection has",
        "language modelling on as many tokens as the selection has, drawn at random from the candidates (a baseline)",
    ),
    "vanilla-kd": MethodFacts(
        "trained on the same text as pretrain; the teacher runs along, and the student learns the teacher's distribution over "
        "the next token beside the token itself: (1 - a) cross entropy + a KL(teacher || student)",
        "knowledge distillation of the teacher's token distributions on text drawn at random (a baseline)",
        has_teacher_along=True,
    ),
    "seqkd": MethodFacts(
        "trained on the same text as pretrain, the end of each sequence written anew by the teacher",
        "language modelling on sequences whose ends the teacher wrote (sequence-level distillation, a baseline)",
        has_written_text=True,
    ),
}
BASELINE_METHOD = "pretrain"
assert set(METHOD_FACTS) == set(get_args(Method)), "every method has its facts"


def has_teacher_along(method: str) -> bool:
    """Whether the teacher runs along in the training of a student, also one of another version of this program."""
    return method in METHOD_FACTS and METHOD_FACTS[method].has_teacher_along

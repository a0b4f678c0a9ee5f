"""Which student of a run another one is held against."""

from __future__ import annotations

from typing import Any

from miniplm.run_record import RunRecord

BASELINE_METHOD = "pretrain"
# Methods whose training text is the selection, the most to be told of first.
SELECTION_METHODS = ("miniplm", "miniplm+vanilla-kd")


def rank_baselines(record: RunRecord, student_name: str, same_tokens: bool = True) -> list[str]:
    """The `pretrain` students that a student can be held against, the one most like it first; none for such a student itself.

    With `same_tokens` only those with its tokenizer: losses in nats a token compare within one tokenizer only. Like: of the
    same tokenizer, of the same architecture, then of the same seed, then trained on about as many tokens.
    """
    student = record.students[student_name]
    if student.method == BASELINE_METHOD:
        return []
    settings = record.find_student_settings(student_name)

    def has_other_tokens(name: str) -> bool:
        return bool(record.find_student_settings(name).get("tokenizer") != settings.get("tokenizer"))

    def distance(name: str) -> tuple[bool, bool, bool, int]:
        other = record.students[name]
        other_seed = _find_seed(record.find_student_settings(name))
        return (
            has_other_tokens(name),
            other.architecture != student.architecture,
            other_seed != _find_seed(settings),
            abs(other.num_tokens - student.num_tokens),
        )

    baselines = [
        name
        for name, other in record.students.items()
        if other.method == BASELINE_METHOD and not (same_tokens and has_other_tokens(name))
    ]
    return sorted(baselines, key=distance)


def _find_seed(settings: dict[str, Any]) -> Any:
    return settings.get("training", {}).get("seed")

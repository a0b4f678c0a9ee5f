"""With which student of a run another one is compared."""

from __future__ import annotations

from typing import Any

from miniplm.config.methods import BASELINE_METHOD, METHOD_FACTS
from miniplm.records.run import RunRecord

# Methods whose training text is the selection, the most to be told of first.
SELECTION_METHODS = tuple(name for name, facts in METHOD_FACTS.items() if facts.uses_selection)


def find_baselines(record: RunRecord) -> dict[str, str]:
    """The evaluated student on random data with which each evaluated student is compared, in all outputs; those without one are left out.

    It is the one most alike. One with other tokens is taken only where there is no other: then bits a byte compare, nats a token do not.
    """
    evaluated = [name for name, student in record.students.items() if student.evaluation is not None]
    ranked = {name: [other for other in rank_baselines(record, name) if other in evaluated] for name in evaluated}
    return {name: others[0] for name, others in ranked.items() if others}


def rank_baselines(record: RunRecord, student_name: str) -> list[str]:
    """The `pretrain` students with which a student can be compared, the one most like it first; none for such a student itself.

    Like: of the same tokenizer, of the same architecture, then of the same seed, then trained on about as many tokens.
    """
    student = record.students[student_name]
    if student.method == BASELINE_METHOD:
        return []
    seed = _find_seed(record.find_student_settings(student_name))

    def distance(name: str) -> tuple[bool, bool, bool, int]:
        other = record.students[name]
        return (
            find_tokenizer(record, name) != find_tokenizer(record, student_name),
            other.architecture != student.architecture,
            _find_seed(record.find_student_settings(name)) != seed,
            abs(other.num_tokens - student.num_tokens),
        )

    return sorted((name for name, other in record.students.items() if other.method == BASELINE_METHOD), key=distance)


def find_tokenizer(record: RunRecord, student_name: str) -> Any:
    """What the configuration names as a student's tokenizer: its own, or the corpus's."""
    return record.find_student_settings(student_name).get("tokenizer") or record.config.get("corpus", {}).get("tokenizer")


def _find_seed(settings: dict[str, Any]) -> Any:
    return settings.get("training", {}).get("seed")

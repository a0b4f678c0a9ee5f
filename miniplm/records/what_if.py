"""What selections would keep that nobody has made: the record of `select --what-if`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from miniplm.records.manifests import Record


class Outcome(Record):
    """A selection of the grid: the fields in which it differs from the others, and what it would keep.

    `threshold` is the least ranking key that is kept, None where pools have one each (`thresholds`, by the domains of a pool joined by ", ").
    `tokens` are the kept ones by domain. `num_shared` of its sequences are in the current selection too. Where the rule cannot be met `problem`
    says why, and there are no counts.
    """

    settings: dict[str, Any]
    num_selected: int = 0
    num_selected_tokens: int = 0
    threshold: float | None = None
    thresholds: dict[str, float] = Field(default_factory=dict)
    tokens: dict[str, int] = Field(default_factory=dict)
    num_shared: int = 0
    left_out: dict[str, int] = Field(default_factory=dict)
    problem: str = ""


class WhatIf(Record):
    """A grid of selections over the scores of two models, against the run's own selection `current`, be it made or not.

    `tokens` are those of all candidates by domain.
    """

    grid: str
    corpus_id: str
    teacher_id: str
    reference_id: str
    selection_id: str
    num_candidates: int
    tokens: dict[str, int]
    current: Outcome
    outcomes: tuple[Outcome, ...]
    seconds: float

    def share(self, outcome: Outcome, domain: str) -> float:
        """The share of a domain in the tokens that a selection keeps."""
        return outcome.tokens.get(domain, 0) / outcome.num_selected_tokens if outcome.num_selected_tokens else 0.0

    def overlap(self, outcome: Outcome) -> float:
        """The share of the current selection's sequences that another one keeps too."""
        return outcome.num_shared / self.current.num_selected if self.current.num_selected else 0.0

"""What a selection writes down of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from miniplm.config.selection import name_budget
from miniplm.records.manifests import Record


class SelectionShardEntry(Record):
    """The kept sequences of one candidate shard, or the kept documents that begin in it."""

    shard_index: int
    corpus_id: str
    digest: str
    num_bytes: int
    num_sequences: int
    num_tokens: int
    # With the repetitions by which a budget is filled; None where nothing is repeated.
    num_uses: int | None = Field(None, exclude_if=lambda value: value is None)
    num_used_tokens: int | None = Field(None, exclude_if=lambda value: value is None)

    def count_pass(self, number: int) -> tuple[int, int]:
        """Rows and tokens of a pass over what is kept, from 1: those that are used at least so often."""
        if self.num_uses is None or self.num_used_tokens is None:
            return (self.num_sequences, self.num_tokens) if number == 1 else (0, 0)
        # All are used equally often, or some once more.
        return (
            min(self.num_sequences, max(0, self.num_uses - (number - 1) * self.num_sequences)),
            min(self.num_tokens, max(0, self.num_used_tokens - (number - 1) * self.num_tokens)),
        )


class DomainSelection(Record):
    """What was kept of one domain, and quantiles of its difference scores (at 0, .1, .25, .5, .75, .9, 1), nats a token.

    `threshold` is the lowest difference score that was kept of it; None where nothing was.
    """

    num_candidates: int
    num_selected: int
    num_candidate_tokens: int
    num_selected_tokens: int
    mean_teacher_nll: float
    mean_reference_nll: float
    difference_score_quantiles: tuple[float, ...]
    threshold: float | None = None


class PoolSelection(Record):
    """Domains that were ranked together: what could be kept, what was, and the lowest ranking key of that (None where nothing was)."""

    domains: tuple[str, ...]
    num_ranked: int
    num_ranked_tokens: int
    num_selected: int
    num_selected_tokens: int
    threshold: float | None


class SelectionManifest(Record):
    """A selection; the same inputs give the same bytes.

    `threshold` is the lowest difference score that was kept, None where each domain has one of its own (`within`), or something
    else was ranked. `rule` is all that steered it beside ratio, score and within, with the digests of the files of `signals`;
    `left_out` counts the candidates that were not ranked, by reason; `pools` says what was ranked together. These are left out
    where they are empty, as they are by the published rule.
    """

    selection_id: str
    corpus_id: str
    teacher_id: str
    reference_id: str
    ratio: float | None
    score: str
    within: Literal["corpus", "domain"] = "corpus"
    rule: dict[str, Any] = Field({}, exclude_if=lambda value: not value)
    num_candidates: int
    num_selected: int
    num_selected_tokens: int
    num_negative: int
    left_out: dict[str, int] = Field({}, exclude_if=lambda value: not value)
    threshold: float | None
    domains: dict[str, DomainSelection]
    pools: tuple[PoolSelection, ...] = Field((), exclude_if=lambda value: not value)
    shards: tuple[SelectionShardEntry, ...]

    @property
    def num_used_tokens(self) -> int:
        """The tokens of what was kept, those of a row as often as it is used: what an epoch of a training goes over, and an export holds."""
        more = [shard.num_used_tokens - shard.num_tokens for shard in self.shards if shard.num_used_tokens is not None]
        return self.num_selected_tokens + sum(more)

    def list_passes(self) -> list[int]:
        """1, 2, ... up to how often the kept that are used most often are."""
        most = max((-(-shard.num_uses // shard.num_sequences) for shard in self.shards if shard.num_uses), default=1)
        return list(range(1, most + 1))

    @property
    def unit(self) -> Literal["sequence", "document"]:
        """What was ranked, so what counts of candidates and kept are of."""
        return "document" if self.rule.get("unit") == "document" else "sequence"

    @property
    def units(self) -> str:
        """The same for people who read a count."""
        return f"{self.unit}s"

    @property
    def is_expression(self) -> bool:
        """Whether the score that was ranked is an SQL expression."""
        return self.score not in ("mean", "sum")

    @property
    def ranks_by_difference(self) -> bool:
        """Whether what was ranked is the difference score itself, so that a threshold of it tells what was kept."""
        return not self.is_expression and "temperature" not in self.rule

    @property
    def score_unit(self) -> str:
        """The unit of difference scores, which beside an expression are a token's."""
        return f"nats a {self.unit}" if self.score == "sum" else "nats a token"

    @property
    def title(self) -> str:
        """How much was asked for, for people, as `SelectionConfig.title`."""
        return name_budget(self.ratio, self.rule.get("tokens"), self.rule.get("threshold"), self.within)

    @property
    def kept_share(self) -> float:
        """The ratio where that was asked for, else which share of the candidates was kept."""
        return self.num_selected / max(1, self.num_candidates) if self.ratio is None else self.ratio

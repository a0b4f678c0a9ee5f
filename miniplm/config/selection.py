"""What `selection:` of a configuration may say: by which score candidates are ranked, how many are kept, and of what mix (docs/selection.md)."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from miniplm.config.fields import LARGEST_SEED, Section, Url

# A column of an expression: what DuckDB takes without quotes.
ColumnName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
SignalKey = Literal["sequence_id", "document_id", "text_digest"]
# What an expression sees of a candidate beside signals; NLLs a scored token, unless the name ends in _sum.
EXPRESSION_COLUMNS = (
    *("sequence_id", "domain", "num_tokens", "num_scored_tokens", "teacher_nll", "reference_nll", "difference_score"),
    *("teacher_nll_sum", "reference_nll_sum"),
)
# The fields that every id of a selection has told of since the first; the others enter it where they are not at their default.
PUBLISHED_FIELDS = frozenset({"ratio", "score", "within", "seed"})


def _read_count(value: Any) -> Any:
    """5e9, also where YAML makes it text, as the whole number that it is."""
    if isinstance(value, (str, float)) and not isinstance(value, bool):
        try:
            number = Decimal(str(value))
        except InvalidOperation:
            return value
        if number.is_finite() and number == number.to_integral_value():
            return int(number)
    return value


Count = Annotated[int, BeforeValidator(_read_count)]


class DomainShare(Section):
    """Between which shares of the kept tokens a domain has to lie."""

    at_least: float = Field(0.0, ge=0, le=1, description="least share of the token budget")
    at_most: float = Field(1.0, ge=0, le=1, description="largest share of the token budget")

    @model_validator(mode="after")
    def _check_order(self) -> DomainShare:
        if self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least:g} is more than at_most {self.at_most:g}")
        return self


# Of two kinds: what is said of a wrong one is said of the kind that it is.
MixShare = Annotated[
    Annotated[float, Tag("share")] | Annotated[DomainShare, Tag("bounds")],
    Discriminator(lambda value: "bounds" if isinstance(value, (dict, DomainShare)) else "share"),
]


class SignalConfig(Section):
    """Scores from outside, by sequence or document: a column for `selection.score` and `selection.where`."""

    name: ColumnName = Field(description="name of the column in expressions")
    path: Url = Field(description="Parquet files, local or by URL, with wildcards")
    key: SignalKey = Field(
        description="column by which rows are found: sequence_id or document_id of the corpus, or text_digest, the SHA-256 of a document's "
        "text in UTF-8 as hexadecimal digits. Of documents a sequence has the mean over its scored tokens"
    )
    column: str = Field(min_length=1, description="column with the value: a number, neither NaN nor infinite")
    missing: float | None = Field(None, description="the value of what has no row; null: a missing row is an error")


class SelectionConfig(Section):
    """Difference Sampling: the floor(ratio * candidates) sequences with the largest difference score, and ways to steer it."""

    ratio: float | None = Field(
        0.5,
        gt=0,
        le=1,
        description="kept share of the candidate sequences, in (0, 1]; null where `tokens` or `threshold` says how many are kept. With "
        "`mix` it is a share of their tokens",
    )
    score: str = Field(
        "mean",
        min_length=1,
        description="what is ranked, higher first. mean: difference of the NLLs a scored token; sum: a sequence; else an SQL expression over "
        "the columns of docs/selection.md and `signals`",
    )
    within: Literal["corpus", "domain"] = Field(
        "corpus",
        description="corpus: the best of all candidates (the paper's), which changes the mix of domains; domain: the best of each domain, "
        "floor(ratio * its candidates), which keeps the mix",
    )
    seed: int = Field(
        0,
        ge=0,
        le=LARGEST_SEED,
        description="seed of the random draw that the `pretrain` baseline trains on, and of the noise of `temperature`",
    )
    # What follows is left out while it is at its default, so that runs without it have the record that they had.
    unit: Literal["sequence", "document"] = Field(
        "sequence",
        exclude_if=lambda value: value == "sequence",
        description="what is ranked and kept: packed sequences (the paper's); or whole documents by their own score, the kept ones packed anew",
    )
    tokens: Count | None = Field(
        None,
        gt=0,
        exclude_if=lambda value: value is None,
        description="budget: the best candidates whose tokens together are at most so many, e.g. 5e9; in place of `ratio`",
    )
    repetitions: int = Field(
        1,
        ge=1,
        le=1000,
        exclude_if=lambda value: value == 1,
        description="how often what is kept may be used to fill `tokens`, where that is more than there is: all of it in whole passes, then the "
        "best of it once more. An epoch of a training and an export hold it so often",
    )
    threshold: float | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="least score that is kept, in the unit of `score`; in place of `ratio`",
    )
    mix: dict[str, MixShare] = Field(
        {},
        exclude_if=lambda value: not value,
        description="shares of the kept tokens by domain: a number, or bounds {at_least: 0.05, at_most: 0.3}; domains that are not named share "
        "the rest, the best of all of them",
    )
    temperature: float = Field(
        0.0,
        ge=0,
        le=1e9,
        exclude_if=lambda value: value == 0,
        description="0: the best are kept; above: kept at random in proportion to exp(score / temperature), by `seed`, in the unit of `score`",
    )
    where: str | None = Field(
        None,
        min_length=1,
        exclude_if=lambda value: value is None,
        description="SQL condition; a candidate that does not meet it is left out before anything is ranked",
    )
    duplicates: Literal["keep", "best"] = Field(
        "keep",
        exclude_if=lambda value: value == "keep",
        description="keep: copies are candidates like any other, and are counted; best: of documents that are copies of each other, exactly or "
        "nearly, only the one with the best score is ranked, and sequences that say what better ones say are left out",
    )
    contamination: Literal["report", "drop"] = Field(
        "report",
        exclude_if=lambda value: value == "report",
        description="report: candidates that share 13 words in a row with evaluation.tasks or held-out text are counted and shown; drop: they are "
        "left out before anything is ranked",
    )
    signals: tuple[SignalConfig, ...] = Field(
        (), exclude_if=lambda value: not value, description="scores from outside, as columns of `score` and `where`"
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_ratio_to_others(cls, data: Any) -> Any:
        if isinstance(data, dict) and "ratio" not in data and (data.get("tokens") is not None or data.get("threshold") is not None):
            return {**data, "ratio": None}
        return data

    @model_validator(mode="after")
    def _check_rule(self) -> SelectionConfig:
        given = {name: value for name in ("ratio", "tokens", "threshold") if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            named = " and ".join(f"{name} {value:g}" for name, value in given.items()) or "none of them"
            raise ValueError(
                f"exactly one of ratio, tokens and threshold says how much is kept, here {named}; set the others to null"
            )
        if self.threshold is not None:
            for name, why in (
                ("mix", "shares need a budget"),
                ("temperature", "nothing is drawn"),
                ("within", "it cuts every domain alike"),
            ):
                if getattr(self, name) not in ({}, 0, "corpus"):
                    raise ValueError(f"{name} says nothing beside threshold ({why}); use ratio or tokens, or leave {name} out")
        if self.repetitions > 1 and (self.tokens is None or self.mix):
            raise ValueError(
                f"repetitions {self.repetitions} fill a budget: give tokens with it, and leave mix out"
                if self.mix
                else f"repetitions {self.repetitions} fill a budget: give tokens with it, e.g. 5e9"
            )
        if self.mix and self.within == "domain":
            raise ValueError("mix and within: domain both say what the mix of domains is; leave one of them out")
        shares = {domain: share for domain, share in self.mix.items() if not isinstance(share, DomainShare)}
        if wrong := {domain: share for domain, share in shares.items() if not 0 <= share <= 1}:
            domain, share = next(iter(wrong.items()))
            raise ValueError(f"mix of {domain!r} is {share:g}; a share of the kept tokens is in [0, 1]")
        floors = sum(Decimal(repr(share)) for share, _ in self.bounds.values())
        if floors > 1:
            raise ValueError(f"the least shares of mix add up to {floors:g}, more than 1: {self._list_floors()}")
        if self.signals and not (self.is_expression or self.where):
            raise ValueError("signals are columns of score and where; name them in one of these, or leave signals out")
        names = [*EXPRESSION_COLUMNS, *(signal.name for signal in self.signals)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"signals: the name {repeated[0]!r} is taken; the columns are {', '.join(dict.fromkeys(names))}")
        return self

    def _list_floors(self) -> str:
        return ", ".join(f"{domain} {floor:g}" for domain, (floor, _) in self.bounds.items() if floor)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Least and largest share of the kept tokens of each domain of `mix`."""
        return {
            domain: (share.at_least, share.at_most) if isinstance(share, DomainShare) else (share, share)
            for domain, share in self.mix.items()
        }

    @property
    def difference(self) -> Literal["mean", "sum"]:
        """In which unit the difference score is: a token or a sequence; an expression sees it a token."""
        return "sum" if self.score == "sum" else "mean"

    @property
    def is_expression(self) -> bool:
        return self.score not in ("mean", "sum")

    @property
    def has_expressions(self) -> bool:
        return self.is_expression or self.where is not None

    @property
    def ranks_by_difference(self) -> bool:
        """Whether the ranking key is the difference score itself."""
        return not self.is_expression and self.temperature == 0

    @property
    def excludes_ids(self) -> bool:
        """Whether something is left out for what else the corpus or the texts of evaluation hold."""
        return self.duplicates != "keep" or self.contamination != "report"

    @property
    def has_token_budget(self) -> bool:
        """Whether what is kept is a number of tokens, not of sequences."""
        return self.tokens is not None or bool(self.mix)

    def expect_share(self, num_candidate_tokens: int) -> float:
        """Which share of the candidates' tokens is about to be kept, before anything is scored; all of them where a least score says it."""
        if self.ratio is not None:
            return self.ratio
        return 1.0 if self.tokens is None else min(1.0, self.tokens / max(1, num_candidate_tokens))

    def describe_rule(self) -> dict[str, Any]:
        """All that steers the selection beside ratio, score and within, as it is written; empty where it is the paper's."""
        rule = self.model_dump(mode="json", exclude_defaults=True, exclude=set(PUBLISHED_FIELDS))
        return {**rule, "seed": self.seed} if self.temperature else rule

    @property
    def name(self) -> str:
        """A few words for ids and titles, e.g. `mean-0.5-by-domain`, `sql-5000000-tokens-mix`; letters, digits, `.` and `-` only."""
        if self.tokens is not None:
            budget = f"{self.tokens}-tokens"
        else:
            budget = f"{self.ratio:g}" if self.ratio is not None else f"above-{self.threshold:g}".replace("+", "")
        steered = [field for field in self.describe_rule() if field not in ("unit", "tokens", "threshold", "signals", "seed")]
        within = [] if self.within == "corpus" else [f"by-{self.within}"]
        units = ["document"] if self.unit == "document" else []
        return "-".join(["sql" if self.is_expression else self.score, budget, *units, *within, *steered])

    @property
    def title(self) -> str:
        """How much is kept, for people: `ratio 0.5 of each domain`, `5,000,000,000 tokens`, `scores of at least 0.2`."""
        return name_budget(self.ratio, self.tokens, self.threshold, self.within)


def name_budget(ratio: float | None, tokens: int | None, threshold: float | None, within: str) -> str:
    """How much is kept, in a few words."""
    if threshold is not None:
        return f"scores of at least {threshold:g}"
    asked = f"{tokens:,} tokens" if tokens is not None else f"ratio {ratio:g}"
    if within == "domain":
        return f"{asked} of each domain" if tokens is None else f"{asked} in the mix of the candidates"
    return asked

"""What is known of a corpus by a label of its documents, and how a selection stands to it."""

from __future__ import annotations

from miniplm.records.manifests import Record

# Of documents without the label.
UNKNOWN = "unknown"


class TruthManifest(Record):
    """The labels of a corpus's own documents under one field, as the file beside this has them for its candidate sequences.

    `kinds` counts records by label; those without one are `unknown`, and so are those of `gone_files`, which were not there any more.
    """

    corpus_id: str
    field: str
    digest: str
    kinds: dict[str, int]
    gone_files: tuple[str, ...] = ()


class KindRow(Record):
    """The candidate sequences of one kind: all of whose documents bear one label, or, `is_mixed`, documents of several.

    `mean_difference_score` is in the `score_unit` of the summary.
    """

    kind: str
    is_clean: bool
    is_mixed: bool
    num_candidates: int
    num_selected: int
    num_candidate_tokens: int
    num_selected_tokens: int
    mean_difference_score: float


class RatioRow(Record):
    """What the run's rule would keep at a ratio: `precision` is the clean share of the kept tokens, `recall` the kept share of the clean ones."""

    ratio: float
    precision: float | None
    recall: float | None


class TruthSummary(Record):
    """A selection held against the labels.

    Precision and recall count tokens of labelled documents, also within sequences that hold several: clean tokens kept / labelled tokens
    kept, and clean tokens kept / clean tokens. `clean_share` is what random text of any size would have for precision. All are None where
    no document bears a label of `clean`. `records` counts the records of the sources by label. `score_unit` is that of difference scores.
    """

    field: str
    clean: tuple[str, ...]
    records: dict[str, int]
    gone_files: tuple[str, ...]
    kinds: tuple[KindRow, ...]
    clean_share: float | None
    precision: float | None
    recall: float | None
    score_unit: str = "nats a token"
    ratio: float
    ratios: tuple[RatioRow, ...]

    @property
    def num_records(self) -> int:
        return sum(self.records.values())

    @property
    def unmet_clean(self) -> list[str]:
        """Labels of `clean` that no record bears: a slip, or text that is not there."""
        return [label for label in self.clean if label not in self.records]

    @property
    def num_unknown(self) -> int:
        return self.records.get(UNKNOWN, 0)

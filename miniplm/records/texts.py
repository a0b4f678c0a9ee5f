"""Which text a model is measured on."""

from __future__ import annotations

from miniplm.records.manifests import Evaluation, Record, Split


class MeasuredText(Record):
    """The held-out split of a run's corpus; or, as split `candidate`, all of a corpus that is made of text from elsewhere."""

    corpus_id: str
    split: Split = "heldout"

    @classmethod
    def of(cls, evaluation: Evaluation) -> MeasuredText:
        return cls(corpus_id=evaluation.corpus_id, split=evaluation.split)

    @property
    def elsewhere(self) -> str | None:
        """The id of text from elsewhere, below which what is measured on it lies; None for a corpus's own split."""
        return None if self.split == "heldout" else self.corpus_id

    @property
    def title(self) -> str:
        """How people are told of it."""
        return "the corpus's own held-out split" if self.split == "heldout" else "held-out text from elsewhere (evaluation.sources)"


class OverlapRecord(Record):
    """Which distinct texts of held-out text from elsewhere are documents of a corpus too, by digest, with the split they are in there.

    It is of the files that were read for `corpus_id` alone, not for those it extends. `num_texts` are all that were looked for; `first` is
    where the first of the shared ones lies in the held-out text; `gone_files` of the corpus were not there any more, and not looked at.
    """

    corpus_id: str
    num_texts: int
    shared: dict[str, Split]
    first: str = ""
    gone_files: tuple[str, ...] = ()


class TextDigestsManifest(Record):
    """The digests of the texts of a corpus's documents: the digest of their file, how many, and the source files that were gone."""

    corpus_id: str
    digest: str
    num_documents: int
    gone_files: tuple[str, ...] = ()

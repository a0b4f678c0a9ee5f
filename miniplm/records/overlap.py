"""Records of what a corpus shares: with itself (copies), and with the texts that students are measured on (contamination)."""

from __future__ import annotations

from pydantic import Field

from miniplm.records.manifests import Record


class FingerprintEntry(Record):
    """The fingerprints of a shard's documents, of the file `shard_digest`; a row a document."""

    version: str
    shard_digest: str
    digest: str
    num_bytes: int
    num_documents: int


class CopiesManifest(Record):
    """The documents among the candidates of a corpus that have a copy there.

    `num_groups` groups of documents that are alike hold `num_exact` documents with a copy token for token and `num_near` others. Of documents
    that share the hashes of too many others some pairs are not compared: `num_crowded` of them.
    """

    version: str
    corpus_id: str
    fingerprints: str
    digest: str
    num_documents: int
    num_tokens: int
    num_groups: int
    num_exact: int
    num_near: int
    num_crowded: int
    seconds: float


class ContaminationSource(Record):
    """Texts that were looked for: `num_short` of the items have no text of 13 words, and cannot be found."""

    name: str
    num_items: int
    num_words: int
    num_short: int


class OpenDocument(Record):
    """A document that goes on in a later shard: the ends of its `texts` in `sequence_ids` so far, together its last words."""

    document_id: int
    sequence_ids: tuple[int, ...]
    texts: tuple[str, ...]


class ContaminationShard(Record):
    """What was found in a candidate shard: `num_matches` runs of words in `num_sequences` sequences, those of earlier shards that runs begin in too.

    `open_documents` are those that go on after it, in it or before.
    """

    shard_index: int
    shard_digest: str
    digest: str
    num_sequences: int
    num_matches: int
    open_documents: tuple[OpenDocument, ...] = Field((), exclude_if=lambda documents: not documents)


class ContaminationManifest(Record):
    """All candidates of a corpus looked through for texts of evaluation, which have `num_ngrams` different runs of 13 words."""

    contamination_id: str
    corpus_id: str
    sources: tuple[ContaminationSource, ...]
    num_ngrams: int
    shards: tuple[ContaminationShard, ...]
    seconds: float


class CopiedShare(Record):
    """The documents in a set of sequences that have a copy in it: `num_exact` token for token, `num_near` others that are alike.

    `repeated_tokens` of its `num_tokens` are of documents beyond the longest of each group: what would be read once more.
    """

    num_exact: int
    num_near: int
    repeated_tokens: int
    num_tokens: int


class CopiedGroup(Record):
    """Documents that are copies of each other, of which some were kept: `text` is the beginning of one, document `document_id`."""

    document_id: int
    num_documents: int
    num_kept: int
    text: str


class CopiesSummary(Record):
    """Copies among what a selection kept, against all candidates; `groups` are those with most kept documents."""

    kept: CopiedShare
    candidates: CopiedShare
    num_crowded: int
    groups: tuple[CopiedGroup, ...]


class FoundSource(Record):
    """Of the items of a source: how many were found among the candidates, and in what was kept."""

    name: str
    num_items: int
    num_short: int
    num_found: int
    num_found_kept: int


class FoundText(Record):
    """Words of an item that a sequence has too: `text` as the sequence has them, `item_text` the beginning of the item."""

    source: str
    place: str
    sequence_id: int
    document_id: int
    num_words: int
    is_kept: bool
    text: str
    item_text: str


class ContaminationSummary(Record):
    """Texts of evaluation in what a selection kept, against all candidates; `texts` are the longest, those that were kept first."""

    contamination_id: str
    sources: tuple[FoundSource, ...]
    num_sequences: int
    num_kept: int
    texts: tuple[FoundText, ...]


class OverlapSummary(Record):
    """What a selection shares with itself and with the texts of evaluation, kept beside it. None is what nobody looked for.

    `problem` says why the texts of evaluation, those of `tried_id`, could not be read.
    """

    selection_id: str
    copies: CopiesSummary | None = None
    contamination: ContaminationSummary | None = None
    problem: str = ""
    tried_id: str = ""

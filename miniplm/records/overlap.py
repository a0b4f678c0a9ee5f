"""Records of what a corpus shares: with itself (copies), and with the texts that students are measured on (contamination)."""

from __future__ import annotations

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


class ContaminationShard(Record):
    """What was found in a candidate shard: `num_matches` runs of words in `num_sequences` sequences."""

    shard_index: int
    shard_digest: str
    digest: str
    num_sequences: int
    num_matches: int


class ContaminationManifest(Record):
    """All candidates of a corpus looked through for texts of evaluation, which have `num_ngrams` different runs of 13 words."""

    contamination_id: str
    corpus_id: str
    sources: tuple[ContaminationSource, ...]
    num_ngrams: int
    shards: tuple[ContaminationShard, ...]
    seconds: float

"""What is recorded of a derived set: the recipe that names it, its shards, and the whole."""

from __future__ import annotations

from typing import Any, Literal

from miniplm.records.manifests import DomainCounts, Record, TokenizerEntry
from miniplm.storage.root import digest_content

# Raised when a change of the code changes the sequences of an unchanged recipe.
CONVERSION_VERSION = 2
GENERATION_VERSION = 1
DOCUMENTS_VERSION = 1


class ConversionRecipe(Record):
    """All that decides the sequences of a set that is encoded anew, by content; known before the set is made.

    `data` says which sequences are converted, as their method or split describes them; `encoding` is a digest of all that
    decides the token ids of a text under the new tokenizer.
    """

    kind: Literal["conversion"] = "conversion"
    version: int = CONVERSION_VERSION
    packing_version: int
    data: dict[str, Any]
    source_vocabulary: str
    source_eos_token_id: int
    vocabulary: str
    encoding: str
    vocab_size: int
    eos_token_id: int
    sequence_length: int

    @property
    def derived_id(self) -> str:
        return f"conversion-{digest_content(self.as_json())}"


class GenerationRecipe(Record):
    """All that decides the sequences that a teacher goes on with, by content; known before the set is made.

    `data` says which sequences the teacher goes on with; `dtype` is the one that the teacher computes in.
    """

    kind: Literal["generation"] = "generation"
    version: int = GENERATION_VERSION
    data: dict[str, Any]
    teacher_id: str
    dtype: str
    vocab_size: int
    sequence_length: int
    prompt_tokens: int
    temperature: float
    top_p: float
    seed: int
    sequences_per_shard: int

    @property
    def derived_id(self) -> str:
        return f"generation-{digest_content(self.as_json())}"


class DocumentsRecipe(Record):
    """All that decides the sequences that kept documents are packed in, by content; known before the set is made.

    `data` says which documents these are, by the digests of the selection that kept them and of the sequences that they lie in.
    """

    kind: Literal["documents"] = "documents"
    version: int = DOCUMENTS_VERSION
    packing_version: int
    data: dict[str, Any]
    vocabulary: str
    vocab_size: int
    eos_token_id: int
    sequence_length: int

    @property
    def derived_id(self) -> str:
        return f"documents-{digest_content(self.as_json())}"


class SourcePart(Record):
    """Sequences that a derived shard is made of: the file they are in and which of its rows, by their digests."""

    shard_digest: str
    rows_digest: str
    num_sequences: int


class DerivedShard(Record):
    """The manifest of a derived shard; the shard is done when this and the file's digest agree.

    num_sequences and num_tokens == the sums over `domains`. `counts` are described where they are made: in `conversion`,
    `generation` and `documents`.
    """

    derived_id: str
    shard_index: int
    sources: tuple[SourcePart, ...]
    digest: str
    num_bytes: int
    num_sequences: int
    num_tokens: int
    domains: dict[str, DomainCounts]
    counts: dict[str, int]
    versions: dict[str, str]

    @property
    def title(self) -> str:
        """How people are told of it."""
        return f"shard {self.shard_index} of derived set {self.derived_id}"


class DerivedManifest(Record):
    """A derived set; it is complete when this is at the storage root. `domains` and `counts` are the sums over its shards.

    `tokenizer` is the one that its token ids are of; a conversion has a copy of it beside its shards.
    """

    derived_id: str
    recipe: dict[str, Any]
    tokenizer: TokenizerEntry
    sequence_length: int
    shards: tuple[DerivedShard, ...]
    domains: dict[str, DomainCounts]
    counts: dict[str, int]
    versions: dict[str, str]

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_sequences(self) -> int:
        return sum(shard.num_sequences for shard in self.shards)

"""What an export writes down: each part as it is made, and the whole as its manifest."""

from __future__ import annotations

from miniplm.config.exports import ExportFormat
from miniplm.records.manifests import Record, TokenizerEntry

# Goes into the ids of exports: raise it whenever the same selection would be written otherwise.
EXPORT_VERSION = 1
MANIFEST = "manifest.json"


class ExportedFile(Record):
    """A file at the target, by its path below it."""

    name: str
    digest: str
    num_bytes: int


class DomainExport(Record):
    """What was written of a domain; tokens are those in the files, of text those of the corpus."""

    num_rows: int = 0
    num_tokens: int = 0


class ExportedPart(Record):
    """One part's files and what is in them. `content_digest` is of the rows (texts, or token ids) as they were given to the writer.

    `num_source_tokens`: tokens of the kept sequences that went into it, EOS included.
    """

    export_id: str
    part_index: int
    files: tuple[ExportedFile, ...]
    num_rows: int
    num_tokens: int
    num_eos: int
    num_source_tokens: int
    text_bytes: int
    content_digest: str
    counts: dict[str, int]
    domains: dict[str, DomainExport]


class ExportManifest(Record):
    """A finished export, every file of which was read back. There is no time in it: the same export has the same manifest.

    `rows` says what a row is. Of documents `num_parts` are not whole: the rest of them was not kept. `num_tokens` are those in the
    files, of text those of the corpus, EOS left out; `num_eos` those of them that are EOS, `num_eos_added` those that no document had
    there in the corpus. `num_source_tokens` are those of the selection. `notes`: what a reader has to know, in words.
    """

    export_id: str
    format: ExportFormat
    rows: str
    corpus_id: str
    selection_id: str
    teacher_id: str
    reference_id: str
    tokenizer: TokenizerEntry
    token_dtype: str | None
    bos_token: str | None
    shard_tokens: int
    num_files: int
    num_rows: int
    num_whole: int
    num_parts: int
    num_tokens: int
    num_eos: int
    num_eos_added: int
    num_source_tokens: int
    text_bytes: int
    num_bytes: int
    counts: dict[str, int]
    domains: dict[str, DomainExport]
    first_row: str
    last_row: str
    notes: tuple[str, ...]
    files: tuple[ExportedFile, ...]
    versions: dict[str, str]

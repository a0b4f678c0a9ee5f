"""The id of a corpus: made of what its sources hold and of how they are cut, never of path strings."""

from __future__ import annotations

from dataclasses import dataclass

from miniplm.config import CorpusConfig, SourceConfig
from miniplm.packing import PACKING_VERSION
from miniplm.sources.digests import digest_source_files
from miniplm.sources.files import SourceFile, find_source_files
from miniplm.storage import Storage, digest_content
from miniplm.tokenization import CorpusTokenizer, load_tokenizer


@dataclass(frozen=True)
class PlannedFile:
    """A source file with the source it belongs to and the digest of its stored bytes."""

    file: SourceFile
    source: SourceConfig
    digest: str


@dataclass(frozen=True)
class CorpusPlan:
    """What a preparation will read and with what; `files` are in the order of the documents."""

    corpus_id: str
    files: tuple[PlannedFile, ...]
    tokenizer: CorpusTokenizer


def resolve_corpus_id(storage: Storage, config: CorpusConfig) -> str:
    """The id of the corpus that `config` describes, e.g. `c-1a2b3c4d5e6f`, prepared or not.

    Source files are read once, for their digests. Raises `SourceError` for a source that matches nothing or
    cannot be read, `TokenizerError` for the tokenizer.
    """
    return plan_corpus(storage, config).corpus_id


def plan_corpus(storage: Storage, config: CorpusConfig) -> CorpusPlan:
    """The id, files and tokenizer of a corpus; raises what `resolve_corpus_id` raises."""
    # The sources first: they are looked up faster than a tokenizer is loaded.
    found = [(source, find_source_files(source)) for source in config.sources]
    tokenizer = load_tokenizer(config.tokenizer, config.eos_token, config.trust_remote_code)
    digests = iter(digest_source_files(storage, [file for _, files in found for file in files]))
    planned = [[PlannedFile(file, source, next(digests)) for file in files] for source, files in found]
    content = {
        "sources": [_describe_source(source, files) for (source, _), files in zip(found, planned, strict=True)],
        "tokenizer": tokenizer.encoding_digest,
        "eos_token_id": tokenizer.eos_token_id,
        "vocab_size": tokenizer.entry.vocab_size,
        "sequence_length": config.sequence_length,
        "sequences_per_shard": config.sequences_per_shard,
        "splits": config.splits.model_dump(mode="json"),
        "seed": config.seed,
        "packing_version": PACKING_VERSION,
    }
    return CorpusPlan(f"c-{digest_content(content)}", tuple(file for files in planned for file in files), tokenizer)


def _describe_source(source: SourceConfig, files: list[PlannedFile]) -> dict[str, object]:
    return {
        "format": source.format,
        "text": None if source.format == "text" else source.text,
        "domain": source.domain,
        "domain_name": source.domain_name,
        # The same bytes are read otherwise under another ending.
        "files": [[planned.digest, planned.file.compression] for planned in files],
    }

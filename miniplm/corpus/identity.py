"""The id of a corpus: made of what its sources hold and of how they are cut, never of path strings.

The id of an extension is made of its parent's and of what its new files hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from miniplm.config.run import CorpusConfig, SourceConfig
from miniplm.corpus.growth import find_newest_corpus
from miniplm.corpus.packing import PACKING_VERSION
from miniplm.errors import SourceError, list_offenders
from miniplm.records.manifests import CorpusManifest, LeftOut
from miniplm.sources.compression import Compression
from miniplm.sources.digests import digest_source_files, recognise_source_files
from miniplm.sources.files import MOST_NAMES, SourceFile, find_source, locate_source
from miniplm.sources.names import show_name
from miniplm.storage.root import Storage, digest_content
from miniplm.tokenizers.tokenizer import CorpusTokenizer, TokenizerIdentity, load_tokenizer


@dataclass(frozen=True)
class PlannedFile:
    """A source file with the source it belongs to, the digest of its stored bytes and how these are compressed."""

    file: SourceFile
    source: SourceConfig
    digest: str
    compression: Compression | None

    @property
    def content_bytes(self) -> int:
        """About how many bytes its records take once they are unpacked: text is compressed to a quarter."""
        return self.file.num_bytes * (4 if self.compression is not None or self.source.format == "parquet" else 1)

    @property
    def reading(self) -> str:
        """A digest of how the bytes become documents."""
        return digest_content([_describe_reading(self.source), self.compression])


@dataclass(frozen=True)
class CorpusPlan:
    """What a preparation will read and with what.

    `files` are in the order of the documents, of an extension its own only; `found` are all that the sources name.
    `left_out` is what the sources' patterns came across and did not take. `newest` is, with `corpus.extend`, the corpus that was prepared last: this one, or the one that this one extends.
    """

    corpus_id: str
    files: tuple[PlannedFile, ...]
    config: CorpusConfig
    settings_digest: str
    found: tuple[PlannedFile, ...]
    left_out: tuple[LeftOut, ...]
    newest: CorpusManifest | None = None

    @cached_property
    def tokenizer(self) -> CorpusTokenizer:
        """The tokenizer that the documents are encoded with."""
        return load_tokenizer(self.config.tokenizer, self.config.eos_token, self.config.trust_remote_code)

    @property
    def parent(self) -> CorpusManifest | None:
        """The corpus that this one extends."""
        return None if self.newest is None or self.newest.corpus_id == self.corpus_id else self.newest


def resolve_corpus_id(storage: Storage, config: CorpusConfig) -> str:
    """The id of the corpus that `config` describes, e.g. `c-1a2b3c4d5e6f`, prepared or not.

    Source files are read once, for their digests. Raises `SourceError` for a source that matches nothing or cannot
    be read, `TokenizerError` for the tokenizer, and with `corpus.extend` what `list_new_files` and
    `find_newest_corpus` raise.
    """
    return plan_corpus(storage, config).corpus_id


def plan_corpus(storage: Storage, config: CorpusConfig, known: TokenizerIdentity | None = None) -> CorpusPlan:
    """The id, files and tokenizer of a corpus, which is loaded unless it is `known`; raises what `resolve_corpus_id` raises.

    With `corpus.extend`, where a corpus of the same sources and settings was prepared before: that corpus if no file
    is new to it, else an extension of it by the new files.
    """
    # The sources first: they are looked up faster than a tokenizer is loaded.
    found = [(source, find_source(source, storage)) for source in config.sources]
    left_out = tuple(entry for _, files in found for entry in files.left_out)
    tokenizer = known or load_tokenizer(config.tokenizer, config.eos_token, config.trust_remote_code).identity
    planned = _read_files(storage, [(source, file) for source, files in found for file in files.files])
    settings = {
        "tokenizer": tokenizer.encoding_digest,
        "eos_token_id": tokenizer.entry.eos_token_id,
        "vocab_size": tokenizer.entry.vocab_size,
        "sequence_length": config.sequence_length,
        "sequences_per_shard": config.sequences_per_shard,
        "splits": config.splits.model_dump(mode="json"),
        "seed": config.seed,
        "packing_version": PACKING_VERSION,
    }
    # Where the sources lie is in here, though in no id: folders whose files look alike are not one growing corpus.
    places = [{"place": locate_source(source), **_describe_reading(source)} for source in config.sources]
    settings_digest = digest_content({"sources": places, **settings}, length=16)
    files = tuple(planned)
    newest = find_newest_corpus(storage, settings_digest) if config.extend else None
    if newest is None or not _agrees(newest, config, tokenizer):
        sources = [_describe_source(source, [file for file in files if file.source is source]) for source in config.sources]
        corpus_id = f"c-{digest_content({'sources': sources, **settings})}"
        return CorpusPlan(corpus_id, files, config, settings_digest, files, left_out)
    new = list_new_files(newest, files)
    left_out += _list_copies(newest, new, files)
    if not new:
        return CorpusPlan(newest.corpus_id, files, config, settings_digest, files, left_out, newest)
    content = {"parent": newest.corpus_id, "files": [[file.digest, file.reading] for file in new]}
    return CorpusPlan(f"c-{digest_content(content)}", new, config, settings_digest, files, left_out, newest)


def find_planned_files(storage: Storage, config: CorpusConfig) -> list[PlannedFile]:
    """The files that the sources name now, with the digests of their bytes. Raises `SourceError`."""
    return _read_files(storage, [(source, file) for source in config.sources for file in find_source(source, storage).files])


def index_by_content(found: Iterable[PlannedFile]) -> dict[tuple[str, str], PlannedFile]:
    """Files by the digests of their bytes and of how they are read; also by the bytes alone, as older manifests have it."""
    by_content: dict[tuple[str, str], PlannedFile] = {}
    for planned in found:
        by_content.setdefault((planned.digest, planned.reading), planned)
        by_content.setdefault((planned.digest, ""), planned)
    return by_content


def _read_files(storage: Storage, files: list[tuple[SourceConfig, SourceFile]]) -> list[PlannedFile]:
    digests = digest_source_files(storage, [file for _, file in files])
    # Parquet is compressed inside, or not at all.
    plain = [file for source, file in files if source.format != "parquet"]
    compressions = dict(zip(map(id, plain), recognise_source_files(storage, plain), strict=True))
    return [
        PlannedFile(file, source, digest, compressions.get(id(file))) for (source, file), digest in zip(files, digests, strict=True)
    ]


def list_new_files(corpus: CorpusManifest, files: tuple[PlannedFile, ...]) -> tuple[PlannedFile, ...]:
    """The files whose bytes are not in a corpus yet, in their order, each content once.

    A file is known by its bytes and by how they are read (format, fields, compression). So one that was renamed or
    moved is not new, one that is gone changes nothing, and a copy of a file that is in, or of another new one, is
    not added: it cannot be told from a renamed one. Raises `SourceError` where a file has other bytes than the
    corpus took from the same path.
    """
    known = {(entry.digest, entry.reading) for entry in corpus.sources}
    places = {(entry.path, entry.reading) for entry in corpus.sources}
    new: dict[tuple[str, str], PlannedFile] = {}
    changed = []
    for planned in files:
        # Older manifests do not say how a file was read: always as the settings say, which are the same.
        if (planned.digest, planned.reading) in known or (planned.digest, "") in known:
            continue
        if (planned.file.path, planned.reading) in places or (planned.file.path, "") in places:
            changed.append(planned.file.path)
        new.setdefault((planned.digest, planned.reading), planned)
    if changed:
        raise SourceError(
            f"changed since corpus {corpus.corpus_id} was prepared: {list_offenders(changed)}. With corpus.extend a corpus takes in "
            "new files only, and what it took from a file stays in it. Put the file back as it was and give the changed text a new "
            "file name, or set corpus.extend=false once, which makes the corpus anew of the files found and has all of it scored again"
        )
    return tuple(new.values())


def _list_copies(corpus: CorpusManifest, new: tuple[PlannedFile, ...], files: tuple[PlannedFile, ...]) -> tuple[LeftOut, ...]:
    """The files that a growing corpus does not take in under their names, by source, since it holds what is in them."""
    taken = {entry.path for entry in corpus.sources} | {planned.file.path for planned in new}
    copies: dict[str, list[str]] = {}
    for planned in files:
        if planned.file.path not in taken:
            copies.setdefault(show_name(planned.source.path), []).append(planned.file.path)
    return tuple(
        LeftOut(source=source, reason="its content is in the corpus already", num_files=len(paths), names=tuple(paths[:MOST_NAMES]))
        for source, paths in copies.items()
    )


def _agrees(manifest: CorpusManifest, config: CorpusConfig, tokenizer: TokenizerIdentity) -> bool:
    """Whether a corpus can be of these settings; what it was found by is only a hint."""
    ours, its = tokenizer.entry, manifest.tokenizer
    same_tokenizer = (ours.digest, ours.vocab_size, ours.eos_token_id) == (its.digest, its.vocab_size, its.eos_token_id)
    return same_tokenizer and manifest.sequence_length == config.sequence_length


def _describe_reading(source: SourceConfig) -> dict[str, Any]:
    return {
        "format": source.format,
        "text": None if source.format == "text" else source.text,
        "domain": source.domain,
        "domain_name": source.domain_name,
    }


def _describe_source(source: SourceConfig, files: list[PlannedFile]) -> dict[str, object]:
    return {
        **_describe_reading(source),
        "files": [[planned.digest, planned.compression] for planned in files],
    }

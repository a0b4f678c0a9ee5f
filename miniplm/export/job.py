"""One export, known from content before anything of it exists: what names it, the tokenizers, how a part is made."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from miniplm.config.exports import SEQUENCE_FORMATS, ExportConfig
from miniplm.corpus.reader import load_corpus_tokenizer
from miniplm.errors import ConfigError
from miniplm.export.formats import FORMATS
from miniplm.export.formats.base import FileFacts, Format
from miniplm.export.parts import PartPlan, PartSequences
from miniplm.export.records import EXPORT_VERSION, DomainExport, ExportedFile, ExportedPart
from miniplm.export.rows import Row, RowMaker
from miniplm.export.shards import ScoredDocuments, find_scored_documents
from miniplm.export.target import ExportTarget
from miniplm.progress import Progress, ProgressCallback
from miniplm.records.manifests import CorpusManifest, TokenizerEntry
from miniplm.records.selections import SelectionManifest
from miniplm.storage.root import Storage, digest_content, digest_file
from miniplm.tokenizers.tokenizer import CorpusTokenizer, load_tokenizer

_MOST_UINT16_IDS = 1 << 16


class ExportJob:
    """What is to be exported and how. Raises `ConfigError` or `TokenizerError` where the tokenizer or a token of it cannot be used."""

    def __init__(
        self,
        storage: Storage,
        corpus: CorpusManifest,
        selection: SelectionManifest,
        config: ExportConfig,
        trust_remote_code: bool = False,
    ) -> None:
        self.storage, self.corpus, self.selection, self.config = storage, corpus, selection, config
        self._trust_remote_code = trust_remote_code
        self.format: Format = FORMATS[config.format]
        self.own = None if config.tokenizer is None else load_tokenizer(config.tokenizer, config.eos_token, field="eos_token")
        self.bos_token_id = self._find_bos()

    @cached_property
    def source(self) -> CorpusTokenizer:
        """The corpus's tokenizer."""
        return load_corpus_tokenizer(self.storage, self.corpus.corpus_id, self._trust_remote_code, only_decodes=True)

    @property
    def tokenizer(self) -> TokenizerEntry:
        """The tokenizer that the files' ids are of."""
        return self.corpus.tokenizer if self.own is None else self.own.entry

    @property
    def name(self) -> str:
        """How people know this piece of work."""
        return f"export {self.config.format}"

    @property
    def of_documents(self) -> bool:
        """Whether documents are restored; else the sequences are rows as they are."""
        return self.config.format not in SEQUENCE_FORMATS or self.packs_anew

    @property
    def packs_anew(self) -> bool:
        """Whether rows are sequences, but not those that were scored: documents are packed, of another tokenizer or of a selection by documents."""
        return self.config.format in SEQUENCE_FORMATS and (self.own is not None or self.selection.unit == "document")

    @property
    def num_shard_tokens(self) -> int:
        if self.config.format != "nanochat":
            return self.config.num_shard_tokens
        # It trains on all files but the last, so one alone would be no training data.
        return max(1, min(self.config.num_shard_tokens, self.selection.num_selected_tokens // 2))

    @cached_property
    def facts(self) -> FileFacts:
        vocab_size = self.tokenizer.vocab_size
        return FileFacts(
            dtype=self.format.dtypes[vocab_size > _MOST_UINT16_IDS],
            tokenizer_name=self.tokenizer.name,
            vocab_size=vocab_size,
            eos_token_id=self.tokenizer.eos_token_id,
            compression=self.config.compression,
            with_scores=not self.of_documents,
            with_mask=self.config.loss_mask,
        )

    @cached_property
    def scored_documents(self) -> ScoredDocuments | None:
        """The scores of documents, for formats that have columns for them."""
        if not self.config.has_scores or self.selection.unit == "document":
            return None
        return find_scored_documents(self.storage, self.corpus, self.selection)

    @cached_property
    def export_id(self) -> str:
        """Named by all that decides the files' bytes, and not by where they go."""
        content = [
            EXPORT_VERSION,
            self.corpus.corpus_id,
            self.selection.selection_id,
            [shard.digest for shard in self.selection.shards],
            self.config.format,
            self.config.compression,
            self.num_shard_tokens,
            None if self.own is None else [self.own.encoding_digest, self.own.eos_token_id],
            self.bos_token_id,
        ]
        if self.config.loss_mask:
            content.append("loss mask")
        if self.scored_documents is not None:
            content.append(self.scored_documents.digests)
        return f"{self.config.format}-{digest_content(content)}"

    def make_part(
        self, target: ExportTarget, plan: PartPlan, part_index: int, num_parts: int, on_progress: ProgressCallback
    ) -> ExportedPart:
        """Writes a part's files aside at the target, then its record; one that is there is left as it is."""
        found = target.find_part(self.export_id, part_index)
        if found is not None:
            on_progress(Progress(self.name, plan.num_tokens, plan.num_tokens, "tokens"))
            return found
        names = self.format.list_files(part_index, num_parts, self.config.compression)
        if self.config.loss_mask:
            names += self.format.list_masks(part_index)
        maker, tally = RowMaker(self.corpus, self.source), PartTally(self.config.holds_text, self.tokenizer.eos_token_id)
        with target.writing(names[0]), tempfile.TemporaryDirectory(prefix="part-", dir=target.open_folder()) as folder:
            paths = [Path(folder) / f"{index}-{name.rsplit('/', 1)[-1]}" for index, name in enumerate(names)]
            with self.format.open(paths, self.facts) as writer:
                for row in self._list_rows(
                    maker, PartSequences(self.storage, self.corpus, self.selection, plan, self.scored_documents)
                ):
                    writer.add(row)
                    tally.add(row)
                    on_progress(Progress(self.name, min(tally.num_source_tokens, plan.num_tokens), plan.num_tokens, "tokens"))
            files = []
            target.require_open(self.export_id)
            for name, path in zip(names, paths, strict=True):
                files.append(ExportedFile(name=name, digest=digest_file(path), num_bytes=path.stat().st_size))
                target.put(name, path)
        num_source_tokens = tally.num_source_tokens + maker.counts["ends_without_text"]
        part = tally.describe(self.export_id, part_index, tuple(files), num_source_tokens, dict(maker.counts))
        target.save_part(part)
        return part

    def _list_rows(self, maker: RowMaker, sequences: PartSequences) -> Iterator[Row]:
        if self.config.holds_text:
            return maker.list_texts(sequences)
        if not self.of_documents:
            return maker.list_sequences(sequences)
        if self.packs_anew:
            return maker.list_packed(sequences, self.own)
        return maker.list_token_ids(sequences, self.tokenizer.eos_token_id, self.bos_token_id, self.own)

    def _find_bos(self) -> int | None:
        if self.config.bos_token is None:
            return None
        tokenizer = self.source if self.own is None else self.own
        token_id = tokenizer.vocabulary.get(self.config.bos_token)
        if token_id is None:
            raise ConfigError(
                f"bos_token {self.config.bos_token!r} is not in the vocabulary of tokenizer {tokenizer.entry.name!r} "
                f"({tokenizer.entry.vocab_size:,} ids); give a token that it has"
            )
        return token_id


class PartTally:
    """Counts and a digest of rows: of those that are written, and again of those that are read back."""

    def __init__(self, holds_text: bool, eos_token_id: int) -> None:
        self._holds_text, self._eos_token_id = holds_text, eos_token_id
        self._sha = hashlib.sha256()
        self.num_rows = self.num_tokens = self.num_eos = self.num_source_tokens = 0
        self._domains: dict[str, list[int]] = {}

    def add(self, row: Row) -> None:
        self.num_source_tokens += row.num_source_tokens
        num_tokens = self.add_content(row.text if self._holds_text else row.token_ids)
        if self._holds_text:
            num_tokens = row.facts["token_end"] - row.facts["token_start"]
            self.num_tokens += num_tokens
        tally = self._domains.setdefault(row.domain, [0, 0])
        tally[0] += 1
        tally[1] += num_tokens

    def add_content(self, content: Any) -> int:
        """Takes a text or token ids; the number of tokens, 0 of a text."""
        self.num_rows += 1
        if isinstance(content, str):
            data = content.encode()
            self._sha.update(len(data).to_bytes(8, "little") + data)
            return 0
        ids = np.ascontiguousarray(content, dtype="<u4")
        self._sha.update(len(ids).to_bytes(8, "little"))
        self._sha.update(ids.data)
        self.num_tokens += len(ids)
        self.num_eos += int(np.count_nonzero(ids == self._eos_token_id))
        return len(ids)

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha.hexdigest()}"

    def describe(
        self, export_id: str, part_index: int, files: tuple[ExportedFile, ...], num_source_tokens: int, counts: dict[str, int]
    ) -> ExportedPart:
        return ExportedPart(
            export_id=export_id,
            part_index=part_index,
            files=files,
            num_rows=self.num_rows,
            num_tokens=self.num_tokens,
            num_eos=self.num_eos,
            num_source_tokens=num_source_tokens,
            text_bytes=counts.pop("text_bytes"),
            content_digest=self.digest,
            counts=counts,
            domains={
                name: DomainExport(num_rows=rows, num_tokens=tokens) for name, (rows, tokens) in sorted(self._domains.items())
            },
        )

"""Prepares a corpus: documents in, sequences in shards out, at the speed of the tokenizer and in bounded memory.

A preparation that was killed goes on from its last closed shard and ends with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from miniplm import __version__, layout
from miniplm.artifacts import CorpusManifest, ShardEntry, SourceEntry, Split
from miniplm.config import CorpusConfig
from miniplm.corpus.assembly import SplitAssembly
from miniplm.corpus.identity import CorpusPlan, PlannedFile, plan_corpus
from miniplm.corpus.quarantine import Quarantine
from miniplm.corpus.reader import find_corpus, load_corpus_tokenizer
from miniplm.corpus.shards import OpenShard
from miniplm.corpus.state import PreparationState, has_shards, load_state
from miniplm.errors import CorpusError
from miniplm.locks import exclusive
from miniplm.packing import SentenceEnds
from miniplm.progress import Progress, ProgressCallback, ignore_progress
from miniplm.sources.files import DamagedSourceError
from miniplm.sources.reading import read_records
from miniplm.sources.records import Document, Record, Rejection, make_excerpt
from miniplm.splits import assign_split
from miniplm.storage import Storage, digest_file
from miniplm.tokenization import CorpusTokenizer, TokenIds

# Texts tokenised together: enough for many cores, little enough to hold several times over.
_BATCH_BYTES = 4 << 20
_BATCH_RECORDS = 1000

_SPLITS: tuple[Split, ...] = ("candidate", "reference", "heldout")


def prepare_corpus(storage: Storage, config: CorpusConfig, on_progress: ProgressCallback = ignore_progress) -> CorpusManifest:
    """The manifest of the corpus that `config` describes, which is prepared if it is not there whole.

    Raises `SourceError` for a source that matches nothing, cannot be read or holds no usable document,
    `TokenizerError` for the tokenizer, `CorpusError` where the splits leave no candidate, `BusyError` where
    another process prepares the same corpus. Progress counts the bytes of the source files as they are stored.
    """
    plan = plan_corpus(storage, config)
    manifest = _find_whole_corpus(storage, plan.corpus_id)
    state = layout.corpus_preparation(plan.corpus_id)
    if manifest is not None and not storage.exists(state):
        _mend_tokenizer(storage, config, plan)
        return manifest
    with exclusive(storage, layout.corpus_folder(plan.corpus_id), f"corpus {plan.corpus_id}"):
        # Another process may have finished it between the look and the lock.
        manifest = _find_whole_corpus(storage, plan.corpus_id)
        if manifest is not None:
            storage.delete(state)  # killed at the very end, it may be left
            _mend_tokenizer(storage, config, plan)
            return manifest
        storage.delete_temporary_files(layout.corpus_folder(plan.corpus_id))
        storage.delete(layout.corpus_manifest(plan.corpus_id))
        try:
            return _Preparation(storage, config, plan, on_progress).run()
        except (DamagedSourceError, CorpusError):
            # The id is that of the faulty files or settings: what was made under it is of no use once they are mended.
            storage.delete(layout.corpus_folder(plan.corpus_id))
            raise


def _find_whole_corpus(storage: Storage, corpus_id: str) -> CorpusManifest | None:
    manifest = find_corpus(storage, corpus_id)
    return manifest if manifest is not None and has_shards(storage, manifest.shards) else None


def _write_tokenizer(storage: Storage, corpus_id: str, tokenizer: CorpusTokenizer) -> None:
    with tempfile.TemporaryDirectory(prefix="miniplm-") as folder:
        tokenizer.save(Path(folder))
        # Files only: some tokenizers come with a folder of further chat templates, of no use for documents.
        for path in sorted(path for path in Path(folder).iterdir() if path.is_file()):
            storage.write_bytes(f"{layout.corpus_tokenizer(corpus_id)}/{path.name}", path.read_bytes())


def _mend_tokenizer(storage: Storage, config: CorpusConfig, plan: CorpusPlan) -> None:
    """Writes a prepared corpus' copy of its tokenizer again where it is gone or damaged."""
    try:
        load_corpus_tokenizer(storage, plan.corpus_id, config.trust_remote_code)
    except CorpusError:
        storage.delete(layout.corpus_tokenizer(plan.corpus_id))
        _write_tokenizer(storage, plan.corpus_id, plan.tokenizer)


@dataclass(frozen=True)
class _FileEnd:
    """All records of a file have been read."""

    planned: PlannedFile
    first_document_id: int
    num_records: int


@dataclass(frozen=True)
class _Batch:
    """Records in order; `needed` are those that are documents still to be packed, with their splits and token ids."""

    items: list[Record | _FileEnd]
    needed: dict[int, Split]
    token_ids: Future[list[TokenIds]]


class _Preparation:
    """One preparation from its state, or from nothing, to the manifest."""

    def __init__(self, storage: Storage, config: CorpusConfig, plan: CorpusPlan, on_progress: ProgressCallback) -> None:
        self._storage = storage
        self._config = config
        self._plan = plan
        self._on_progress = on_progress
        self._versions = _read_versions()
        state = load_state(storage, plan.corpus_id, self._versions)
        if state is None and storage.is_local:
            # Nothing that is there can be gone on from; leftovers of other versions would only lie about. Where there
            # are no locks they may be the work of another process, and are written over with the same bytes instead.
            storage.delete(layout.corpus_folder(plan.corpus_id))
        self._sources = _keep_sources(state)
        self._shards = list(state.shards) if state else []
        self._first_document_id = state.first_document_id if state else 0
        self._quarantine = (
            Quarantine(storage, plan.corpus_id, state.num_records_checked, state.rejected, state.num_quarantine_files)
            if state
            else Quarantine(storage, plan.corpus_id)
        )
        ends = SentenceEnds(plan.tokenizer)
        entry = plan.tokenizer.entry
        self._assemblies: dict[Split, SplitAssembly] = {
            split: SplitAssembly(
                split,
                ends,
                entry.vocab_size,
                entry.eos_token_id,
                config.sequence_length,
                config.sequences_per_shard,
                self._close_shard,
                state.splits[split] if state else None,
            )
            for split in _SPLITS
        }
        # The record that is being taken in: those before it are done with, as far as rejections go.
        self._document_id = self._first_document_id
        self._num_bytes_read = 0
        self._num_documents = 0
        self._num_tokens = 0

    def run(self) -> CorpusManifest:
        for batch in self._tokenise(self._read_batches()):
            token_ids = dict(zip(batch.needed, batch.token_ids.result(), strict=True))
            for item in batch.items:
                if isinstance(item, _FileEnd):
                    self._end_file(item)
                else:
                    self._document_id = item.document_id
                    self._take(item, batch.needed.get(item.document_id), token_ids.get(item.document_id))
            self._report()
        num_records = sum(source.num_records for source in self._sources)
        self._document_id = num_records
        self._check_usable(num_records)
        for split in _SPLITS:
            self._assemblies[split].finish(num_records)
        self._quarantine.flush()
        return self._publish_manifest(num_records)

    def _take(self, record: Record, split: Split | None, token_ids: TokenIds | None) -> None:
        if isinstance(record, Rejection):
            self._quarantine.add(record)
            return
        self._num_documents += 1
        if split is None or token_ids is None:
            return  # its sequences lie in closed shards, or in the packers that the state gave back
        if not len(token_ids):
            message = "the tokenizer makes no token of the text"
            self._quarantine.add(Rejection(record.document_id, record.origin, "no_tokens", message, make_excerpt(record.text)))
            return
        self._num_tokens += len(token_ids) + 1
        self._assemblies[split].add_document(record, token_ids)

    def _end_file(self, end: _FileEnd) -> None:
        file = end.planned.file
        file.check_unchanged()
        self._sources.append(
            SourceEntry(
                path=file.path,
                digest=end.planned.digest,
                num_bytes=file.num_bytes,
                num_records=end.num_records,
                first_document_id=end.first_document_id,
            )
        )

    def _read_batches(self) -> Iterator[list[Record | _FileEnd]]:
        items: list[Record | _FileEnd] = []
        num_bytes = 0
        for item in self._read_items():
            items.append(item)
            num_bytes += item.num_bytes if isinstance(item, Document) else 0
            if num_bytes >= _BATCH_BYTES or len(items) >= _BATCH_RECORDS:
                yield items
                items, num_bytes = [], 0
        if items:
            yield items

    def _read_items(self) -> Iterator[Record | _FileEnd]:
        document_id = sum(source.num_records for source in self._sources)
        self._num_bytes_read = sum(source.num_bytes for source in self._sources)
        for planned in self._plan.files[len(self._sources) :]:
            num_bytes_before = self._num_bytes_read
            num_skipped = max(0, self._first_document_id - document_id)
            num_records = num_skipped
            for record in read_records(planned.file, planned.source, document_id, num_skipped, self._count_bytes):
                num_records += 1
                yield record
            self._num_bytes_read = num_bytes_before + planned.file.num_bytes
            yield _FileEnd(planned, document_id, num_records)
            document_id += num_records

    def _count_bytes(self, num_bytes: int) -> None:
        self._num_bytes_read += num_bytes

    def _tokenise(self, batches: Iterator[list[Record | _FileEnd]]) -> Iterator[_Batch]:
        """Each batch with its token ids to come: one batch is tokenised while the one before it is packed."""
        with ThreadPoolExecutor(1) as thread:
            waiting: _Batch | None = None
            for items in batches:
                needed = {document.document_id: (document.text, split) for document, split in self._choose_needed(items)}
                texts = [text for text, _ in needed.values()]
                encoded = thread.submit(self._plan.tokenizer.encode_documents, texts)
                if waiting is not None:
                    yield waiting
                waiting = _Batch(items, {document_id: split for document_id, (_, split) in needed.items()}, encoded)
            if waiting is not None:
                yield waiting

    def _choose_needed(self, items: list[Record | _FileEnd]) -> Iterator[tuple[Document, Split]]:
        for item in items:
            if isinstance(item, Document):
                split = assign_split(item.text.encode("utf-8"), self._config.seed, self._config.splits)
                if self._assemblies[split].needs(item.document_id):
                    yield item, split

    def _close_shard(self, assembly: SplitAssembly, shard: OpenShard) -> None:
        """Publishes a full shard and then the state that counts it in: killed in between, the shard is made again."""
        shard_index = assembly.state.next_shard_index - 1
        first_sequence_id = sum(entry.num_sequences for entry in self._shards)
        relative = layout.corpus_shard(self._plan.corpus_id, assembly.split, shard_index)
        with self._storage.publish(relative) as path:
            shard.write(path, first_sequence_id)
            digest, num_bytes = digest_file(path), path.stat().st_size
        self._shards.append(
            ShardEntry(
                corpus_id=self._plan.corpus_id,
                split=assembly.split,
                shard_index=shard_index,
                digest=digest,
                num_bytes=num_bytes,
                num_sequences=len(shard),
                num_tokens=shard.num_tokens,
                first_sequence_id=first_sequence_id,
            )
        )
        self._quarantine.flush()
        state = PreparationState(
            versions=self._versions,
            num_records_checked=self._document_id,
            rejected=self._quarantine.rejected,
            num_quarantine_files=self._quarantine.num_files,
            sources=tuple(self._sources),
            shards=tuple(self._shards),
            splits={split: assembly.state for split, assembly in self._assemblies.items()},
        )
        self._storage.write_json(layout.corpus_preparation(self._plan.corpus_id), state.as_json())

    def _check_usable(self, num_records: int) -> None:
        num_documents = {split: sum(count.num_documents for count in self._assemblies[split].counts.values()) for split in _SPLITS}
        if not any(num_documents.values()):
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self._quarantine.rejected.items())
            found = f"{num_records} records, all rejected ({reasons})" if num_records else "no record"
            first = self._quarantine.first
            example = (
                f". The first: {first.origin.path}, {first.origin.unit} {first.origin.number}: {first.message}" if first else ""
            )
            raise DamagedSourceError(f"no usable document: the {len(self._sources)} source files hold {found}{example}")
        if not num_documents["candidate"]:
            raise CorpusError(
                f"no candidate sequences: of {sum(num_documents.values())} documents {num_documents['reference']} fell to the "
                f"reference split and {num_documents['heldout']} to the heldout split; lower corpus.splits, or give more documents"
            )

    def _publish_manifest(self, num_records: int) -> CorpusManifest:
        corpus_id, tokenizer = self._plan.corpus_id, self._plan.tokenizer
        manifest = CorpusManifest(
            corpus_id=corpus_id,
            tokenizer=tokenizer.entry,
            sequence_length=self._config.sequence_length,
            sources=tuple(self._sources),
            num_records=num_records,
            rejected=self._quarantine.rejected,
            domains={split: dict(sorted(assembly.counts.items())) for split, assembly in self._assemblies.items()},
            shards=tuple(self._shards),
            versions=self._versions,
        )
        _check_counts(manifest)
        _write_tokenizer(self._storage, corpus_id, tokenizer)
        self._storage.write_json(layout.corpus_manifest(corpus_id), manifest.as_json())
        self._storage.delete(layout.corpus_preparation(corpus_id))
        return manifest

    def _report(self) -> None:
        total = sum(planned.file.num_bytes for planned in self._plan.files)
        detail = f"{self._num_documents:,} documents, {self._num_tokens:,} tokens"
        self._on_progress(Progress("prepare", min(self._num_bytes_read, total), total, "bytes", detail))


def _keep_sources(state: PreparationState | None) -> list[SourceEntry]:
    """The leading files of which no record is needed again."""
    kept: list[SourceEntry] = []
    for source in state.sources if state else ():
        if state is None or source.first_document_id + source.num_records > state.first_document_id:
            break
        kept.append(source)
    return kept


def _check_counts(manifest: CorpusManifest) -> None:
    """Nothing may be lost: every record is in a domain or rejected, every token of a domain in a shard."""
    by_split = {split: manifest.split_counts(split) for split in _SPLITS}
    num_documents = sum(counts.num_documents for counts in by_split.values())
    assert manifest.num_records == num_documents + sum(manifest.rejected.values()), "records and documents do not add up"
    for split, counts in by_split.items():
        shards = manifest.split_shards(split)
        assert counts.num_tokens == sum(shard.num_tokens for shard in shards), f"the tokens of {split} do not add up"
        assert counts.num_sequences == sum(shard.num_sequences for shard in shards), f"the sequences of {split} do not add up"


def _read_versions() -> dict[str, str]:
    return {"miniplm": __version__, **{name: version(name) for name in ("pyarrow", "tokenizers")}}

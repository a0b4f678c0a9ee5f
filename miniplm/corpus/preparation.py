"""Prepares a corpus, or its extension by new files: documents in, sequences in shards out.

A preparation that was killed goes on from its last closed shard and ends with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import json
import logging
import tempfile
from functools import partial
from pathlib import Path

from miniplm import layout
from miniplm.config.run import CorpusConfig
from miniplm.corpus.assembly import SplitAssembly, add_counts
from miniplm.corpus.document_pass import DocumentPass
from miniplm.corpus.growth import count_offsets, remember_newest_corpus
from miniplm.corpus.identity import CorpusPlan, plan_corpus
from miniplm.corpus.mending import mend_shards
from miniplm.corpus.publishing import Publisher
from miniplm.corpus.quarantine import Quarantine
from miniplm.corpus.reader import find_corpus, load_corpus_tokenizer
from miniplm.corpus.shards import OpenShard
from miniplm.corpus.state import PreparationState, has_shards, is_state_due, load_state, read_versions
from miniplm.corpus.token_parts import MakeParts, TokenParts, delete_parts
from miniplm.errors import CorpusError, DamagedSourceError, StoppedError, list_offenders
from miniplm.layout import SPLITS
from miniplm.progress import ProgressCallback, ignore_progress
from miniplm.records.manifests import CorpusManifest, DomainCounts, ShardEntry, SourceEntry, Split
from miniplm.storage.locks import exclusive
from miniplm.storage.root import Storage, digest_file
from miniplm.tokenizers.tokenizer import CorpusTokenizer

_log = logging.getLogger("miniplm")


def prepare_corpus(
    storage: Storage,
    config: CorpusConfig,
    on_progress: ProgressCallback = ignore_progress,
    planned: CorpusPlan | None = None,
    make_parts: MakeParts | None = None,
) -> CorpusManifest:
    """The manifest of the corpus that `config` describes, `planned` or not yet, which is prepared if it is not there whole.

    With `corpus.extend` new files become an extension of the corpus that was prepared last with the same sources and
    settings: nothing that is there is read, written or named anew, but shards that are missing are made again.
    With `make_parts` the files are read and tokenised by others and packed here, with the same bytes; lost shards are made again here alone.
    Raises `SourceError` for a source that matches nothing, cannot be read or holds no usable document (of which an
    extension may be empty), or for a file that changed under an extended corpus; `TokenizerError` for the tokenizer,
    `CorpusError` where the splits leave no candidate or a missing shard of an extended corpus cannot be made again,
    `BusyError` where another process prepares the same corpus. Progress counts the stored bytes of the files read.
    """
    plan = planned or plan_corpus(storage, config)
    manifest = _provide_corpus(storage, config, plan, on_progress, make_parts)
    remember_newest_corpus(storage, plan.settings_digest, manifest)
    return manifest


def _provide_corpus(
    storage: Storage, config: CorpusConfig, plan: CorpusPlan, on_progress: ProgressCallback, make_parts: MakeParts | None
) -> CorpusManifest:
    if plan.newest is not None:
        mend_shards(storage, config, plan.newest, plan.found, plan.tokenizer, on_progress)
        if plan.parent is None:
            _mend_tokenizer(storage, config, plan)
            return _note_left_out(storage, plan, plan.newest)
    manifest = _find_whole_corpus(storage, plan.corpus_id)
    state = layout.corpus_preparation(plan.corpus_id)
    # With a state beside it the manifest may have been published by a process that was killed before it deleted that.
    if manifest is not None and not storage.exists(state):
        _mend_tokenizer(storage, config, plan)
        return _note_left_out(storage, plan, manifest)
    with exclusive(storage, layout.corpus_folder(plan.corpus_id), f"corpus {plan.corpus_id}"):
        # Another process may have finished it between the look and the lock.
        manifest = _find_whole_corpus(storage, plan.corpus_id)
        if manifest is not None:
            delete_parts(storage, plan.corpus_id)  # killed at the very end, they may be left
            storage.delete(state)
            _mend_tokenizer(storage, config, plan)
            return _note_left_out(storage, plan, manifest)
        storage.delete_temporary_files(layout.corpus_folder(plan.corpus_id))
        # A manifest whose shards are not all there would be believed by whoever reads it while they are made again.
        storage.delete(layout.corpus_manifest(plan.corpus_id))
        try:
            return _Preparation(storage, config, plan, on_progress, make_parts).run()
        except (DamagedSourceError, CorpusError):
            # The id is that of the faulty files or settings: what was made under it is of no use once they are mended.
            delete_parts(storage, plan.corpus_id)
            storage.delete(layout.corpus_folder(plan.corpus_id))
            raise
        except StoppedError:
            # Where there are no locks another process that packs the same parts may have been faster, and has taken them away.
            manifest = _find_whole_corpus(storage, plan.corpus_id)
            if manifest is None:
                raise
            return _note_left_out(storage, plan, manifest)


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


def _note_left_out(storage: Storage, plan: CorpusPlan, manifest: CorpusManifest) -> CorpusManifest:
    """The manifest of a corpus that was there already, with what its sources leave out now."""
    if manifest.left_out == plan.left_out:
        return manifest
    manifest = manifest.model_copy(update={"left_out": plan.left_out})
    storage.write_json(layout.corpus_manifest(manifest.corpus_id), manifest.as_json())
    return manifest


class _Preparation:
    """One preparation from its state, or from nothing, to the manifest."""

    def __init__(
        self,
        storage: Storage,
        config: CorpusConfig,
        plan: CorpusPlan,
        on_progress: ProgressCallback,
        make_parts: MakeParts | None,
    ) -> None:
        self._storage = storage
        self._config = config
        self._plan = plan
        plan.tokenizer.choose_encoder(config.encoder)  # before anything is written
        self._versions = read_versions(config.encoder)
        if plan.tokenizer.reads_separator_in_text:
            _log.warning(
                f"tokenizer {config.tokenizer!r} has {plan.tokenizer.entry.eos_token!r} as a word of its own vocabulary: where a document's text "
                "holds it, the model sees the end of a document there"
            )
        state = load_state(storage, plan.corpus_id, self._versions)
        if state is None and storage.is_local:
            # No preparation can go on from what is there; leftovers of other versions would only lie about. Where there
            # are no locks they may be the work of another process, and are written over with the same bytes instead.
            storage.delete(layout.corpus_folder(plan.corpus_id))
        self._offsets = count_offsets(plan.parent.sources, plan.parent.shards) if plan.parent else count_offsets()
        self._shards = list(state.shards) if state else []
        self._num_closed = self._num_in_state = len(self._shards)
        self._num_sequences = sum(entry.num_sequences for entry in self._shards)
        self._publisher = Publisher()
        self._quarantine = (
            Quarantine(
                self._write_later,
                plan.corpus_id,
                state.num_records_checked,
                state.rejected,
                state.rejected_by_file,
                state.num_quarantine_files,
            )
            if state
            else Quarantine(self._write_later, plan.corpus_id)
        )
        self._documents = DocumentPass(
            config,
            plan.tokenizer,
            plan.corpus_id,
            plan.files,
            self._offsets.document_id,
            _keep_sources(state),
            state.splits if state else self._offsets.make_states(),
            self._close_shard,
            self._quarantine.add,
            on_progress,
            None if make_parts is None else self._give_out(make_parts),
        )

    def _give_out(self, make_parts: MakeParts) -> TokenParts:
        tokenizer = self._plan.tokenizer
        return TokenParts(
            self._storage,
            self._plan.corpus_id,
            self._plan.files,
            self._versions,
            tokenizer.encoding_digest,
            tokenizer.entry.vocab_size,
            make_parts,
        )

    def run(self) -> CorpusManifest:
        with self._publisher:
            for _ in self._documents.take_batches():
                pass
            if self._plan.parent is None:
                self._check_usable(self._documents.next_document_id)
            self._documents.finish()
            self._quarantine.flush()
            self._publisher.finish()
        return self._publish_manifest()

    def _write_later(self, relative: str, content: bytes) -> None:
        self._publisher.submit(partial(self._storage.write_bytes, relative, content))

    def _close_shard(self, assembly: SplitAssembly, shard: OpenShard) -> None:
        """Has a full shard published and then, where it is due, the state that counts it in: killed in between, the shard is made again."""
        shard_index = assembly.state.next_shard_index - 1
        first_sequence_id = self._offsets.sequence_id + self._num_sequences
        self._num_sequences += len(shard)
        self._publisher.submit(partial(self._publish_shard, assembly.split, shard, shard_index, first_sequence_id))
        self._num_closed += 1
        if not is_state_due(self._num_closed, self._num_in_state):
            return
        self._num_in_state = self._num_closed
        # Before the state, which says that these records are written down.
        self._quarantine.flush()
        state = PreparationState(
            versions=self._versions,
            num_records_checked=self._documents.document_id,
            rejected=self._quarantine.rejected,
            rejected_by_file=self._quarantine.rejected_by_file,
            num_quarantine_files=self._quarantine.num_files,
            sources=tuple(self._documents.sources),
            shards=(),
            splits={split: assembly.state for split, assembly in self._documents.assemblies.items()},
        )
        self._publisher.submit(partial(self._publish_state, state))

    def _publish_shard(self, split: Split, shard: OpenShard, shard_index: int, first_sequence_id: int) -> None:
        with self._storage.publish(layout.corpus_shard(self._plan.corpus_id, split, shard_index)) as path:
            shard.write(path, first_sequence_id)
            digest, num_bytes = digest_file(path), path.stat().st_size
        self._shards.append(
            ShardEntry(
                corpus_id=self._plan.corpus_id,
                split=split,
                shard_index=shard_index,
                digest=digest,
                num_bytes=num_bytes,
                num_sequences=len(shard),
                num_tokens=shard.num_tokens,
                first_sequence_id=first_sequence_id,
            )
        )

    def _publish_state(self, state: PreparationState) -> None:
        state = state.model_copy(update={"shards": tuple(self._shards)})
        # On one line, as only programs read it: it grows with the shards, and to indent it takes ten times as long.
        self._storage.write_bytes(layout.corpus_preparation(self._plan.corpus_id), json.dumps(state.as_json()).encode())

    def _check_usable(self, num_records: int) -> None:
        """Only of a corpus of its own: an extension may add nothing, else one bad file would stop all that come after it."""
        num_documents = {
            split: sum(count.num_documents for count in assembly.counts.values())
            for split, assembly in self._documents.assemblies.items()
        }
        if not any(num_documents.values()):
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self._quarantine.rejected.items())
            found = f"{num_records} records, all rejected ({reasons})" if num_records else "no record"
            first = self._quarantine.first
            example = (
                f". The first: {first.origin.path}, {first.origin.unit} {first.origin.number}: {first.message}" if first else ""
            )
            paths = [source.path for source in self._documents.sources]
            raise DamagedSourceError(
                f"no usable document in {list_offenders(paths, most=3)}: {found}{example}. Name other files as sources, or mend these"
            )
        if not num_documents["candidate"]:
            raise CorpusError(
                f"no candidate sequences: of {sum(num_documents.values())} documents {num_documents['reference']} fell to the "
                f"reference split and {num_documents['heldout']} to the heldout split; lower corpus.splits, or give more documents"
            )

    def _publish_manifest(self) -> CorpusManifest:
        corpus_id, tokenizer, parent = self._plan.corpus_id, self._plan.tokenizer, self._plan.parent
        manifest = CorpusManifest(
            corpus_id=corpus_id,
            parent=parent.corpus_id if parent else None,
            tokenizer=tokenizer.full_entry,
            sequence_length=self._config.sequence_length,
            sources=(*_list_sources(parent), *self._documents.sources),
            num_records=self._documents.next_document_id,
            rejected=_add_rejected(parent.rejected if parent else {}, self._quarantine.rejected),
            rejected_by_file=_add_rejected(parent.rejected_by_file if parent else {}, self._quarantine.rejected_by_file),
            left_out=self._plan.left_out,
            domains={
                split: _add_domains(parent.domains.get(split, {}) if parent else {}, assembly.counts)
                for split, assembly in self._documents.assemblies.items()
            },
            shards=(*(parent.shards if parent else ()), *self._shards),
            versions=self._versions,
        )
        _check_counts(manifest)
        # The manifest after all that it speaks of, and the state last: killed in between, the next one finds the corpus complete.
        _write_tokenizer(self._storage, corpus_id, tokenizer)
        self._storage.write_json(layout.corpus_manifest(corpus_id), manifest.as_json())
        delete_parts(self._storage, corpus_id)
        self._storage.delete(layout.corpus_preparation(corpus_id))
        return manifest


def _keep_sources(state: PreparationState | None) -> list[SourceEntry]:
    """The leading files of which no record is needed again."""
    kept: list[SourceEntry] = []
    for source in state.sources if state else ():
        if state is None or source.first_document_id + source.num_records > state.first_document_id:
            break
        kept.append(source)
    return kept


def _list_sources(parent: CorpusManifest | None) -> list[SourceEntry]:
    """The files of a parent, each with the corpus it was read for, which older manifests do not say."""
    if parent is None:
        return []
    return [source if source.corpus_id else source.model_copy(update={"corpus_id": parent.corpus_id}) for source in parent.sources]


def _add_rejected(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {key: first.get(key, 0) + second.get(key, 0) for key in sorted({*first, *second})}


def _add_domains(first: dict[str, DomainCounts], second: dict[str, DomainCounts]) -> dict[str, DomainCounts]:
    none = DomainCounts()
    return {domain: add_counts(first.get(domain, none), second.get(domain, none)) for domain in sorted({*first, *second})}


def _check_counts(manifest: CorpusManifest) -> None:
    """Nothing may be lost: every record is in a domain or rejected, every token of a domain in a shard."""
    by_split = {split: manifest.split_counts(split) for split in SPLITS}
    num_documents = sum(counts.num_documents for counts in by_split.values())
    assert manifest.num_records == num_documents + sum(manifest.rejected.values()), "records and documents do not add up"
    for split, counts in by_split.items():
        shards = manifest.split_shards(split)
        assert counts.num_tokens == sum(shard.num_tokens for shard in shards), f"the tokens of {split} do not add up"
        assert counts.num_sequences == sum(shard.num_sequences for shard in shards), f"the sequences of {split} do not add up"

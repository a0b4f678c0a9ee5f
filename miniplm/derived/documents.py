"""Sequences of kept documents: whole documents out of the candidate shards, packed anew shard by shard as a corpus is.

A shard of the set has the documents that begin in its candidate shard, in their order; what fills no sequence is a shorter one at its
end, for each domain. Counts of a shard, whose sums are the set's: `documents`, those in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.corpus.packing import PACKING_VERSION, DomainPacker, SentenceEnds
from miniplm.corpus.reader import load_corpus_tokenizer, read_shard, read_token_ids
from miniplm.corpus.shards import OpenShard
from miniplm.derived.recipes import DocumentsRecipe
from miniplm.derived.sequences import TrainingShard
from miniplm.derived.sets import DerivedJob, DerivedSource, MadeShard, ShardMaker
from miniplm.errors import CorpusError
from miniplm.progress import Progress, ProgressCallback
from miniplm.records.manifests import CorpusManifest, ShardEntry, TokenizerEntry
from miniplm.records.selections import SelectionManifest, SelectionShardEntry
from miniplm.selection.kept import read_selection_shard
from miniplm.storage.root import Storage

# The ids of a shard need no other shard to be made first, and int64 has room for 2**31 shards (as in `conversion`).
_IDS_A_SHARD = 1 << 32


@dataclass(frozen=True)
class DocumentsJob(DerivedJob):
    """The kept documents of a selection by documents, in the tokens of their corpus; `data` describes them by content."""

    corpus: CorpusManifest
    selection: SelectionManifest
    data: dict[str, Any]
    trust_remote_code: bool = False
    name = "pack kept documents"
    unit = "tokens"
    runs_on = True

    @property
    def recipe(self) -> DocumentsRecipe:
        return DocumentsRecipe(
            packing_version=PACKING_VERSION,
            data=self.data,
            vocabulary=self.corpus.tokenizer.digest,
            vocab_size=self.corpus.tokenizer.vocab_size,
            eos_token_id=self.corpus.tokenizer.eos_token_id,
            sequence_length=self.corpus.sequence_length,
        )

    @property
    def tokenizer(self) -> TokenizerEntry:
        return self.corpus.tokenizer

    def list_sources(self, storage: Storage) -> list[DerivedSource]:
        """One for each candidate shard in which kept documents begin, and for each pass over them; its rows are their ids."""
        pairs = list(zip(self.corpus.split_shards("candidate"), self.selection.shards, strict=True))
        return [
            DerivedSource((self._make_part(storage, entry, kept, number),))
            for number in self.selection.list_passes()
            for entry, kept in pairs
            if kept.count_pass(number)[0]
        ]

    def _make_part(self, storage: Storage, entry: ShardEntry, kept: SelectionShardEntry, number: int) -> TrainingShard:
        def load_ids() -> NDArray[np.int64]:  # (num_documents,)
            return load_documents(storage, self.selection.selection_id, entry, kept, number)[0]

        return TrainingShard(entry, *kept.count_pass(number), load_ids, number)

    def open_maker(self, storage: Storage, sources: Sequence[DerivedSource], device: str) -> ShardMaker:
        ends = SentenceEnds(load_corpus_tokenizer(storage, self.corpus.corpus_id, self.trust_remote_code))
        return _Packer(storage, self, [source.parts[0] for source in sources], ends)

    def publish_tokenizer(self, storage: Storage) -> None:
        """Nothing: it is the corpus's."""


def load_documents(
    storage: Storage, selection_id: str, entry: ShardEntry, kept: SelectionShardEntry, number: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The kept documents of a pass that begin in a candidate shard, and how many tokens each has, EOS included, (num_documents,) each."""
    table = read_selection_shard(storage, selection_id, kept.shard_index, kept.digest, number)
    begins = table["first_sequence_id"].to_numpy() >= entry.first_sequence_id
    return table["document_id"].to_numpy()[begins], table["num_tokens"].to_numpy()[begins]


class _Packer(ShardMaker):
    def __init__(self, storage: Storage, job: DocumentsJob, parts: Sequence[TrainingShard], ends: SentenceEnds) -> None:
        self._storage, self._job, self._parts, self._ends = storage, job, parts, ends

    def make_shard(self, shard_index: int, on_progress: ProgressCallback) -> MadeShard:
        corpus, selection = self._job.corpus, self._job.selection
        shards = corpus.split_shards("candidate")
        part = self._parts[shard_index]
        position = next(place for place, shard in enumerate(shards) if shard.shard_index == part.entry.shard_index)
        kept = selection.shards[position]
        ids, num_tokens = load_documents(self._storage, selection.selection_id, shards[position], kept, part.number)
        wanted = dict(zip(ids.tolist(), num_tokens.tolist(), strict=True))
        collected = _Documents(wanted)
        for shard in shards[position:]:
            collected.add(read_shard(self._storage, shard, ("domain", "document_ids", "token_ids")), corpus.tokenizer.eos_token_id)
            if collected.is_complete:
                break
            on_progress(Progress(self._job.name, collected.num_tokens, part.num_tokens, self._job.unit))
        sequences = OpenShard(corpus.tokenizer.vocab_size)
        packers: dict[str, DomainPacker] = {}
        texts: dict[str, int] = {}
        for document_id in ids.tolist():
            domain, token_ids = collected.take(document_id, corpus.tokenizer.eos_token_id)
            texts[domain] = texts.get(domain, 0) + 1
            if domain not in packers:
                packers[domain] = DomainPacker(self._ends, corpus.sequence_length, corpus.tokenizer.eos_token_id)
            for packed in packers[domain].add_document(document_id, token_ids):
                sequences.append(domain, packed)
        for domain in sorted(packers):
            if (remainder := packers[domain].remainder()) is not None:
                sequences.append(domain, remainder)
        on_progress(Progress(self._job.name, part.num_tokens, part.num_tokens, self._job.unit))
        counts = {
            domain: of_domain.model_copy(update={"num_documents": texts[domain]})
            for domain, of_domain in sequences.count_domains().items()
        }
        return MadeShard(sequences, shard_index * _IDS_A_SHARD, counts, {"documents": len(wanted)})


class _Documents:
    """The tokens of some documents, put together out of sequences."""

    def __init__(self, num_tokens: dict[int, int]) -> None:
        self._missing = dict(num_tokens)
        self._pieces: dict[int, list[NDArray[Any]]] = {document_id: [] for document_id in num_tokens}
        self._domains: dict[int, str] = {}
        self.num_tokens = 0

    @property
    def is_complete(self) -> bool:
        return not self._missing

    def add(self, table: Any, eos_token_id: int) -> None:
        """Takes what a shard's sequences have of the documents."""
        domains, several = table["domain"].to_pylist(), table["document_ids"].to_pylist()
        for domain, document_ids, token_ids in zip(domains, several, read_token_ids(table), strict=True):
            if self._missing.keys().isdisjoint(document_ids):
                continue
            for document_id, piece in _split(token_ids, document_ids, eos_token_id):
                if document_id in self._missing:
                    self._domains[document_id] = domain
                    # A copy: a view would keep its whole shard.
                    self._pieces[document_id].append(piece.copy())
                    self._missing[document_id] -= len(piece)
                    self.num_tokens += len(piece)
                    if self._missing[document_id] <= 0:
                        del self._missing[document_id]

    def take(self, document_id: int, eos_token_id: int) -> tuple[str, NDArray[Any]]:
        """Domain and token ids (num_tokens,) of a document, without its EOS. Raises `CorpusError` where the shards do not hold all of it."""
        pieces = self._pieces.pop(document_id)
        token_ids = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint32)
        if document_id in self._missing or not len(token_ids) or token_ids[-1] != eos_token_id:
            raise CorpusError(
                f"document {document_id} is not whole in the candidate shards that the selection names; it was made of another corpus, select again"
            )
        return self._domains[document_id], token_ids[:-1]


def _split(token_ids: NDArray[Any], document_ids: Sequence[int], eos_token_id: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """What a sequence of token ids (num_tokens,) has of each of its documents, EOS included: (num_tokens_of_it,)."""
    if len(document_ids) == 1:
        yield document_ids[0], token_ids
        return
    pieces = np.split(token_ids, np.flatnonzero(token_ids[:-1] == eos_token_id) + 1)
    # Where an EOS hides which part is whose, no document of the sequence is ranked.
    if len(pieces) == len(document_ids):
        yield from zip(document_ids, pieces, strict=True)

"""Sequences for a student with a tokenizer of its own: decoded, encoded again and packed anew, shard by shard of their source.

Every byte of the chosen text is kept. A document that runs on from one chosen sequence into the next of its domain is
joined before it is encoded; its end stays a border (the student's EOS). Where the rest of a document was not chosen, or
lies in the next shard, a border is put, and counted. The published converter truncates instead (MiniPLM reference code).

Counts of a shard, whose sums are the set's:

    borders_kept       ends of documents that were chosen with text before them
    borders_added      fragments whose document goes on in text that was not chosen, or in another shard
    borders_empty      ends of documents that were chosen without any text before them; there is nothing to end
    text_bytes         UTF-8 bytes of the text, those that replaced bytes stood for included
    replaced_bytes     bytes that are a part of a character whose rest was not chosen; U+FFFD stands for them
    unknown_tokens     tokens of text that the corpus's tokenizer has no tokens for; its name for them stands in the text
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from miniplm import layout
from miniplm.corpus.assembly import add_counts
from miniplm.corpus.packing import PACKING_VERSION, DomainPacker, PackedSequence, SentenceEnds
from miniplm.corpus.reader import load_corpus_tokenizer, read_token_ids
from miniplm.corpus.shards import OpenShard
from miniplm.derived.fragments import Fragment, FragmentCutter, TokenBytes, count_completing_bytes
from miniplm.derived.reader import load_derived_tokenizer
from miniplm.derived.recipes import ConversionRecipe
from miniplm.derived.sequences import TrainingShard, read_sequences
from miniplm.derived.sets import DerivedJob, DerivedSource, MadeShard, ShardMaker, list_rows
from miniplm.errors import DerivedError
from miniplm.progress import Progress, ProgressCallback
from miniplm.records.manifests import CorpusManifest, DomainCounts, TokenizerEntry
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import CorpusTokenizer

# Bytes of text that are encoded together.
_BATCH_BYTES = 4 << 20
# A shard's sequences are as many as its text needs, which is not known before: so far apart, the ids of a shard need no other shard to be
# made first, and int64 has room for 2**31 shards.
_IDS_A_SHARD = 1 << 32
_log = logging.getLogger("miniplm")


class ListShards(Protocol):
    """The sequences to be converted, shard by shard."""

    def __call__(self, storage: Storage) -> list[TrainingShard]: ...


def describe_conversion(
    corpus: CorpusManifest, data: dict[str, Any], tokenizer: CorpusTokenizer, sequence_length: int
) -> ConversionRecipe:
    """The recipe of what `data` describes, of a corpus, in the tokens of another tokenizer."""
    return ConversionRecipe(
        packing_version=PACKING_VERSION,
        data=data,
        source_vocabulary=corpus.tokenizer.digest,
        source_eos_token_id=corpus.tokenizer.eos_token_id,
        vocabulary=tokenizer.entry.digest,
        encoding=tokenizer.encoding_digest,
        vocab_size=tokenizer.entry.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        sequence_length=sequence_length,
    )


@dataclass(frozen=True)
class ConversionJob(DerivedJob):
    """A conversion of the sequences that `list_shards` gives.

    `joins`: neighbours run on into each other, as they do in a corpus; where a teacher wrote their ends they do not.
    """

    corpus: CorpusManifest
    conversion: ConversionRecipe
    own: CorpusTokenizer
    list_shards: ListShards
    name: str
    joins: bool = True
    trust_remote_code: bool = False
    unit = "tokens"

    @property
    def recipe(self) -> ConversionRecipe:
        return self.conversion

    @property
    def tokenizer(self) -> TokenizerEntry:
        return self.own.entry

    def list_sources(self, storage: Storage) -> list[DerivedSource]:
        return [DerivedSource((shard,)) for shard in self.list_shards(storage) if shard.num_sequences]

    def open_maker(self, storage: Storage, sources: Sequence[DerivedSource], device: str) -> ShardMaker:
        source_tokenizer = load_corpus_tokenizer(storage, self.corpus.corpus_id, self.trust_remote_code)
        if changes := source_tokenizer.list_text_changes():
            _log.warning(
                f"{self.name}: the text that tokenizer {source_tokenizer.entry.name!r} gives back is not byte for byte the documents' "
                f"({'; '.join(changes)}): it is what the teacher saw of them"
            )
        return _Converter(storage, self, [source.parts[0] for source in sources], TokenBytes(source_tokenizer))

    def publish_tokenizer(self, storage: Storage) -> None:
        try:
            load_derived_tokenizer(storage, self.derived_id, self.trust_remote_code)
            return
        except DerivedError:
            # Whole: a file of a damaged copy that the new one does not have would be read with it.
            storage.delete(layout.derived_tokenizer(self.derived_id))
        with tempfile.TemporaryDirectory(prefix="miniplm-") as folder:
            self.own.save(Path(folder))
            for path in sorted(path for path in Path(folder).iterdir() if path.is_file()):
                storage.write_bytes(f"{layout.derived_tokenizer(self.derived_id)}/{path.name}", path.read_bytes())


class _Converter(ShardMaker):
    def __init__(self, storage: Storage, job: ConversionJob, parts: Sequence[TrainingShard], token_bytes: TokenBytes) -> None:
        self._storage = storage
        self._job = job
        self._parts = parts
        self._token_bytes = token_bytes
        self._ends = SentenceEnds(job.own)

    def make_shard(self, shard_index: int, on_progress: ProgressCallback) -> MadeShard:
        packing = _Packing(self._job.conversion, self._job.own, self._token_bytes, self._ends)
        neighbours = _Neighbours(self._storage, self._parts, shard_index, self._token_bytes, self._job)
        eos_token_id = self._job.conversion.source_eos_token_id
        cutter = FragmentCutter(
            self._token_bytes, eos_token_id, neighbours.take_before, neighbours.take_after, neighbours.starts_document
        )
        batch: list[Fragment] = []
        num_bytes, num_tokens = 0, self._parts[shard_index].num_tokens
        for fragment, num_done in self._cut(self._parts[shard_index], cutter):
            batch.append(fragment)
            num_bytes += len(fragment.content)
            if num_bytes >= _BATCH_BYTES:
                packing.add(batch)
                on_progress(Progress(self._job.name, num_done, num_tokens, self._job.unit))
                batch, num_bytes = [], 0
        packing.add(batch)
        on_progress(Progress(self._job.name, num_tokens, num_tokens, self._job.unit))
        return packing.finish(shard_index * _IDS_A_SHARD, cutter.counts)

    def _cut(self, part: TrainingShard, cutter: FragmentCutter) -> Iterator[tuple[Fragment, int]]:
        """The fragments of a shard, each with the tokens that were read when it ended."""
        table = read_sequences(self._storage, part.entry, ["domain", "document_ids", "token_ids"])
        is_chosen = np.zeros(len(table), dtype=bool)
        is_chosen[list_rows(part)] = True
        domains, document_ids = table["domain"].to_pylist(), table["document_ids"].to_pylist()
        num_done = 0
        for row, token_ids in enumerate(read_token_ids(table)):
            if not is_chosen[row]:
                yield from ((fragment, num_done) for fragment in cutter.skip(domains[row], document_ids[row]))
            elif not self._job.joins:
                yield from ((fragment, num_done) for fragment in cutter.part(domains[row], document_ids[row]))
            if is_chosen[row]:
                num_done += len(token_ids)
                yield from ((fragment, num_done) for fragment in cutter.add(domains[row], token_ids, document_ids[row]))
        yield from ((fragment, num_done) for fragment in cutter.finish())


class _Packing:
    """The sequences of a derived shard that is being made."""

    def __init__(self, recipe: ConversionRecipe, tokenizer: CorpusTokenizer, token_bytes: TokenBytes, ends: SentenceEnds) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes
        self._ends = ends
        self._shard = OpenShard(recipe.vocab_size)
        self._packers: dict[str, DomainPacker] = {}
        self._texts: dict[str, DomainCounts] = {}
        self._counts = Counter(borders_kept=0, borders_added=0, text_bytes=0, replaced_bytes=0)

    def add(self, fragments: Sequence[Fragment]) -> None:
        """Encodes and packs fragments in their order."""
        texts = []
        for fragment in fragments:
            text, num_replaced = self._token_bytes.decode(fragment.content)
            texts.append(text)
            self._counts["borders_kept" if fragment.is_end else "borders_added"] += 1
            self._counts["text_bytes"] += len(fragment.content)
            self._counts["replaced_bytes"] += num_replaced
        # Encoded in one call, for the tokenizer's threads, and packed in the order in which the fragments were cut.
        for fragment, token_ids in zip(fragments, self._tokenizer.encode_documents(texts), strict=True):
            added = DomainCounts(num_documents=1, num_bytes=len(fragment.content))
            self._texts[fragment.domain] = add_counts(self._texts.get(fragment.domain, DomainCounts()), added)
            if fragment.domain not in self._packers:
                self._packers[fragment.domain] = DomainPacker(self._ends, self._recipe.sequence_length, self._recipe.eos_token_id)
            for sequence in self._packers[fragment.domain].add_document(fragment.document_id, token_ids):
                self._append(fragment.domain, sequence)

    def finish(self, first_sequence_id: int, counts: Counter[str]) -> MadeShard:
        """What is left of each domain, by name, as shorter sequences; then all of it."""
        for domain in sorted(self._packers):
            if (remainder := self._packers[domain].remainder()) is not None:
                self._append(domain, remainder)
        self._counts.update(counts)
        packed = self._shard.count_domains()
        domains = {domain: add_counts(counts, packed.get(domain, DomainCounts())) for domain, counts in self._texts.items()}
        return MadeShard(self._shard, first_sequence_id, domains, self._counts)

    def _append(self, domain: str, sequence: PackedSequence) -> None:
        # Two fragments of one document may meet in a sequence.
        self._shard.append(domain, PackedSequence(sequence.token_ids, list(dict.fromkeys(sequence.document_ids))))


class _Neighbours:
    """The characters that a shard's border cuts in two go whole to the shard that opens them; read only where there are such."""

    def __init__(
        self, storage: Storage, parts: Sequence[TrainingShard], shard_index: int, token_bytes: TokenBytes, job: ConversionJob
    ) -> None:
        self._storage = storage
        here = parts[shard_index].number
        self._shards = {part.entry.shard_index: part for part in parts if part.number == here} if job.joins else {}
        self._here = parts[shard_index].entry.shard_index
        self._token_bytes = token_bytes
        self._eos_token_id = job.conversion.source_eos_token_id

    def take_before(self, domain: str, head: bytes) -> int:
        if head[:1] < b"\x80" or head[:1] >= b"\xc0":
            return 0
        return count_completing_bytes(self._read(domain, step=-1), head)

    def take_after(self, domain: str, tail: bytes) -> bytes:
        if count_completing_bytes(tail, b"\x80\x80\x80") == 0:
            return b""
        head = self._read(domain, step=1)
        return head[: count_completing_bytes(tail, head)]

    def starts_document(self, domain: str, document_id: int) -> bool:
        """Whether a document that this shard's first sequence of the domain begins with is in no shard before; where it cannot be known, not."""
        for index in range(self._here - 1, -1, -1):
            if index not in self._shards:
                return False
            table = read_sequences(self._storage, self._shards[index].entry, ["domain", "document_ids"])
            document_ids = [
                ids for name, ids in zip(*(column.to_pylist() for column in table.columns), strict=True) if name == domain
            ]
            if document_ids:
                return bool(document_ids[-1][-1] != document_id)
        return True

    def _read(self, domain: str, step: int) -> bytes:
        """What the domain's nearest sequence before or after this shard holds next to it, empty where that was not chosen."""
        index = self._here + step
        while index in self._shards:
            part = self._shards[index]
            table = read_sequences(self._storage, part.entry, ["domain", "token_ids"])
            found = np.flatnonzero(np.array(table["domain"].to_pylist(), dtype=object) == domain)
            if len(found):
                row = int(found[0 if step > 0 else -1])
                token_ids = read_token_ids(table.slice(row, 1).combine_chunks())[0]
                return self._token_bytes.join(self._cut_side(token_ids, step)) if row in list_rows(part) else b""
            index += step
        return b""

    def _cut_side(self, token_ids: NDArray[Any], step: int) -> NDArray[Any]:
        """Of a sequence's token ids (num_tokens,) those on the side of this shard that no document's end parts from it, (num_left,)."""
        borders = np.flatnonzero(token_ids == self._eos_token_id)
        if not len(borders):
            return token_ids
        return token_ids[: borders[0]] if step > 0 else token_ids[borders[-1] + 1 :]

"""One split under construction: documents in, sequences packed by domain, shards closed when they are full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from miniplm.corpus.packing import DomainPacker, PackerState, SentenceEnds
from miniplm.corpus.shards import OpenShard
from miniplm.corpus.state import SplitState, StoredPacker
from miniplm.records.manifests import DomainCounts, Split
from miniplm.tokenizers.tokenizer import TokenIds

CloseShard = Callable[["SplitAssembly", OpenShard], None]


@dataclass
class _Counts:
    """As `DomainCounts`, to add to: a record that is checked and made anew for each document would cost more than its packing."""

    num_documents: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    num_sequences: int = 0

    @classmethod
    def of(cls, counts: DomainCounts) -> _Counts:
        return cls(counts.num_documents, counts.num_bytes, counts.num_tokens, counts.num_sequences)

    def freeze(self) -> DomainCounts:
        return DomainCounts(**asdict(self))


class SplitAssembly:
    """Packs the documents of a split into shards; `close_shard` is called with each that is full.

    While it is being called, `state` is the one from which the next shard can be made again.
    """

    def __init__(
        self,
        split: Split,
        ends: SentenceEnds,
        vocab_size: int,
        eos_token_id: int,
        sequence_length: int,
        sequences_per_shard: int,
        close_shard: CloseShard,
        state: SplitState | None = None,
    ) -> None:
        self.split = split
        self.state = state or SplitState(document_id=0, num_emitted=0, next_shard_index=0, packers={}, counts={})
        self._ends = ends
        self._vocab_size = vocab_size
        self._eos_token_id = eos_token_id
        self._sequence_length = sequence_length
        self._sequences_per_shard = sequences_per_shard
        self._close_shard = close_shard
        self._packers = {domain: self._make_packer(packer.unpack()) for domain, packer in self.state.packers.items()}
        self._counts = {domain: _Counts.of(counts) for domain, counts in self.state.counts.items()}
        self._shard = OpenShard(vocab_size)

    @property
    def counts(self) -> dict[str, DomainCounts]:
        """By domain: documents and bytes taken in, tokens and sequences of closed shards."""
        return {domain: counts.freeze() for domain, counts in self._counts.items()}

    def add_document(self, document_id: int, domain: str, num_bytes: int, token_ids: TokenIds) -> None:
        """Packs the next document, of token ids (num_tokens,); may close shards."""
        packer = self._packers.get(domain)
        if packer is None:
            packer = self._packers[domain] = self._make_packer(None)
        counts = self._counts.setdefault(domain, _Counts())
        counts.num_documents += 1
        counts.num_bytes += num_bytes
        for num_emitted, sequence in enumerate(packer.add_document(document_id, token_ids), start=1):
            if self._is_closed(document_id, num_emitted):
                continue
            self._shard.append(domain, sequence)
            if len(self._shard) == self._sequences_per_shard:
                self._close(document_id, num_emitted, domain, packer.state_before(), num_bytes)

    def finish(self, num_records: int) -> None:
        """Emits what is left of each domain, by name, as shorter sequences, and closes the last shard."""
        # By name: the packers of a resumed preparation come in the order of its state, and the shards must have the same bytes.
        remainders = ((domain, self._packers[domain].remainder()) for domain in sorted(self._packers))
        present = ((domain, remainder) for domain, remainder in remainders if remainder is not None)
        num_emitted = 0
        for num_emitted, (domain, remainder) in enumerate(present, start=1):
            if self._is_closed(num_records, num_emitted):
                continue
            self._shard.append(domain, remainder)
            if len(self._shard) == self._sequences_per_shard:
                self._close(num_records, num_emitted)
        if len(self._shard):
            self._close(num_records, num_emitted)

    def _is_closed(self, document_id: int, num_emitted: int) -> bool:
        """Whether this sequence of a document that is packed for the second time lies in a closed shard."""
        return document_id == self.state.document_id and num_emitted <= self.state.num_emitted

    def _close(
        self,
        document_id: int,
        num_emitted: int,
        domain: str | None = None,
        packer_before: PackerState | None = None,
        num_bytes: int = 0,
    ) -> None:
        """Closes the shard. `domain` and what follows tell what the document being packed has changed."""
        shard, self._shard = self._shard, OpenShard(self._vocab_size)
        for name, closed in shard.count_domains().items():
            self._counts[name].num_sequences += closed.num_sequences
            self._counts[name].num_tokens += closed.num_tokens
        # The document that is being packed will be packed again from its start: its packer and counts are as before it, and its
        # sequences in closed shards are passed over (`_is_closed`).
        packers = {name: packer.state() for name, packer in self._packers.items() if name != domain}
        counts_now = self.counts
        if domain is not None and packer_before is not None:
            packers[domain] = packer_before
            now = counts_now[domain]
            counts_now[domain] = now.model_copy(
                update={"num_documents": now.num_documents - 1, "num_bytes": now.num_bytes - num_bytes}
            )
        self.state = SplitState(
            document_id=document_id,
            num_emitted=num_emitted,
            next_shard_index=self.state.next_shard_index + 1,
            packers={name: StoredPacker.pack(state) for name, state in packers.items()},
            counts=counts_now,
        )
        # After the state is set: who is called publishes the shard and then this state, from which the next one is made.
        self._close_shard(self, shard)

    def _make_packer(self, state: PackerState | None) -> DomainPacker:
        return DomainPacker(self._ends, self._sequence_length, self._eos_token_id, state)


def add_counts(first: DomainCounts, second: DomainCounts) -> DomainCounts:
    """The sum of each count."""
    return DomainCounts(
        num_documents=first.num_documents + second.num_documents,
        num_bytes=first.num_bytes + second.num_bytes,
        num_tokens=first.num_tokens + second.num_tokens,
        num_sequences=first.num_sequences + second.num_sequences,
    )

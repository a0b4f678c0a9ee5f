"""Kept sequences back to documents: their pieces joined where all between them was kept, else parts that say which tokens they are.

A document's tokens lie one after the other in the sequences of its domain. Between two of these lie sequences of other domains, so
each domain has its own place, and its own document under way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from miniplm.export.shards import SCORES, KeptShard, PartScores


class Place(NamedTuple):
    """Where the sequences of a domain have come to: in the middle of a document, after so many of its tokens.

    `was_kept`: the domain's last sequence was, so that what follows of the document belongs to what was kept of it.
    """

    document_id: int
    num_tokens: int
    was_kept: bool


class Piece(NamedTuple):
    """What one sequence has of one document: `token_ids[start:stop]` of the shard, the first being its token `token_start`.

    `is_end`: an EOS follows. `joins`: the piece before it was kept too. `is_kept`: it was itself.
    """

    document_id: int
    start: int
    stop: int
    token_start: int
    is_end: bool
    joins: bool
    is_kept: bool


class DocumentWalk:
    """Follows all sequences of a split in order, those that were not kept too; `places` are the domains in the middle of a document."""

    def __init__(self, places: Mapping[str, Place] | None = None) -> None:
        self.places = dict(places or {})

    def take(self, shard: KeptShard, row: int) -> list[Piece]:
        """The pieces of a sequence."""
        domain, document_ids = shard.domains[row], shard.document_ids[row]
        before = self.places.pop(domain, None)
        pieces = []
        start, stop = shard.bounds[row], shard.bounds[row + 1]
        for number, end in enumerate([*shard.row_ends(row), stop]):
            if start == stop:
                break
            # A vocabulary may have the separator as a word of text: then there are more ends than documents.
            document_id = document_ids[min(number, len(document_ids) - 1)]
            goes_on = number == 0 and before is not None and before.document_id == document_id
            token_start = before.num_tokens if goes_on and before else 0
            joins = goes_on and before is not None and before.was_kept
            pieces.append(Piece(document_id, start, end, token_start, end < stop, joins, shard.keeps(row, document_id)))
            start = end + 1
        if pieces and not pieces[-1].is_end:
            last = pieces[-1]
            self.places[domain] = Place(last.document_id, last.token_start + last.stop - last.start, last.is_kept)
        return pieces


@dataclass(frozen=True)
class Document:
    """A document, or what was kept of it: tokens `token_start` and on, without EOS, of the sequences `sequence_ids`.

    `ends`: its EOS was kept. The scores are its own, in nats a scored token, where they are known; else those of its sequences, in the
    selection's unit, weighted by its tokens in each.
    """

    domain: str
    document_id: int
    token_ids: NDArray[Any]
    token_start: int
    ends: bool
    sequence_ids: tuple[int, ...]
    teacher_nll: float
    reference_nll: float
    difference_score: float

    @property
    def is_whole(self) -> bool:
        return self.token_start == 0 and self.ends

    @property
    def token_end(self) -> int:
        return self.token_start + len(self.token_ids)

    @property
    def num_source_tokens(self) -> int:
        """How many tokens of the kept sequences it is made of, EOS included."""
        return len(self.token_ids) + self.ends


@dataclass
class _Open:
    document_id: int
    token_start: int
    token_ids: list[NDArray[Any]] = field(default_factory=list)
    sequence_ids: list[int] = field(default_factory=list)
    scores: list[tuple[float, ...]] = field(default_factory=list)
    parts: list[PartScores | None] = field(default_factory=list)
    own_scores: tuple[float, ...] | None = None

    def extend(self, shard: KeptShard, row: int, piece: Piece) -> None:
        # A copy: a view would keep its whole shard.
        self.token_ids.append(shard.token_ids[piece.start : piece.stop].copy())
        self.sequence_ids.append(shard.first_sequence_id + row)
        if shard.documents is not None:
            self.own_scores = shard.documents[self.document_id]
        self.scores.append(tuple(float(shard.scores[name][row]) for name in SCORES))
        self.parts.append(None if shard.parts is None else shard.parts.get((self.document_id, shard.first_sequence_id + row)))

    def close(self, domain: str, ends: bool) -> Document:
        token_ids = np.concatenate(self.token_ids)
        parts = [part for part in self.parts if part is not None]
        teacher_sum, reference_sum, num_scored = (sum(column) for column in zip(*parts, strict=True)) if parts else (0.0, 0.0, 0)
        means: tuple[float, ...]
        if self.own_scores is not None:
            means = self.own_scores
        elif num_scored and len(parts) == len(self.parts):
            means = (teacher_sum / num_scored, reference_sum / num_scored, (reference_sum - teacher_sum) / num_scored)
        else:
            means = self._average_sequences()
        return Document(domain, self.document_id, token_ids, self.token_start, ends, tuple(self.sequence_ids), *means)

    def _average_sequences(self) -> tuple[float, float, float]:
        weights = np.array([len(part) for part in self.token_ids], dtype=np.float64)
        weights = weights if weights.sum() else np.ones_like(weights)
        teacher, reference, difference = (float(np.dot(weights, column) / weights.sum()) for column in np.array(self.scores).T)
        return teacher, reference, difference


class DocumentRestorer:
    """Gives the documents that begin in the sequences it takes; what began before them, and goes on in them, it leaves out."""

    def __init__(self, places: Mapping[str, Place] | None = None) -> None:
        self._walk = DocumentWalk(places)
        self._open: dict[str, _Open] = {}

    def take(self, shard: KeptShard, row: int) -> Iterator[Document]:
        """The documents that end in a sequence, or before it where it was not kept."""
        domain = shard.domains[row]
        pieces = self._walk.take(shard, row)
        opened = self._open.get(domain)
        if opened is not None and not (pieces and pieces[0].is_kept and pieces[0].joins):
            yield self._open.pop(domain).close(domain, ends=False)
        for piece in pieces:
            if not piece.is_kept:
                continue
            if not piece.joins:
                self._open[domain] = _Open(piece.document_id, piece.token_start)
            elif domain not in self._open:
                continue
            yield from self._extend(shard, row, piece)

    def take_rest(self, shard: KeptShard, row: int) -> Iterator[Document]:
        """Of a later sequence only what goes on of a document under way."""
        ends = shard.row_ends(row)
        stop = ends[0] if ends else shard.bounds[row + 1]
        if shard.domains[row] in self._open:
            yield from self._extend(shard, row, Piece(0, shard.bounds[row], stop, 0, bool(ends), True, True))

    def finish(self) -> Iterator[Document]:
        """What is still under way: its rest was not kept."""
        for domain in sorted(self._open):
            yield self._open[domain].close(domain, ends=False)
        self._open = {}

    def _extend(self, shard: KeptShard, row: int, piece: Piece) -> Iterator[Document]:
        domain = shard.domains[row]
        self._open[domain].extend(shard, row, piece)
        if piece.is_end:
            yield self._open.pop(domain).close(domain, ends=True)

"""Cuts the documents of one domain into sequences of at most `sequence_length` + 1 tokens that end with a sentence.

Documents are concatenated, each followed by EOS. While more than a full window is at hand, the window is cut
after the last sentence end in it and the rest opens the next sequence; what is left at the very end is a
shorter sequence. Nothing is lost and nothing is truncated. Method: MiniPLM reference code, `tokenize_pile.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.tokenizers.tokenizer import CorpusTokenizer, TokenIds

# Goes into the ids of corpora: raise it whenever the same documents would be packed otherwise.
PACKING_VERSION = 1

_PUNCTUATION = ".!?;"
_BRACKETS = (("[", "]"), ("(", ")"), ("{", "}"), ("<", ">"))
_NO_END, _ALWAYS_END, _PUNCTUATION_END = 0, 1, 2
# Longer than nine sentences of ten.
_NEAR_TOKENS = 64
# Decoded pairs of tokens that are remembered: about 100 MB at most.
_MOST_PAIRS = 1 << 19


@dataclass(frozen=True)
class PackedSequence:
    """`token_ids` and, in order, the documents that at least one of them comes from (an EOS is its document's)."""

    token_ids: TokenIds
    document_ids: Sequence[int]


class SentenceEnds:
    """Where sentences end in token ids, for one tokenizer.

    Position i is a sentence end if its id is EOS; or its text holds a newline; or its text holds one of `.!?;`
    with balanced brackets and a space truly follows: the text of the next token begins with one when both
    are decoded together, or the token itself has one after its last such sign.
    """

    def __init__(self, tokenizer: CorpusTokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts = tokenizer.decode_vocabulary()
        self._kinds: NDArray[np.uint8] = np.array([_classify_token(text) for text in self._texts], dtype=np.uint8)
        self._kinds[tokenizer.eos_token_id] = _ALWAYS_END
        self._pairs: dict[tuple[int, int], bool] = {}

    def find_cut(self, token_ids: NDArray[Any], start: int, stop: int) -> int:
        """The end of the sequence that starts at `start` of token ids (num_tokens,): just after the last sentence end before `stop`, else `stop`.

        The sequence has at least two tokens, so that it has a target. `token_ids` reaches beyond `stop`.
        """
        # The last few tokens first, which hold an end nearly always.
        begin = max(start + 1, stop - _NEAR_TOKENS)
        for first, last in ((begin, stop), (start + 1, begin)):
            kinds = self._kinds[token_ids[first:last]]
            for offset in kinds.nonzero()[0][::-1].tolist():
                position = first + offset
                if kinds[offset] == _ALWAYS_END or self._is_followed_by_space(
                    int(token_ids[position]), int(token_ids[position + 1])
                ):
                    return int(position + 1)
        return stop

    def _is_followed_by_space(self, token_id: int, next_id: int) -> bool:
        known = self._pairs.get((token_id, next_id))
        if known is None:
            text = self._texts[token_id]
            last = max(text.rfind(sign) for sign in _PUNCTUATION)
            known = " " in text[last + 1 :] or self._tokenizer.decode([token_id, next_id])[len(text) :].startswith(" ")
            if len(self._pairs) >= _MOST_PAIRS:
                self._pairs.clear()  # all at once: pairs come back by themselves, and a list of the oldest would cost more
            self._pairs[token_id, next_id] = known
        return known


@dataclass(frozen=True)
class PackerState:
    """What a packer holds between two documents: token ids, and how many of them each document gave, in order."""

    token_ids: TokenIds
    document_ids: tuple[int, ...] = ()
    num_tokens: tuple[int, ...] = ()


class DomainPacker:
    """Packs the documents of one domain of one split, given in source order."""

    def __init__(self, ends: SentenceEnds, sequence_length: int, eos_token_id: int, state: PackerState | None = None) -> None:
        self._ends = ends
        self._window = sequence_length + 1
        self._eos: TokenIds = np.array([eos_token_id], dtype=np.uint32)
        self._chunks: list[TokenIds] = []
        self._documents: list[tuple[int, int]] = []
        self._num_tokens = 0
        if state is not None and len(state.token_ids):
            self._chunks = [state.token_ids]
            self._documents = list(zip(state.document_ids, state.num_tokens, strict=True))
            self._num_tokens = len(state.token_ids)
        self._before = (self._chunks, self._documents)

    def add_document(self, document_id: int, token_ids: TokenIds) -> Iterator[PackedSequence]:
        """Takes a document in, (num_tokens,) without EOS, which is added, and gives the sequences that are now full.

        The iterator must be used up before the next call.
        """
        num_tokens = len(token_ids) + 1
        if self._num_tokens + num_tokens <= self._window:
            self._chunks += (token_ids.copy(), self._eos)  # a view would keep the whole batch in memory
            self._documents.append((document_id, num_tokens))
            self._num_tokens += num_tokens
        else:
            self._before = (self._chunks, self._documents)  # both are replaced now, not changed
            documents = [*self._documents, (document_id, num_tokens)]
            yield from self._cut(np.concatenate([*self._chunks, token_ids, self._eos]), documents)

    def _cut(self, token_ids: TokenIds, documents: list[tuple[int, int]]) -> Iterator[PackedSequence]:
        """The full sequences of token ids (num_tokens,); keeps the rest."""
        start, first = 0, 0
        document_ends = np.cumsum([num_tokens for _, num_tokens in documents]).tolist()
        while len(token_ids) - start > self._window:
            cut = self._ends.find_cut(token_ids, start, start + self._window)
            last = first
            while document_ends[last] < cut:
                last += 1
            yield PackedSequence(token_ids[start:cut], [document_id for document_id, _ in documents[first : last + 1]])
            start, first = cut, last + (document_ends[last] == cut)
        self._chunks = [token_ids[start:].copy()]  # a view would keep the whole document in memory
        self._num_tokens = len(token_ids) - start
        rest = documents[first:]
        # The first of them may have given some of its tokens to sequences before.
        self._documents = [(rest[0][0], document_ends[first] - start), *rest[1:]]

    def remainder(self) -> PackedSequence | None:
        """What no document has filled up, as a last sequence; None where there is nothing. The packer keeps it."""
        if not self._num_tokens:
            return None
        return PackedSequence(np.concatenate(self._chunks), [document_id for document_id, _ in self._documents])

    def state(self) -> PackerState:
        """What to make a packer of that goes on from here; not to be asked for while sequences are being taken."""
        return _make_state(self._chunks, self._documents)

    def state_before(self) -> PackerState:
        """The state before the document whose sequences are being taken."""
        return _make_state(*self._before)


def _make_state(chunks: list[TokenIds], documents: list[tuple[int, int]]) -> PackerState:
    """Of chunks (num_tokens,) of token ids."""
    token_ids: TokenIds = np.concatenate(chunks) if chunks else np.empty(0, dtype=np.uint32)
    return PackerState(token_ids, tuple(pair[0] for pair in documents), tuple(pair[1] for pair in documents))


def _classify_token(text: str) -> int:
    if "\n" in text:
        return _ALWAYS_END
    balanced = all(opener not in text or closer in text for opener, closer in _BRACKETS)
    return _PUNCTUATION_END if balanced and any(sign in text for sign in _PUNCTUATION) else _NO_END

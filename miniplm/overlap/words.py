"""Text as words, and runs of 13 of them looked up among those of other texts.

Words, not token ids: the same sentence has other ids after another space, line break, quotation mark or capital, and a benchmark's question is
seldom copied with its whitespace. A word is a run of letters and digits, folded to one case and to compatible characters (NFKC); in scripts that
write no spaces (Chinese, Japanese, Thai, ...) a character is one. 13 of them are the usual measure of contamination (GPT-3, appendix C).

Shapes: W words, G n-grams of an index.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from miniplm.selection.minhash import hash_ngrams

NGRAM_WORDS = 13
# Hiragana to Katakana, ideographs, Thai, Lao, Khmer, Burmese.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(f"[{_SPACELESS}]|[^\\W_{_SPACELESS}]+")
# Of a table with so many places for each n-gram most that are looked up are seen not to be there at once.
_PLACES_EACH = 8


def list_words(text: str) -> list[str]:
    """The words of a text in their order."""
    return _WORD.findall(_fold(text))


def _fold(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def cut_words(text: str, start: int, stop: int) -> str:
    """The text from word `start` to before word `stop`, as it is written but for case and compatible characters."""
    folded = _fold(text)
    spans = [match.span() for match in _WORD.finditer(folded)][start:stop]
    return folded[spans[0][0] : spans[-1][1]] if spans else ""


class Span(NamedTuple):
    """Words `start` to before `stop` of a sequence of words, all runs of 13 of which an index has; the first of these is of `item`."""

    start: int
    stop: int
    item: int


class NgramIndex:
    """The runs of 13 words of texts, each with the first item that it is of. Memory: some 20 bytes a run, and 100 a different word."""

    def __init__(self) -> None:
        self._ids: dict[str | None, int] = {}
        self._waiting: list[tuple[NDArray[np.uint64], int]] = []
        self._hashes: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._items: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._is_taken: NDArray[np.bool_] = np.zeros(1, dtype=np.bool_)
        self._shift = np.uint64(63)

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, item: int, words: Sequence[str]) -> bool:
        """Takes the words of a text of an item; False where it has fewer than 13, and can never be found."""
        if len(words) < NGRAM_WORDS:
            return False
        # 0 is a word of no text.
        ids = np.array([self._ids.setdefault(word, len(self._ids) + 1) for word in words], dtype=np.uint32)
        self._waiting.append((hash_ngrams(ids, NGRAM_WORDS), item))
        return True

    def finish(self) -> None:
        """Makes what was added ready to be looked up."""
        hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *(hashes for hashes, _ in self._waiting)])
        items = np.repeat([item for _, item in self._waiting], [len(hashes) for hashes, _ in self._waiting]).astype(np.int64)
        self._waiting = []
        self._hashes, first = np.unique(hashes, return_index=True)
        self._items = items[first]
        bits = max(10, int(len(self._hashes) * _PLACES_EACH).bit_length())
        self._shift = np.uint64(64 - bits)
        self._is_taken = np.zeros(1 << bits, dtype=np.bool_)
        self._is_taken[self._hashes >> self._shift] = True

    def find(self, words: Sequence[str | None]) -> list[Span]:
        """The runs of words, as long as they go, all of whose runs of 13 are in the index; None parts two texts."""
        if len(words) < NGRAM_WORDS or not len(self._hashes):
            return []
        ids = np.fromiter(map(self._ids.get, words, repeat(0)), dtype=np.uint32, count=len(words))
        unknown = np.concatenate([[0], np.cumsum(ids == 0)])
        starts = np.flatnonzero(unknown[NGRAM_WORDS:] == unknown[:-NGRAM_WORDS])
        if not len(starts):
            return []
        hashes = hash_ngrams(ids, NGRAM_WORDS)[starts]
        maybe = self._is_taken[hashes >> self._shift]
        starts, hashes = starts[maybe], hashes[maybe]
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        found = self._hashes[places] == hashes
        return list(_join(starts[found].tolist(), self._items[places[found]].tolist()))


def _join(starts: Iterable[int], items: Iterable[int]) -> Iterator[Span]:
    """Runs that follow each other word by word as one."""
    first = last = item = -1
    for start, one in zip(starts, items, strict=True):
        if first >= 0 and start == last + 1:
            last = start
            continue
        if first >= 0:
            yield Span(first, last + NGRAM_WORDS, item)
        first, last, item = start, start, one
    if first >= 0:
        yield Span(first, last + NGRAM_WORDS, item)


def collect_texts(value: Any) -> Iterator[str]:
    """Every text in a record of lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from collect_texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from collect_texts(one)

"""Cuts a very long text into pieces that can be tokenised one by one and give the same token ids as the whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

# Characters a piece is meant to have; texts up to half as much again are left whole. The Rust tokenizer takes some 30 bytes a character
# while it encodes (`tokenizer`), so a text of gigabytes would take tens of them.
PIECE_CHARACTERS = 1 << 20
# Characters on each side of a cut that are encoded to verify it: only inside a longer word do ids depend on what lies farther.
_CONTEXT_CHARACTERS = 1000
# How far ahead, in pieces, a cut is looked for before it is made by force.
_SEARCHED_PIECES = 3
_CANDIDATES_A_KIND = 6

_AFTER_NEWLINE = re.compile(r"(?<=\S\n)(?=\S)")
_BEFORE_SPACE = re.compile(r"(?<=\S)(?= \S)")
_BEFORE_PUNCTUATION = re.compile(r"(?<=\w)(?=[^\w\s])")

Encode = Callable[[str], Sequence[int]]


def cut_text(text: str, encode: Encode, piece_characters: int = PIECE_CHARACTERS) -> list[str]:
    """Pieces whose token ids, joined, are those of the whole text.

    A cut lies after a newline, before a space (which belongs to no piece where the tokenizer puts one of its own
    before each text) or before punctuation, and is taken only if the text around it has the same ids cut and
    uncut. Where no such place is found in three pieces' length the cut is made by force: a word of millions of
    characters then has other ids at that place, but the memory stays bounded and the characters stay the same.
    """
    pieces = []
    start = 0
    while len(text) - start > piece_characters + piece_characters // 2:
        end, next_start = _find_cut(text, start + piece_characters, piece_characters, encode)
        pieces.append(text[start:end])
        start = next_start
    pieces.append(text[start:])
    return pieces


def _find_cut(text: str, position: int, piece_characters: int, encode: Encode) -> tuple[int, int]:
    """Where the piece ends and where the next one starts."""
    for end, next_start in _list_candidates(text, position, position + _SEARCHED_PIECES * piece_characters):
        left = text[max(0, end - _CONTEXT_CHARACTERS) : end]
        right = text[next_start : next_start + _CONTEXT_CHARACTERS]
        if list(encode(left + text[end:next_start] + right)) == [*encode(left), *encode(right)]:
            return end, next_start
    return position, position


def _list_candidates(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    for pattern, dropped in ((_AFTER_NEWLINE, 0), (_BEFORE_SPACE, 0), (_BEFORE_SPACE, 1), (_BEFORE_PUNCTUATION, 0)):
        for match in islice(pattern.finditer(text, start, min(stop, len(text) - 1)), _CANDIDATES_A_KIND):
            yield match.start(), match.start() + dropped

"""Texts to token ids: the tokenizers library, with a memory of words where its rules let words be encoded one by one, or gigatoken."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.config.run import EncoderName
from miniplm.errors import TokenizerError, reading_users_file
from miniplm.tokenizers.gigatoken_encoder import GigatokenEncoder
from miniplm.tokenizers.splitting_rules import find_words_pattern
from miniplm.tokenizers.text_pieces import PIECE_CHARACTERS, cut_text

TokenIds = NDArray[np.uint32]
# Token ids (num_tokens,) of each text, neither EOS nor BOS added, nothing truncated.
Encode = Callable[[list[str]], list[TokenIds]]

# Characters given to the Rust backend in one call: its results take some 30 bytes a character while they live.
_CALL_CHARACTERS = 4 << 20
# Words that are remembered: about 100 MB at most. Beyond the first ten thousands each is met seldom.
_MOST_WORDS = 1 << 19
_EXCERPT_CHARACTERS = 80
# Longer ones (blobs, scripts without spaces) do not come again.
_LONGEST_WORD = 48


class LibraryEncoder:
    """By the tokenizers library, on as many cores as it takes."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __call__(self, texts: list[str]) -> list[TokenIds]:  # (num_tokens,) each
        # Set each time: it is no part of tokenizer.json, and copies of the backend come without it.
        self._backend.encode_special_tokens = True
        # Fast: without the places of tokens in the text, which nobody asks for.
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]


class WordEncoder:
    """By the ids of words that were met before, five to ten times as fast as the library on one core; new words by the library."""

    def __init__(self, backend: Any, pattern: re.Pattern[str]) -> None:
        self._backend = backend
        self._find_words = pattern.findall
        self._ids: dict[str, bytes] = {}
        self._lock = Lock()

    def __call__(self, texts: list[str]) -> list[TokenIds]:  # (num_tokens,) each
        with self._lock:
            return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> TokenIds:  # (num_tokens,)
        words = self._find_words(text)
        # Joined in C: a Python call a word would cost more than the word.
        try:
            joined = bytearray().join(map(self._ids.__getitem__, words))
        except KeyError:
            long = self._learn(words)
            joined = bytearray().join(map(self._ids.__getitem__, words))
            for word in long:
                del self._ids[word]
        return np.frombuffer(joined, dtype=np.uint32)

    def _learn(self, words: list[str]) -> list[str]:
        """Encodes the words that are not known; gives those that are not worth remembering."""
        distinct = dict.fromkeys(words)
        new = [word for word in distinct if word not in self._ids]
        if len(self._ids) + len(new) > _MOST_WORDS:
            self._ids.clear()  # all at once: frequent words come back by themselves, and a list of the oldest would cost more
            new = list(distinct)
        self._backend.encode_special_tokens = True
        for word, encoding in zip(new, self._backend.encode_batch_fast(new, add_special_tokens=False), strict=True):
            self._ids[word] = array("I", encoding.ids).tobytes()
        return [word for word in new if len(word) > _LONGEST_WORD]


def make_encoder(backend: Any, library: EncoderName = "tokenizers") -> Encode:
    """The fastest encoder of a Rust tokenizer for one core, by a library; raises `ConfigError` where that cannot."""
    if library == "gigatoken":
        return GigatokenEncoder(backend)
    pattern = find_words_pattern(backend)
    return LibraryEncoder(backend) if pattern is None else WordEncoder(backend, pattern)


def encode_documents(encode: Encode, texts: Sequence[str], name: str) -> list[TokenIds]:
    """Token ids (num_tokens,) of each text; a very long one goes in pieces. Raises `TokenizerError`, by the tokenizer's `name`, where one has none."""

    def call(part: list[str]) -> list[TokenIds]:  # (num_tokens,) each
        try:
            return try_call(part)
        except TokenizerError:
            for text in part if len(part) > 1 else ():  # one by one, to say which text it is
                try_call([text])
            raise

    def try_call(part: list[str]) -> list[TokenIds]:  # (num_tokens,) each
        next_step = "its files are damaged, or its vocabulary has no token for what it does not know; use another copy or tokenizer"
        said = f"the text {part[0][:_EXCERPT_CHARACTERS]!r}..." if len(part) == 1 else "a text"
        with reading_users_file(f"tokenizer {name!r}", f"cannot encode {said}", next_step, TokenizerError):
            return encode(part)

    results: list[list[TokenIds]] = [[] for _ in texts]
    for group in _group_calls(_cut_pieces(texts, lambda part: call([part])[0].tolist())):
        for (index, _), token_ids in zip(group, call([piece for _, piece in group]), strict=True):
            results[index].append(token_ids)
    return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in results]


def _cut_pieces(texts: Sequence[str], encode: Callable[[str], Sequence[int]]) -> Iterator[tuple[int, str]]:
    for index, text in enumerate(texts):
        if len(text) <= PIECE_CHARACTERS:
            yield index, text
        else:
            yield from ((index, piece) for piece in cut_text(text, encode))


def _group_calls(pieces: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    call: list[tuple[int, str]] = []
    num_characters = 0
    for piece in pieces:
        call.append(piece)
        num_characters += len(piece[1])
        if num_characters >= _CALL_CHARACTERS:
            yield call
            call, num_characters = [], 0
    if call:
        yield call

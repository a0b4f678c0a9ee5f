"""Token ids back to texts: whole documents where they are, fragments of documents where only a part was chosen.

A sequence's cut may lie inside a character, so all is bytes until a text is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.tokenization import CorpusTokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TokenBytes:
    """The UTF-8 bytes of token ids: exact for byte-level tokenizers, for others those of the decoded text.

    A byte-level token may hold a part of a character. Other tokenizers write U+FFFD where they hold such a part.
    """

    def __init__(self, tokenizer: CorpusTokenizer) -> None:
        self._tokenizer = tokenizer
        self.is_exact = _is_byte_level(tokenizer)
        self._table = _list_bytes(tokenizer) if self.is_exact else []

    def join(self, token_ids: NDArray[Any]) -> bytes:
        if self.is_exact:
            return b"".join(map(self._table.__getitem__, token_ids.tolist()))
        return self._tokenizer.decode(token_ids).encode()

    def decode(self, content: bytes) -> tuple[str, int]:
        """The text, with U+FFFD for what is no whole character, and how many bytes that replaces.

        Of a tokenizer that is not byte-level it counts each U+FFFD, by whom it was written is not known, as one byte.
        """
        text = content.decode("utf-8", "replace")
        if not self.is_exact:
            return text, text.count(_REPLACEMENT)
        num_whole = len(content.decode("utf-8", "ignore").encode())
        return text, len(content) - num_whole


@dataclass(frozen=True)
class Fragment:
    """Text between two document borders. `is_end`: an EOS of the source ended it, not that its rest was not chosen."""

    domain: str
    document_id: int
    content: bytes
    is_end: bool


@dataclass
class _Open:
    """A fragment that may go on: its tokens by sequence. `is_first`: it opens with the first sequence of its domain in the shard."""

    document_id: int = 0
    token_ids: list[NDArray[Any]] = field(default_factory=list)
    is_first: bool = False


class FragmentCutter:
    """Cuts chosen sequences, given in order, into fragments: a text that runs on into the next sequence of its domain is joined.

    `take_before(domain, head)` says how many of the first bytes of a shard's text end a character that the shard before opens
    and has taken; `take_after(domain, tail)` gives the bytes that end the last character of the shard's text.
    """

    def __init__(
        self,
        token_bytes: TokenBytes,
        eos_token_id: int,
        take_before: Callable[[str, bytes], int],
        take_after: Callable[[str, bytes], bytes],
    ) -> None:
        self._token_bytes = token_bytes
        self._eos_token_id = eos_token_id
        self._take_before, self._take_after = take_before, take_after
        self._open: dict[str, _Open] = {}
        self._seen: set[str] = set()
        self.num_empty_borders = 0

    def add(self, domain: str, token_ids: NDArray[Any], document_ids: Sequence[int]) -> Iterator[Fragment]:
        """Takes a chosen sequence, and gives the fragments that end in it."""
        start = 0
        for number, position in enumerate(np.flatnonzero(token_ids == self._eos_token_id).tolist()):
            self._extend(domain, token_ids[start:position], _pick(document_ids, number))
            yield from self._close(domain, is_end=True)
            start = position + 1
            self._seen.add(domain)
        if start < len(token_ids):
            self._extend(domain, token_ids[start:], document_ids[-1])
        self._seen.add(domain)

    def skip(self, domain: str) -> Iterator[Fragment]:
        """A sequence that was not chosen, or that is no neighbour of the one before: what is open ends here."""
        self._seen.add(domain)
        yield from self._close(domain, is_end=False)

    def finish(self) -> Iterator[Fragment]:
        """The end of the shard."""
        for domain in sorted(self._open):
            yield from self._close(domain, is_end=False, is_last=True)

    def _extend(self, domain: str, token_ids: NDArray[Any], document_id: int) -> None:
        opened = self._open.setdefault(domain, _Open(is_first=domain not in self._seen))
        opened.document_id = document_id
        opened.token_ids.append(token_ids)

    def _close(self, domain: str, is_end: bool, is_last: bool = False) -> Iterator[Fragment]:
        opened = self._open.pop(domain, None)
        if opened is None:
            return
        content = self._token_bytes.join(np.concatenate(opened.token_ids))
        if opened.is_first:
            content = content[self._take_before(domain, self._token_bytes.join(opened.token_ids[0])) :]
        if is_last:
            content += self._take_after(domain, self._token_bytes.join(opened.token_ids[-1]))
        if content:
            yield Fragment(domain, opened.document_id, content, is_end)
        elif is_end:
            self.num_empty_borders += 1


def count_completing_bytes(tail: bytes, head: bytes) -> int:
    """How many first bytes of `head` complete the character that `tail` ends in the middle of; 0 where they do not."""
    for back in range(1, min(3, len(tail)) + 1):
        byte = tail[-back]
        if byte & 0xC0 != 0x80:  # the first byte of a character
            missing = (4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1) - back
            is_there = 0 < missing <= len(head) and all(other & 0xC0 == 0x80 for other in head[:missing])
            return missing if is_there else 0
    return 0


def _pick(document_ids: Sequence[int], number: int) -> int:
    # Generated text has documents of its own after those of its prompt.
    return document_ids[min(number, len(document_ids) - 1)]


def _is_byte_level(tokenizer: CorpusTokenizer) -> bool:
    if not getattr(tokenizer.tokenizer, "is_fast", False):
        return False
    decoder = json.loads(tokenizer.tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    return decoder.get("type") == "ByteLevel"


def _list_bytes(tokenizer: CorpusTokenizer) -> list[bytes]:
    """The bytes of each token id. Only a token that holds a part of a character has another text than its bytes."""
    texts = tokenizer.decode_vocabulary()
    alphabet = _list_alphabet()
    table = []
    for token_id, text in enumerate(texts):
        if _REPLACEMENT not in text:
            table.append(text.encode())
            continue
        token = tokenizer.tokenizer.backend_tokenizer.id_to_token(token_id)
        known = all(character in alphabet for character in token)
        table.append(bytes(alphabet[character] for character in token) if known else token.encode())
    return table


def _list_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2): itself where it is printable, else 256 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}

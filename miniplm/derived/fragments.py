"""Token ids back to texts: whole documents where they are, fragments of documents where only a part was chosen.

A sequence's cut may lie inside a character, so all is bytes until a text is whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miniplm.tokenizers.tokenizer import CorpusTokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TokenBytes:
    """The UTF-8 bytes of token ids: exact where the tokenizer's decoder works token by token, else those of the decoded text.

    A token may hold a part of a character. A tokenizer that is not exact writes U+FFFD where it holds such a part.
    """

    def __init__(self, tokenizer: CorpusTokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts = tokenizer.texts
        self.is_exact = self._texts is not None and self._texts.is_exact
        self.unknown_id = None if self._texts is None else self._texts.unknown_id
        self.has_prefix = self._texts is not None and self._texts.has_prefix

    def join(self, token_ids: NDArray[Any], starts_text: bool = False) -> bytes:
        """The bytes of token ids (num_tokens,). `starts_text`: they are the first of a document, so that what the encoder puts before one is no text."""
        if self._texts is not None:
            return self._texts.join(token_ids.tolist(), starts_text)
        return self._tokenizer.decode(token_ids).encode()

    def decode(self, content: bytes) -> tuple[str, int]:
        """The text, with U+FFFD for what is no whole character, and how many bytes that replaces.

        Of a tokenizer that is not exact it counts each U+FFFD, by whom it was written is not known, as one byte.
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
    """A fragment that may go on: its tokens by sequence. `is_first`: it opens with the first sequence of its domain in the shard.

    `starts_document`: its first token is its document's first, None where that is for the shard before to say.
    """

    first_document_id: int = 0
    document_id: int = 0
    token_ids: list[NDArray[Any]] = field(default_factory=list)
    is_first: bool = False
    starts_document: bool | None = True


class FragmentCutter:
    """Cuts chosen sequences, given in order, into fragments: a text that runs on into the next sequence of its domain is joined.

    `counts`: those of what is in no fragment (`miniplm.derived.conversion`).

    `take_before(domain, head)` says how many of the first bytes of a shard's text end a character that the shard before opens
    and has taken; `take_after(domain, tail)` gives the bytes that end the last character of the shard's text.
    `starts_document(domain, document_id)` says whether the shard before does not hold a document that a shard's first sequence does.
    """

    def __init__(
        self,
        token_bytes: TokenBytes,
        eos_token_id: int,
        take_before: Callable[[str, bytes], int],
        take_after: Callable[[str, bytes], bytes],
        starts_document: Callable[[str, int], bool],
    ) -> None:
        self._token_bytes = token_bytes
        self._eos_token_id = eos_token_id
        self._take_before, self._take_after, self._starts_document = take_before, take_after, starts_document
        self._open: dict[str, _Open] = {}
        # The last document of each domain so far.
        self._seen: dict[str, int] = {}
        self.counts = Counter(borders_empty=0, unknown_tokens=0)

    def add(self, domain: str, token_ids: NDArray[Any], document_ids: Sequence[int]) -> Iterator[Fragment]:
        """Takes a chosen sequence of token ids (num_tokens,), and gives the fragments that end in it."""
        if self._token_bytes.unknown_id not in (None, self._eos_token_id):
            self.counts["unknown_tokens"] += int(np.count_nonzero(token_ids == self._token_bytes.unknown_id))
        start = 0
        is_start = self._seen[domain] != document_ids[0] if domain in self._seen else None
        for number, position in enumerate(np.flatnonzero(token_ids == self._eos_token_id).tolist()):
            self._extend(domain, token_ids[start:position], _pick(document_ids, number), is_start)
            yield from self._close(domain, is_end=True)
            start, is_start = position + 1, True
            self._seen[domain] = _pick(document_ids, number)
        if start < len(token_ids):
            self._extend(domain, token_ids[start:], document_ids[-1], is_start)
        self._seen[domain] = document_ids[-1]

    def skip(self, domain: str, document_ids: Sequence[int]) -> Iterator[Fragment]:
        """A sequence that was not chosen: what is open ends here."""
        self._seen[domain] = document_ids[-1]
        yield from self._close(domain, is_end=False)

    def part(self, domain: str, document_ids: Sequence[int]) -> Iterator[Fragment]:
        """A sequence comes, of these documents, that is no neighbour of the one before: what is open ends here.

        Whether it starts its first document is not known, and what may be text is kept.
        """
        self._seen[domain] = document_ids[0]
        yield from self._close(domain, is_end=False)

    def finish(self) -> Iterator[Fragment]:
        """The end of the shard."""
        for domain in sorted(self._open):
            yield from self._close(domain, is_end=False, is_last=True)

    def _extend(self, domain: str, token_ids: NDArray[Any], document_id: int, is_start: bool | None) -> None:
        """Adds token ids (num_tokens,) to the open fragment of the domain, or opens one with them."""
        opened = self._open.get(domain)
        if opened is None:
            opened = _Open(first_document_id=document_id, is_first=domain not in self._seen, starts_document=is_start)
            self._open[domain] = opened
        opened.document_id = document_id
        opened.token_ids.append(token_ids)

    def _close(self, domain: str, is_end: bool, is_last: bool = False) -> Iterator[Fragment]:
        opened = self._open.pop(domain, None)
        if opened is None:
            return
        content = self._token_bytes.join(np.concatenate(opened.token_ids), self._is_document_start(domain, opened))
        if opened.is_first:
            content = content[self._take_before(domain, self._token_bytes.join(opened.token_ids[0])) :]
        if is_last:
            content += self._take_after(domain, self._token_bytes.join(opened.token_ids[-1]))
        if content:
            yield Fragment(domain, opened.document_id, content, is_end)
        elif is_end:
            self.counts["borders_empty"] += 1

    def _is_document_start(self, domain: str, opened: _Open) -> bool:
        if opened.starts_document is None and self._token_bytes.has_prefix:
            return self._starts_document(domain, opened.first_document_id)
        return bool(opened.starts_document)


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

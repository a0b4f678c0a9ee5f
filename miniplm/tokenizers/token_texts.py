"""Token ids back to the text that they stand for, byte by byte.

A tokenizer's own decoder is no inverse: it takes an added word with letters beyond ASCII for bytes, drops spaces that are text, and writes
U+FFFD for a character whose bytes lie in several tokens. Here each id has its bytes: an added token the bytes of its content, any other what
the decoder makes of it; what the encoder puts before a text is taken away again. Where a decoder does not work token by token (WordPiece),
the library decodes, and the text is not byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Decoders that put spaces between tokens, added ones too: what they make of a text has no parts.
_SPACING = ("WordPiece", "BPEDecoder", "CTC")

ReadToken = Callable[[str], bytes]


@dataclass(frozen=True)
class _Prefix:
    """What the encoder puts before a text: `content`, before each part between added tokens or (`at_start`) before the whole alone.

    `unless_there`: not where the text begins with it. A text that begins with one such space cannot be told from one without.
    """

    content: bytes = b""
    at_start: bool = True
    unless_there: bool = False

    def remove(self, text: bytes) -> bytes:
        if not self.content or (self.unless_there and text.startswith(self.content * 2)):
            return text
        return text.removeprefix(self.content)


class TokenTexts:
    """The bytes of the token ids of a Rust tokenizer.

    `is_exact`: the bytes of a text are those of its tokens, one after the other. `unknown_id`: the token of what has no tokens.
    """

    def __init__(self, backend: Any, eos_token_id: int) -> None:
        self._backend = backend
        self._eos_token_id = eos_token_id
        content = json.loads(backend.to_str())
        self._is_spaced = _is_spaced(content["decoder"])
        self.unknown_id = _find_unknown(content["model"], backend)
        read_token = _find_reader(content["decoder"])
        self.is_exact = read_token is not None
        self._added = backend.get_added_tokens_decoder()
        self._table: list[bytes] = []
        # Added words that are a part of a character in the model's own vocabulary: what they stand for, their neighbours tell.
        self._doubtful: dict[int, bytes] = {}
        # Added tokens that part a text before it is normalised: what follows is encoded as a text of its own.
        self._parting = {eos_token_id}
        self._prefix = _Prefix()
        if read_token is not None:
            self._fill(read_token)
            self._prefix = _find_prefix(content, read_token)

    @property
    def has_prefix(self) -> bool:
        """Whether the encoder puts something before a text, so that it matters where a text starts."""
        return bool(self._prefix.content)

    def join(self, token_ids: Sequence[int], starts_text: bool = True) -> bytes:
        """The bytes of token ids. `starts_text`: the first one is the first of a text, and not somewhere within it."""
        if not self.is_exact:
            return self._decode(token_ids).encode()
        if not self._prefix.content:
            return self._join_part(token_ids)
        parts = []
        is_text_start = starts_text
        for part, parting in _split(token_ids, self._parting):
            content = self._join_part(part)
            parts.append(self._prefix.remove(content) if is_text_start else content)
            if parting is not None:
                parts.append(self._table[parting])
            is_text_start = not self._prefix.at_start or parting == self._eos_token_id
        return b"".join(parts)

    def _join_part(self, token_ids: Sequence[int]) -> bytes:
        if not self._doubtful or self._doubtful.keys().isdisjoint(token_ids):
            return b"".join([self._table[token_id] for token_id in token_ids])
        joined = bytearray()
        for position, token_id in enumerate(token_ids):
            content = self._table[token_id]
            if token_id in self._doubtful:
                # Three bytes on each side: a character of UTF-8 has four at most.
                following = b"".join([self._table[other] for other in token_ids[position + 1 : position + 4]])
                content = content if _completes_character(bytes(joined[-3:]), content, following) else self._doubtful[token_id]
            joined += content
        return bytes(joined)

    def _fill(self, read_token: ReadToken) -> None:
        own = self._backend.get_vocab(with_added_tokens=False)
        num_ids = max([*own.values(), *self._added, self._eos_token_id]) + 1
        self._table = [b""] * num_ids
        for text, token_id in own.items():
            self._table[token_id] = read_token(text)
        for token_id, token in self._added.items():
            as_word = self._read_added(token, read_token)
            # The model may give the same token for another text than the added word: Gemma's runs of spaces, or one letter for a byte.
            is_word = token.special or own.get(token.content) != token_id
            if is_word:
                self._table[token_id] = as_word
            if not token.normalized and (is_word or (self._table[token_id] == as_word and not token.single_word)):
                self._parting.add(token_id)
            elif not _is_text(self._table[token_id]):
                self._doubtful[token_id] = as_word
        eos = self._backend.id_to_token(self._eos_token_id)
        self._table[self._eos_token_id] = eos.encode()

    def _read_added(self, token: Any, read_token: ReadToken) -> bytes:
        content: bytes = token.content.encode()
        if token.special or not token.normalized or self._backend.normalizer is None:
            return content  # a special one is not looked for in documents
        # It is looked for as the normaliser makes it: with the mark of a space before it, it takes that space with it.
        found = read_token(self._backend.normalizer.normalize_str(token.content))
        return found if found == b" " + content else content

    def _decode(self, token_ids: Sequence[int]) -> str:
        decode = self._backend.decode
        if self._is_spaced:
            return str(decode(list(token_ids), skip_special_tokens=False))
        text = ""
        for part, added in _split(token_ids, self._added.keys() | {self._eos_token_id}):
            text += decode(part, skip_special_tokens=False) if part else ""
            text += "" if added is None else self._backend.id_to_token(added)
        return text


def list_text_changes(backend: Any) -> list[str]:
    """What keeps the text of a Rust tokenizer's ids from being the text that was encoded, in words; nothing where the two are the same."""
    content = json.loads(backend.to_str())
    changes = []
    if (reader := _find_reader(content["decoder"])) is None:
        changes.append(f"its decoder ({_name(content['decoder'])}) does not write each token by itself")
    elif len(steps := _list_prefix_steps(content)) > 1:
        changes.append(f"it puts something before a text twice ({', '.join(steps)})")
    elif _find_prefix(content, reader).unless_there:
        changes.append(f"it puts a space before {_name_what_is_prefixed(content)} unless one is there")
    marks = _list_space_marks(content)
    if reader is not None and (lost := [mark for mark in marks if mark and reader(mark) == b" "]):
        changes.append(f"{lost[0]!r} in a text is the mark of a space, and comes back as one")
    changing = [step["type"] for step in _flatten(content["normalizer"]) if not _is_reversible(step)]
    if changing:
        changes.append(f"it normalises text ({', '.join(changing)})")
    dropping = [step["type"] for step in _flatten(content["pre_tokenizer"]) if _drops_text(step)]
    if dropping:
        changes.append(f"its splitting rules ({', '.join(dropping)}) leave characters out")
    words = [] if reader is None else _list_shared_words(content, backend, reader, marks)
    if words:
        changes.append(f"{words[0]!r} in a text has the id of another text, and comes back as that")
    stripping = [
        token["content"] for token in content["added_tokens"] if not token["special"] and (token["lstrip"] or token["rstrip"])
    ]
    if stripping:
        changes.append(f"added tokens such as {stripping[0]!r} take the spaces beside them with them")
    return changes


def _find_reader(decoder: Any) -> ReadToken | None:
    """What a decoder makes of one token; None where it does not work token by token."""
    steps = _flatten(decoder)
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds:
        return _read_byte_level if set(kinds) <= {"ByteLevel", "Fuse"} else None
    if not steps or not set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Metaspace", "Strip"}:
        return None
    replaced = []
    for number, step in enumerate(steps):
        if step["type"] == "Metaspace":
            replaced.append((step["replacement"], " "))
        elif step["type"] == "Replace":
            # Fused, the tokens are one text, and a pattern may match over the border of two of them.
            if "String" not in step["pattern"] or "Fuse" in kinds[:number]:
                return None
            replaced.append((step["pattern"]["String"], step["content"]))
        # From the fused text it takes what the encoder put before it (`_find_prefix`); from each token it would take spaces of the text.
        elif step["type"] == "Strip" and (step["stop"] or "Fuse" not in kinds[:number]):
            return None
    has_bytes = "ByteFallback" in kinds

    def read_token(token: str) -> bytes:
        if has_bytes and (found := _BYTE.fullmatch(token)):
            return bytes.fromhex(found[1])
        for pattern, content in replaced:
            token = token.replace(pattern, content)
        return token.encode()

    return read_token


def _find_prefix(content: dict[str, Any], read_token: ReadToken) -> _Prefix:
    for step in _flatten(content["normalizer"]):
        if step["type"] == "Prepend":
            return _Prefix(read_token(step["prepend"]), at_start=False)
    for step in _flatten(content["pre_tokenizer"]):
        if _puts_space(step):
            return _Prefix(read_token(step["replacement"]) if step["type"] == "Metaspace" else b" ", unless_there=True)
    return _Prefix()


def _list_prefix_steps(content: dict[str, Any]) -> list[str]:
    """The steps that put something before a text, by name."""
    normalising = [step["type"] for step in _flatten(content["normalizer"]) if step["type"] == "Prepend"]
    return normalising + [step["type"] for step in _flatten(content["pre_tokenizer"]) if _puts_space(step)]


def _puts_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never")
    return step["type"] == "ByteLevel" and bool(step.get("add_prefix_space", True))


def _name_what_is_prefixed(content: dict[str, Any]) -> str:
    """What a space is put before: the whole text, or what earlier splitting rules have made of it."""
    steps = _flatten(content["pre_tokenizer"])
    return "a text" if not steps or _puts_space(steps[0]) else "each piece that it splits a text into"


def _list_shared_words(content: dict[str, Any], backend: Any, read_token: ReadToken, marks: Sequence[str]) -> list[str]:
    """Added words whose id stands for another text in the model's own vocabulary, as `Ġa` does for ` a`; spaces and parts of characters aside."""
    return [
        word["content"]
        for word in content["added_tokens"]
        if not word["special"]
        and backend.model.token_to_id(word["content"]) == word["id"]
        and not any(mark and mark in word["content"] for mark in marks)
        and (found := read_token(word["content"])) != word["content"].encode()
        and _is_text(found)
    ]


def _find_unknown(model: dict[str, Any], backend: Any) -> int | None:
    if model.get("unk_token") is not None:
        found: int | None = backend.token_to_id(model["unk_token"])
        return found
    return model.get("unk_id")


def _is_reversible(step: dict[str, Any]) -> bool:
    """Whether the decoder takes back what this step of a normaliser does; a text that holds the mark itself aside."""
    return step["type"] in ("Prepend", "ByteLevel") or (
        step["type"] == "Replace" and step["pattern"].get("String") == " " and step["content"] == "▁"
    )


def _list_space_marks(content: dict[str, Any]) -> list[str]:
    """The characters that the encoder writes for a space, or the decoder takes for one."""
    steps = [*_flatten(content["normalizer"]), *_flatten(content["pre_tokenizer"])]
    marks = [step["content"] for step in steps if step["type"] == "Replace" and step["pattern"].get("String") == " "]
    reading = _flatten(content["decoder"])
    marks += [step["replacement"] for step in (*steps, *reading) if step["type"] == "Metaspace"]
    return marks + [step["pattern"].get("String", "") for step in reading if step["type"] == "Replace" and step["content"] == " "]


def _drops_text(step: dict[str, Any]) -> bool:
    return step["type"] in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit") or (
        str(step.get("behavior", "")).lower() == "removed"
    )


def _is_spaced(decoder: Any) -> bool:
    steps = _flatten(decoder)
    return not steps or any(step["type"] in _SPACING for step in steps)


def _flatten(part: Any) -> list[dict[str, Any]]:
    """The steps of a normaliser, splitting rule or decoder of tokenizer.json, those of sequences in sequences one after the other."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = next(value for key, value in part.items() if key != "type")
    return [step for one in inner for step in _flatten(one)]


def _name(part: Any) -> str:
    return ", ".join(step["type"] for step in _flatten(part)) or "none"


def _split(token_ids: Sequence[int], parting: Any) -> list[tuple[Sequence[int], int | None]]:
    """Parts without any of these ids, each with the one that follows it, None after the last."""
    parts: list[tuple[Sequence[int], int | None]] = []
    start = 0
    for position, token_id in enumerate(token_ids):
        if token_id in parting:
            parts.append((token_ids[start:position], token_id))
            start = position + 1
    return [*parts, (token_ids[start:], None)]


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _completes_character(before: bytes, content: bytes, following: bytes) -> bool:
    """Whether bytes, which are no text by themselves, are a part of a character of their neighbours."""
    for start in range(len(before) + 1):
        for stop in range(min(3, len(following)) + 1):
            whole = before[start:] + content + following[:stop]
            if (start < len(before) or stop) and _is_text(whole) and (start == len(before) or not _is_text(before[start:])):
                return True
    return False


def _read_byte_level(token: str) -> bytes:
    if all(character in _ALPHABET for character in token):
        return bytes([_ALPHABET[character] for character in token])
    return token.encode()


def _list_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2): itself where it is printable, else 256 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_ALPHABET = _list_alphabet()

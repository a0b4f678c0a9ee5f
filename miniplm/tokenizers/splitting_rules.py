"""Where the words lie that a tokenizer encodes one by one, for those splitting rules whose words Python's `re` can find.

A tokenizer splits a text by a regular expression and encodes each piece alone, so the ids of a text are those of its pieces, joined. The
patterns here give the same pieces wherever that is decided by printable ASCII and plain whitespace, whose classes are the same in every
version of Unicode and in every library. Any other character (N) makes a *stretch* of several pieces, from the last place that is decided to
before the next space that an ASCII character follows; such a place parts two pieces under each of these rules, and the pieces before it are
the same whether the text ends there or goes on. After an ASCII character that N follows nothing is decided: N may be a combining mark.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Printable ASCII, plain whitespace, and what follows neither: a piece that N follows is left to a stretch.
_BLANK = r"[ \t\n\r]"
_SIGN = r"[!-/:-@\[-`{-~]"
_SAFE = r"(?![^ \t\n\r!-~])"


def _stretch(follows: str) -> str:
    """Any character, and all up to a space that a character of the class `follows` follows. Possessive, so that its cost is linear."""
    return rf"(?:.[^ ]*+(?: (?!{follows})[^ ]*+)*+)"


def _contraction(endings: str, follows: str) -> str:
    return rf"'(?:{endings}){_SAFE}|(?='(?:{endings})){_stretch(follows)}"


# GPT-2's: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
_GPT2 = "|".join(
    (
        rf" ?+[A-Za-z]++{_SAFE}",
        _contraction("[stmd]|re|ve|ll", "[!-~]"),
        rf" ?+{_SIGN}++{_SAFE}",
        rf" ?+[0-9]++{_SAFE}",
        rf"{_BLANK}++\Z",
        rf"(?:{_BLANK}(?={_BLANK}))++(?={_BLANK}[!-~])",  # all but the last one, which may belong to what follows
        r"[\t\n\r](?=[!-~])",
        _stretch("[!-~]"),
    )
)
# The same after each digit was set apart, which leaves the whitespace before it alone.
_GPT2_DIGITS = "|".join(
    (
        rf" ?+[A-Za-z]++{_SAFE}",
        _contraction("[stmd]|re|ve|ll", "[!-/:-~]"),
        rf" ?+{_SIGN}++{_SAFE}",
        rf"[0-9]{_SAFE}",
        rf"{_BLANK}++(?=[0-9]|\Z)",
        rf"(?:{_BLANK}(?={_BLANK}))++(?={_BLANK}[!-/:-~])",
        r"[\t\n\r](?=[!-/:-~])",
        _stretch("[!-/:-~]"),
    )
)
_NUMBERS = {r"\p{N}": "[0-9]", r"\p{N}{1,3}": "[0-9]{1,3}+"}
_RULES_OF_NUMBERS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + number
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": digits
    for number, digits in _NUMBERS.items()
}


def _tiktoken(digits: str) -> str:
    """The rules of Qwen 1.5 to 3 (one digit) and of GPT-4 and Llama 3 (up to three)."""
    return "|".join(
        (
            _contraction("[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]", "[!-~]"),
            rf"(?:[ \t]|{_SIGN})?+[A-Za-z]++{_SAFE}",
            rf"{digits}{_SAFE}",
            rf"(?!{_SIGN}[A-Za-z]) ?+{_SIGN}++{_SAFE}[\r\n]*+",  # one sign belongs to the letters after it, though N follows these
            r"(?:[ \t]*+[\r\n]++)++(?=[ \t]*+(?:[!-~]|\Z))",
            r"[ \t]++\Z",
            r"(?:[ \t](?=[ \t]))++(?=[ \t][!-~])",
            rf"[ \t](?=[0-9])|\t(?={_SIGN})",
            _stretch("[!-~]"),
        )
    )


def find_words_pattern(backend: Any) -> re.Pattern[str] | None:
    """A pattern whose matches, in order and without gaps, are words that the Rust tokenizer encodes one by one; None where none is known.

    None too where something looks across words: a word of its own in the vocabulary, a normaliser other than NFC, chance (dropout).
    """
    if backend.pre_tokenizer is None or getattr(backend.model, "dropout", None):
        return None
    if any(not token.special for token in backend.get_added_tokens_decoder().values()):
        return None
    if backend.normalizer is not None and _describe(backend.normalizer) != {"type": "NFC"}:
        return None
    pattern = _find_pattern(_describe(backend.pre_tokenizer))
    return None if pattern is None else re.compile(pattern, re.DOTALL)


def _find_pattern(rules: dict[str, Any]) -> str | None:
    if _is_byte_level(rules, uses_regex=True):
        return _GPT2
    parts = rules.get("pretokenizers", []) if rules.get("type") == "Sequence" else []
    if len(parts) != 2:
        return None
    first, second = parts
    if first == {"type": "Digits", "individual_digits": True} and _is_byte_level(second, uses_regex=True):
        return _GPT2_DIGITS
    is_split = (first.get("type"), first.get("behavior"), first.get("invert")) == ("Split", "Isolated", False)
    digits = _RULES_OF_NUMBERS.get(first.get("pattern", {}).get("Regex", "")) if is_split else None
    return None if digits is None or not _is_byte_level(second, uses_regex=False) else _tiktoken(digits)


def _is_byte_level(rules: dict[str, Any], uses_regex: bool) -> bool:
    kind = (rules.get("type"), rules.get("add_prefix_space"), rules.get("use_regex", True))
    return kind == ("ByteLevel", False, uses_regex)


def _describe(part: Any) -> dict[str, Any]:
    """A part of a tokenizer as tokenizer.json has it."""
    described: dict[str, Any] = json.loads(part.__getstate__())
    return described

"""File names as text that can be stored and shown, each as another one, whatever bytes they are made of.

A name on Linux is bytes; Python holds those that are not UTF-8 as lone surrogates, which nothing can write as UTF-8.
"""

from __future__ import annotations

import re
import unicodedata

_BYTES = re.compile(r"((?:\\x[0-9a-f]{2})+)|\\\\")
_ESCAPE = re.compile(r"\\x[0-9a-f]{2}|\\\\")


def show_name(name: str) -> str:
    r"""The name itself where it is plain text; else with `\xHH` for each byte that is not UTF-8 or controls a terminal.

    `caf\xe9.jsonl` is the Latin-1 name; a backslash of an escaped name is doubled, so no two names look the same.
    """
    if not any(_is_unshowable(character) for character in name) and not _ESCAPE.search(name):
        return name
    return "".join(_escape(character) for character in name)


def read_name(shown: str) -> str:
    """The name that `show_name` gives as `shown`."""

    def undo(found: re.Match[str]) -> str:
        if found[1] is None:
            return "\\"
        return bytes.fromhex(found[1].replace("\\x", "")).decode("utf-8", "surrogateescape")

    return _BYTES.sub(undo, shown)


def _is_unshowable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if not _is_unshowable(character):
        return character
    try:
        content = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no byte of a name, but of a URL
        content = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in content)

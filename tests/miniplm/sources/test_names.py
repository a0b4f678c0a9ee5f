"""File names of any bytes as text that UTF-8 can hold: no two the same, and plain names as they are."""

from __future__ import annotations

import os

from hypothesis import example, given
from hypothesis import strategies as st

from miniplm.sources.names import read_name, show_name


def read_back(shown: str) -> bytes:
    """By hand what the docstring says: `\\xHH` is a byte and `\\\\` a backslash, in names that hold one of these."""
    content, at = b"", 0
    escaped = "\\\\" in shown or any(
        shown[i : i + 2] == "\\x" and len(shown) >= i + 4 and all(c in "0123456789abcdef" for c in shown[i + 2 : i + 4])
        for i in range(len(shown))
    )
    while at < len(shown):
        if escaped and shown[at : at + 2] == "\\x":
            content, at = content + bytes.fromhex(shown[at + 2 : at + 4]), at + 4
        elif escaped and shown[at : at + 2] == "\\\\":
            content, at = content + b"\\", at + 2
        else:
            content, at = content + shown[at].encode(), at + 1
    return content


@given(st.one_of(st.binary(max_size=30), st.text(alphabet="\\x0e9a\n\x1bé中", max_size=12).map(str.encode)))
@example(b"caf\xe9.jsonl")
@example(b"caf\\xe9.jsonl")
@example(b"\\\\")
@example(b"a\\")
def test_any_name_is_shown_in_utf8_on_one_line_and_can_be_told_from_any_other(name: bytes):
    shown = show_name(os.fsdecode(name))
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert all(character.isprintable() or ord(character) > 0xA0 for character in shown)
    assert read_back(shown) == name
    assert os.fsencode(read_name(shown)) == name


def test_plain_names_stay_and_others_show_their_bytes():
    assert show_name("/data/zwölf 中 [1] 100%.jsonl") == "/data/zwölf 中 [1] 100%.jsonl"
    assert show_name("C:\\data") == "C:\\data"
    assert show_name(os.fsdecode(b"caf\xe9.jsonl")) == r"caf\xe9.jsonl"
    assert show_name(os.fsdecode(b"caf\\xe9.jsonl")) == r"caf\\xe9.jsonl"
    assert show_name("new\nline") == r"new\x0aline"

"""What is printed for people: plain text, whatever a corpus holds, wide enough to be read."""

from __future__ import annotations

import os
import re
from typing import Any

from rich.console import Console
from rich.text import Text

# All but tab and newline: a document or a name of a domain may clear a terminal, colour what comes after it, or turn it around.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_CONTROLS_OF_LINES = re.compile("[\n\t]")
# In fewer columns than that a table is letters below each other; with none at all nothing is printed.
_LEAST_COLUMNS = 40


class PlainConsole(Console):
    r"""Prints what it is given as it is: no markup, and what controls a terminal as `\xNN`."""

    def __init__(self, stderr: bool = False, soft_wrap: bool = False) -> None:
        columns = os.environ.get("COLUMNS", "")
        width = _LEAST_COLUMNS if columns.isdigit() and int(columns) < _LEAST_COLUMNS else None
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False, width=width)

    def render_str(self, text: str, **settings: Any) -> Text:
        """As of `Console`."""
        return super().render_str(show_controls(text), **settings)


def show_controls(text: str) -> str:
    r"""The text with `\xNN` or `\uNNNN` for each character that controls a terminal."""
    return _CONTROLS.sub(_name_control, text)


def show_in_line(text: str) -> str:
    """As `show_controls`, for what has one line of a table: a name with a newline is no two names."""
    return _CONTROLS_OF_LINES.sub(_name_control, show_controls(text))


def _name_control(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

"""Dirt for the demo's corpus: what real corpora hold beside text that is worth learning, made on purpose, so that the truth is known.

Each kind is a function of a clean document and a seeded generator; the same document gives the same dirt.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import random
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.packages import Package, fetch_package, read_members

CLEAN = "clean"
SHARE = 0.4  # of the documents of each domain

DJANGO = Package(
    name="Django",
    version="5.2.8",
    file="django-5.2.8-py3-none-any.whl",
    num_bytes=8_289_692,
    sha256="37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f",
)
LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "sv", "pl")
_MIN_MESSAGE_CHARS = 25

_FURNITURE = (
    "Skip to main content",
    "Home | About us | Contact | Sitemap",
    "Accept all cookies   Reject all   Manage preferences",
    "We use cookies to improve your experience. Read our cookie policy.",
    "Share on Facebook   Share on Twitter   Share by email   Print this page",
    "Sign in or create an account to post a comment.",
    "Subscribe to our newsletter! Enter your email address",
    "Previous | Next | Page {n} of {m}",
    "Copyright {year} All rights reserved. Terms of use | Privacy policy",
    "You may also like:",
    "Advertisement",
    "Loading...",
    "{n} comments",
    "Back to top",
    "Follow us",
    "Read more »",
    "Last updated: {year}-{month:02d}-{day:02d} {n:02d}:{day:02d}",
    "Powered by WordPress | Theme by Demo",
    "Toggle navigation  Menu  Search  Cart ({n})",
    "Tags: news, archive, {year}, top stories",
    "Login   Register   Forgot password?",
    "Your browser does not support JavaScript. Please enable it.",
    "{m} people found this helpful. Was this page helpful? Yes No",
    "This page was generated in 0.{m} seconds",
)


@dataclass(frozen=True)
class DirtSource:
    """What dirt is made of beside the document that it takes the place of: clean documents of the domain, and messages in other languages."""

    clean: Sequence[str]
    messages: Sequence[str]


def garble_characters(text: str, draw: random.Random, source: DirtSource) -> str:
    """A quarter of the characters that are no space replaced by others, as bad OCR gives."""
    signs = string.ascii_letters + string.digits + ".,;:'|~^*"
    return "".join(draw.choice(signs) if not sign.isspace() and draw.random() < 0.25 else sign for sign in text)


def encode_bytes(text: str, draw: random.Random, source: DirtSource) -> str:
    """Base64 of bytes that say nothing, as an attachment in a mail."""
    content = draw.randbytes(len(text) // 2)
    return base64.encodebytes(content).decode().strip()


def shuffle_words(text: str, draw: random.Random, source: DirtSource) -> str:
    words = text.split()
    draw.shuffle(words)
    return " ".join(words)


def make_furniture(text: str, draw: random.Random, source: DirtSource) -> str:
    """What stands around the text of a page: menus, notices, buttons."""
    lines: list[str] = []
    while sum(map(len, lines)) < len(text):
        line = draw.choice(_FURNITURE)
        lines.append(
            line.format(
                n=draw.randint(1, 24),
                m=draw.randint(25, 99),
                year=draw.randint(1999, 2024),
                month=draw.randint(1, 12),
                day=draw.randint(1, 28),
            )
        )
    return "\n".join(lines)


def make_list(text: str, draw: random.Random, source: DirtSource) -> str:
    """Rows out of a machine: numbers, states, amounts, one like the other."""
    number = draw.randint(1_000, 900_000)
    rows: list[str] = []
    while sum(map(len, rows)) < len(text) * 0.6:
        number += draw.randint(1, 9)
        state = draw.choice(("OK", "OK", "OK", "PENDING", "FAILED"))
        rows.append(
            f"{number:07d};{draw.choice('ABCDEF')}{draw.randint(10, 99)};{draw.randint(0, 500)};{draw.random() * 100:.2f};{state}"
        )
    return "\n".join(rows)


def copy_with_changes(text: str, draw: random.Random, source: DirtSource) -> str:
    """A document that the domain holds already, one word in thirty replaced by another of its own."""
    words = re.split(r"(\s+)", draw.choice(source.clean))
    for index in range(0, len(words), 2):
        if draw.random() < 1 / 30:
            words[index] = words[2 * draw.randrange((len(words) + 1) // 2)]
    return "".join(words)


def take_foreign(text: str, draw: random.Random, source: DirtSource) -> str:
    """Messages in one other language, in a domain where none is looked for."""
    start = draw.randrange(len(source.messages))
    messages: list[str] = []
    while sum(map(len, messages)) < len(text) * 0.7:
        messages.append(source.messages[(start + len(messages)) % len(source.messages)])
    return "\n".join(messages)


KINDS: dict[str, Callable[[str, random.Random, DirtSource], str]] = {
    "ocr": garble_characters,
    "encoded": encode_bytes,
    "shuffled": shuffle_words,
    "furniture": make_furniture,
    "list": make_list,
    "copy": copy_with_changes,
    "foreign": take_foreign,
}


def read_messages(cache: Path) -> Iterator[str]:
    """The longer messages of Django's translations, language by language."""
    for language in LANGUAGES:
        for _, content in read_members(fetch_package(DJANGO, cache), f"django/*/locale/{language}/LC_MESSAGES/django.po"):
            for quoted in re.findall(r'^msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\s*)+)', content.decode(), re.MULTILINE):
                message = "".join(ast.literal_eval(line) for line in quoted.split("\n") if line.strip())
                if len(message) >= _MIN_MESSAGE_CHARS and "POT-Creation-Date" not in message:
                    yield message


def add_dirt(documents: Sequence[tuple[str, str]], messages: Sequence[str]) -> list[tuple[str, str, str]]:
    """Source, text and kind of the documents of a domain, of which a share became dirt, every kind equally often.

    Which those are depends on the texts alone, not on their order.
    """

    def place(document: tuple[str, str]) -> bytes:
        return hashlib.sha256(b"dirt:" + document[1].encode()).digest()

    dirty = sorted(documents, key=place)[: round(SHARE * len(documents))]
    kinds = {text: kind for (_, text), kind in zip(dirty, list(KINDS) * len(dirty), strict=False)}
    source = DirtSource([text for _, text in documents if text not in kinds], messages)
    made = []
    for name, text in documents:
        kind = kinds.get(text, CLEAN)
        draw = random.Random(hashlib.sha256(text.encode()).hexdigest())
        made.append((name, text, kind) if kind == CLEAN else (f"made of {name}", KINDS[kind](text, draw, source), kind))
    return made

"""The demo's dirt: each kind is what it says, the same again from the same text, and of the stated share."""

from __future__ import annotations

import base64
import random

import pytest

from scripts.demo_dirt import CLEAN, KINDS, SHARE, DirtSource, add_dirt

TEXT = " ".join(f"word{index} and more of it," for index in range(80))
SOURCE = DirtSource([TEXT], ["Bitte die unten stehenden Fehler beheben.", "Diese Seite wurde nicht gefunden."])


def make(kind: str, seed: int = 0) -> str:
    return KINDS[kind](TEXT, random.Random(seed), SOURCE)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_made_again_from_the_same_seed_and_is_another_text(kind: str) -> None:
    assert make(kind) == make(kind)
    assert make(kind).strip()
    assert make(kind) != TEXT


def test_kinds_are_what_they_are_called() -> None:
    ocr = make("ocr")
    wrong = sum(ours != theirs for ours, theirs in zip(ocr, TEXT, strict=True) if not theirs.isspace())
    assert wrong / sum(not sign.isspace() for sign in TEXT) == pytest.approx(0.25, abs=0.04)
    assert len(base64.b64decode(make("encoded"))) == len(TEXT) // 2
    assert sorted(make("shuffled").split()) == sorted(TEXT.split())
    copied = make("copy").split()
    assert 0 < sum(ours != theirs for ours, theirs in zip(copied, TEXT.split(), strict=True)) < len(copied) / 10
    assert set(make("foreign").splitlines()) == set(SOURCE.messages)


def test_a_stated_share_of_the_documents_becomes_dirt_whatever_their_order() -> None:
    documents = [(f"s{index}", f"{TEXT} {index}") for index in range(70)]
    made = add_dirt(documents, SOURCE.messages)
    kinds = [kind for _, _, kind in made]
    assert kinds.count(CLEAN) == 70 - round(SHARE * 70)
    assert {kinds.count(kind) for kind in KINDS} == {4}
    again = add_dirt(documents[::-1], SOURCE.messages)
    assert {(source, kind) for source, _, kind in made} == {(source, kind) for source, _, kind in again}

"""Splits by a seeded hash of the text."""

from __future__ import annotations

import hashlib

import pytest

from miniplm.config.run import SplitsConfig
from miniplm.corpus.splits import assign_split, hash_document


def test_the_hash_is_blake2b_of_seed_and_text():
    expected = int.from_bytes(hashlib.blake2b(b"7:some text", digest_size=8).digest(), "big") / 2**64
    assert hash_document(b"some text", 7) == pytest.approx(expected, abs=1e-15)
    assert hash_document(b"some text", 8) != hash_document(b"some text", 7)


def test_shares_are_met_and_the_splits_lie_side_by_side():
    splits = SplitsConfig(reference=0.2, heldout=0.1)
    texts = [f"document {i}".encode() for i in range(20_000)]
    found = [assign_split(text, 0, splits) for text in texts]
    assert found.count("heldout") == pytest.approx(2000, abs=150)
    assert found.count("reference") == pytest.approx(4000, abs=200)
    for text, split in zip(texts, found, strict=True):
        position = hash_document(text, 0)
        assert split == ("heldout" if position < 0.1 else "reference" if position < 0.1 + 0.2 else "candidate")


def test_without_shares_all_are_candidates():
    assert {assign_split(f"{i}".encode(), 0, SplitsConfig(reference=0, heldout=0)) for i in range(500)} == {"candidate"}


def test_a_larger_held_out_share_keeps_what_was_held_out():
    small, large = SplitsConfig(reference=0.1, heldout=0.05), SplitsConfig(reference=0.1, heldout=0.1)
    for i in range(1000):
        text = f"{i}".encode()
        assert assign_split(text, 3, small) != "heldout" or assign_split(text, 3, large) == "heldout"

"""Which use a document has, by a seeded hash of its text: equal texts are in one split, whatever file they come from."""

from __future__ import annotations

import hashlib

from miniplm.config.run import SplitsConfig
from miniplm.records.manifests import Split


def hash_document(text: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on the UTF-8 text and the seed alone: the first 8 bytes of BLAKE2b over 2**64."""
    hasher = hashlib.blake2b(f"{seed}:".encode(), digest_size=8)
    hasher.update(text)
    # The top 53 bits: all that a float holds exactly, so that the result stays under 1.
    return (int.from_bytes(hasher.digest(), "big") >> 11) / 2**53


def assign_split(text: bytes, seed: int, splits: SplitsConfig) -> Split:
    """`heldout` below its share, `reference` in the share above it, else `candidate`."""
    position = hash_document(text, seed)
    if position < splits.heldout:
        return "heldout"
    if position < splits.heldout + splits.reference:
        return "reference"
    return "candidate"

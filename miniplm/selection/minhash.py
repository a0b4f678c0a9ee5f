"""How alike two token sequences are, from a few bytes of each: MinHash over their shingles.

A sequence is the set of its 5-token shingles. Of the 128 minima that rensa makes of the set the lowest byte is kept (b-bit MinHash, Li and
König 2010): a quarter of the space, and the Jaccard similarity is known as well from it, to a standard error of 0.035 at 0.8.

Shapes: N sequences, P = 128 permutations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import rensa
from numpy.typing import NDArray

# Two that share so much of their shingles are near-duplicates, as in the deduplication of web text (Lee et al. 2022, 0.8).
NEAR_DUPLICATE_JACCARD = 0.8
SHINGLE_SIZE = 5
NUM_PERMUTATIONS = 128
# What two sets of signatures must share to be compared; it goes into what is stored of them.
SIGNATURE_VERSION = f"rensa-{rensa.RMinHash.ALGORITHM_VERSION}-{SHINGLE_SIZE}-{NUM_PERMUTATIONS}"
_SEED = 0
_CHANCE = 1 / 256
# Equal bytes that make a near-duplicate: other minima have the same byte once in 256 times.
LEAST_EQUAL_BYTES = math.ceil(NUM_PERMUTATIONS * (NEAR_DUPLICATE_JACCARD + (1 - NEAR_DUPLICATE_JACCARD) * _CHANCE))
# An odd multiplier of 64 bits: products wrap, and different n-grams fall on one number once in 2^64.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)

Signatures = NDArray[np.uint8]


def hash_ngrams(token_ids: NDArray[Any], size: int) -> NDArray[np.uint64]:
    """A number for each n-gram (num_ngrams,) of token ids (num_tokens,), in their order."""
    tokens = token_ids.astype(np.uint64) + np.uint64(1)
    num = max(0, len(tokens) - size + 1)
    hashes = np.zeros(num, dtype=np.uint64)
    for offset in range(size):
        hashes = (hashes ^ tokens[offset : offset + num]) * _MULTIPLIER
        hashes ^= hashes >> _HALF
    return hashes


def sign(sequences: Sequence[NDArray[Any]]) -> Signatures:
    """The signature (N, P) of each sequence (num_tokens,); one shorter than a shingle is a shingle itself, an empty one is alike to none but its like."""
    if not sequences:
        return np.zeros((0, NUM_PERMUTATIONS), dtype=np.uint8)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    flat = np.concatenate(sequences)
    hashes = hash_ngrams(flat, SHINGLE_SIZE)
    num_shingles = np.maximum(lengths - SHINGLE_SIZE + 1, 0)
    ends = np.cumsum(lengths)
    # A window belongs to a sequence that it does not go beyond.
    places = np.arange(num_shingles.sum()) + np.repeat(ends - lengths - (np.cumsum(num_shingles) - num_shingles), num_shingles)
    shingles = hashes[places]
    if (short := np.flatnonzero(num_shingles == 0)).size:
        own = np.array([_hash_whole(sequences[row]) for row in short.tolist()], dtype=np.uint64)
        shingles = np.insert(shingles, (np.cumsum(num_shingles) - num_shingles)[short], own)
        num_shingles[short] = 1
    bounds = np.concatenate([[0], np.cumsum(num_shingles)]).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, bounds, NUM_PERMUTATIONS, _SEED)
    return (np.array(matrix.to_rows(), dtype=np.uint32) & np.uint32(0xFF)).astype(np.uint8)


def are_alike(left: Signatures, right: Signatures) -> NDArray[np.bool_]:
    """Whether the estimated Jaccard similarity of each row of (N, P) to that of the other (N, P) is at least 0.8: (N,)."""
    return np.asarray(np.count_nonzero(left == right, axis=-1) >= LEAST_EQUAL_BYTES)


def _hash_whole(sequence: NDArray[Any]) -> int:
    """A number for a sequence (num_tokens,) of fewer tokens than a shingle has."""
    return int(hash_ngrams(sequence, len(sequence))[0]) if len(sequence) else 0

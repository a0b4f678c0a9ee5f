"""How varied a sample of sequences is: distinct n-grams, compression, near-duplicates, spread of embeddings. NumPy only, no model.

Shapes: N rows, H width of an embedding.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

Tokens = np.ndarray[Any, Any]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

NGRAM_SIZES = (1, 2, 3)
# Two sequences that share so much of their shingles are near-duplicates, as in the deduplication of web text (Lee et al. 2022, 0.8).
NEAR_DUPLICATE_JACCARD = 0.8
_SHINGLE_SIZE = 5
_NUM_HASHES = 128
# An odd multiplier of 64 bits: products wrap, and different n-grams fall on one number once in 2^64.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MOST_SIGNIFICANT = np.uint64(32)


def count_distinct_ngrams(sequences: Sequence[Tokens], size: int) -> tuple[int, int]:
    """How many n-grams of `size` tokens differ, and how many there are; none goes from one sequence into the next."""
    hashes = [hash_ngrams(sequence, size) for sequence in sequences if len(sequence) >= size]
    if not hashes:
        return 0, 0
    every = np.concatenate(hashes)
    return len(np.unique(every)), len(every)


def cut_to_tokens(sequences: Sequence[Tokens], num_tokens: int) -> list[Tokens]:
    """The first `num_tokens` tokens of all sequences: a longer text repeats more, so only samples of one length are compared."""
    left, cut = num_tokens, []
    for sequence in sequences:
        if left <= 0:
            break
        cut.append(sequence[:left])
        left -= len(cut[-1])
    return cut


def measure_compression(texts: Sequence[str]) -> float:
    """UTF-8 bytes over bytes compressed by zlib, each text by itself: higher is more repetitive. 0 without text."""
    pairs = [
        (len(content), len(zlib.compress(content, 6))) for content in (text.encode("utf-8", "replace") for text in texts) if content
    ]
    return sum(size for size, _ in pairs) / sum(small for _, small in pairs) if pairs else 0.0


def find_near_duplicates(sequences: Sequence[Tokens]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which sequences (num_sequences,) have another one in the sample with an estimated Jaccard similarity of 5-token shingles of 0.8 or more.

    The estimate is MinHash with 128 hashes (standard error 0.035 at 0.8). Memory: one row of comparisons at a time.
    """
    multipliers = np.random.default_rng(0).integers(1, 2**63, size=_NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    signatures = np.stack([_sign(sequence, multipliers) for sequence in sequences]) if sequences else np.zeros((0, _NUM_HASHES))
    found = np.zeros(len(sequences), dtype=np.bool_)
    for row in range(len(sequences) - 1):
        alike = (signatures[row + 1 :] == signatures[row]).mean(axis=1) >= NEAR_DUPLICATE_JACCARD
        found[row] |= alike.any()
        found[row + 1 :] |= alike
    return found


def measure_spread(embeddings: FloatArray) -> float:
    """The mean cosine distance of all pairs of rows, 0 (all alike) to about 1 (no two alike), of (N, H) embeddings. 0 of fewer than two."""
    num = len(embeddings)
    if num < 2:
        return 0.0
    units = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    # Of all pairs: the squared length of the sum holds each pair twice and each row with itself once.
    return float(1 - (np.square(units.sum(axis=0)).sum() - np.square(units).sum()) / (num * (num - 1)))


def hash_ngrams(sequence: Tokens, size: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A number for each n-gram (num_ngrams,) of a sequence, in its order."""
    tokens = sequence.astype(np.uint64) + np.uint64(1)
    num = len(tokens) - size + 1
    hashes = np.zeros(num, dtype=np.uint64)
    for offset in range(size):
        hashes = (hashes ^ tokens[offset : offset + num]) * _MULTIPLIER
        hashes ^= hashes >> _MOST_SIGNIFICANT
    return hashes


def _sign(sequence: Tokens, multipliers: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The MinHash signature (num_hashes,) of a sequence by multipliers (num_hashes,)."""
    shingles = np.unique(hash_ngrams(sequence, min(_SHINGLE_SIZE, max(1, len(sequence)))))
    # High bits of a product are mixed by all bits below, low ones are not.
    return np.asarray((shingles[:, None] * multipliers[None, :] >> _MOST_SIGNIFICANT).min(axis=0))

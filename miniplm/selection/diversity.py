"""How varied a sample of sequences is: distinct n-grams, compression, near-duplicates, spread of embeddings. No model.

Shapes: N rows, H width of an embedding.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from miniplm.selection.minhash import are_alike, hash_ngrams, sign

Tokens = np.ndarray[Any, Any]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

NGRAM_SIZES = (1, 2, 3)


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

    By MinHash (`overlap/minhash`). Memory: one row of comparisons at a time.
    """
    signatures = sign(sequences)
    found = np.zeros(len(sequences), dtype=np.bool_)
    for row in range(len(sequences) - 1):
        alike = are_alike(signatures[row + 1 :], signatures[row])
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

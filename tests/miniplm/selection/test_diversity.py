"""Diversity of a sample, against plain sets, all pairs and worked cases."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from miniplm.selection.diversity import (
    count_distinct_ngrams,
    cut_to_tokens,
    find_near_duplicates,
    measure_compression,
    measure_spread,
)


def draw(seed: int, num: int = 20, vocabulary: int = 30) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, size=rng.integers(1, 60)).astype(np.uint16) for _ in range(num)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_distinct_ngrams_are_those_of_a_plain_set(size: int) -> None:
    sequences = draw(seed=size)
    ngrams = [tuple(seq[i : i + size].tolist()) for seq in sequences for i in range(len(seq) - size + 1)]
    assert count_distinct_ngrams(sequences, size) == (len(set(ngrams)), len(ngrams))


def test_order_of_tokens_matters_and_short_sequences_have_none() -> None:
    assert count_distinct_ngrams([np.array([1, 2]), np.array([2, 1]), np.array([1, 2])], 2) == (2, 3)
    assert count_distinct_ngrams([np.array([1])], 2) == (0, 0)


def test_cut_keeps_the_first_tokens_of_all() -> None:
    cut = cut_to_tokens([np.arange(5), np.arange(5), np.arange(5)], 7)
    assert [len(sequence) for sequence in cut] == [5, 2]


def test_compression_ratio_is_zlibs_and_higher_for_repeats() -> None:
    texts = ["to be or not to be " * 40, "a"]
    expected = sum(map(len, texts)) / sum(len(zlib.compress(text.encode(), 6)) for text in texts)
    assert measure_compression(texts) == expected
    assert measure_compression(["ab" * 500]) > measure_compression(["".join(chr(33 + (i * i) % 90) for i in range(1000))])
    assert measure_compression(["", ""]) == 0.0


def test_near_duplicates_are_those_of_all_pairs_by_jaccard() -> None:
    rng = np.random.default_rng(5)
    sequences = [rng.integers(0, 5000, size=300).astype(np.uint32) for _ in range(12)]
    near = sequences[3].copy()
    near[100] = 7  # 5 of 296 shingles differ: Jaccard 0.97
    half = np.concatenate([sequences[6][:150], sequences[7][:150]])  # at most 0.5
    sequences += [near, half]
    shingles = [{tuple(seq[i : i + 5].tolist()) for i in range(len(seq) - 4)} for seq in sequences]
    expected = [
        any(len(mine & other) / len(mine | other) >= 0.8 for place, other in enumerate(shingles) if place != row)
        for row, mine in enumerate(shingles)
    ]
    assert find_near_duplicates(sequences).tolist() == expected
    assert expected.count(True) == 2


def test_near_duplicates_of_short_or_no_sequences() -> None:
    assert find_near_duplicates([]).tolist() == []
    assert find_near_duplicates([np.array([4, 5]), np.array([4, 5]), np.array([9])]).tolist() == [True, True, False]


def test_spread_is_the_mean_cosine_distance_of_all_pairs() -> None:
    rows = np.random.default_rng(2).normal(size=(9, 4))
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [1 - units[i] @ units[j] for i in range(9) for j in range(i)]
    assert measure_spread(rows) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert measure_spread(np.array([[1.0, 0], [2.0, 0]])) == pytest.approx(0)
    assert measure_spread(np.array([[1.0, 0], [0, 1.0]])) == pytest.approx(1)
    assert measure_spread(rows[:1]) == 0.0

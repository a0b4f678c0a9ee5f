"""Standard errors of held-out losses and of differences: by hand, by a bootstrap, and kept without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from miniplm.evaluation.losses import SequenceLosses, find_losses, ratio_standard_error, subtract_losses, write_losses
from miniplm.storage.root import Storage


def make_losses(num: int, seed: int = 0, easier: float = 0.0) -> SequenceLosses:
    """Sequences of 5 to 40 scored tokens; those of a document share most of their difficulty, whatever the model."""
    text, model = np.random.default_rng(0), np.random.default_rng(seed)
    document = np.sort(text.integers(0, num // 2, num))
    counts = text.integers(5, 41, num)
    difficulty = 3 + text.normal(0, 0.8, num)[document] + text.normal(0, 0.2, num)
    return SequenceLosses(
        sequence_id=np.arange(num),
        domain=np.where(document % 3 == 0, "a", "b"),
        document_id=document,
        num_scored_tokens=counts,
        nll_sum=counts * (difficulty - easier + model.normal(0, 0.05, num)),
    )


def bootstrap_error(sums: NDArray[Any], counts: NDArray[Any], clusters: NDArray[Any], num: int = 4000) -> float:
    """The standard deviation of the ratio over resamples of whole clusters."""
    generator = np.random.default_rng(1)
    totals = np.array([[sums[clusters == name].sum(), counts[clusters == name].sum()] for name in np.unique(clusters)])
    drawn = totals[generator.integers(0, len(totals), (num, len(totals)))].sum(axis=1)
    return float(np.std(drawn[:, 0] / drawn[:, 1], ddof=1))


def test_worked_case() -> None:
    """Three documents: sums 6, 8, 16 over 2, 4, 4 tokens; r = 3, e = (0, -4, 4); se = sqrt(3/2 * 32) / 10."""
    sums, counts = np.array([2.0, 4.0, 8.0, 16.0]), np.array([1, 1, 4, 4])
    assert ratio_standard_error(sums, counts, np.array([7, 7, 8, 9])) == pytest.approx(48**0.5 / 10, rel=1e-12)
    # One sequence a document: r = 3, e = (-1, 1, -4, 4); se = sqrt(4/3 * 34) / 10.
    assert ratio_standard_error(sums, counts, np.arange(4)) == pytest.approx((136 / 3) ** 0.5 / 10, rel=1e-12)


def test_of_equal_counts_it_is_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=50)
    expected = np.std(values, ddof=1) / 50**0.5
    assert ratio_standard_error(values, np.ones(50), np.arange(50)) == pytest.approx(expected, rel=1e-12)


def test_one_document_has_no_standard_error() -> None:
    assert ratio_standard_error(np.array([1.0, 2.0]), np.array([1, 1]), np.array([3, 3])) is None
    assert ratio_standard_error(np.zeros(2), np.zeros(2), np.array([3, 4])) is None


def test_it_agrees_with_a_bootstrap_of_documents() -> None:
    losses = make_losses(600)
    error = losses.standard_error()
    assert error == pytest.approx(bootstrap_error(losses.nll_sum, losses.num_scored_tokens, losses.document_id), rel=0.06)
    # Taking the sequences of a document for independent would promise more than there is.
    naive = ratio_standard_error(losses.nll_sum, losses.num_scored_tokens, losses.sequence_id)
    assert error is not None
    assert naive is not None
    assert error > 1.2 * naive


def test_a_paired_difference_is_surer_than_two_losses() -> None:
    losses, baseline = make_losses(600, seed=1, easier=0.02), make_losses(600, seed=2)
    difference = subtract_losses(losses, baseline)
    means = [one.nll_sum.sum() / one.num_scored_tokens.sum() for one in (losses, baseline)]
    assert difference.nats_per_token == pytest.approx(means[0] - means[1], abs=1e-12)
    expected = bootstrap_error(losses.nll_sum - baseline.nll_sum, losses.num_scored_tokens, losses.document_id)
    assert difference.standard_error == pytest.approx(expected, rel=0.06)
    single = losses.standard_error()
    assert difference.standard_error is not None
    assert single is not None
    assert 10 * difference.standard_error < single
    # The true difference, 0.02, is within three standard errors, and told from none.
    assert abs(difference.nats_per_token + 0.02) < 3 * difference.standard_error < 0.02


def test_a_model_does_not_differ_from_itself() -> None:
    difference = subtract_losses(make_losses(40), make_losses(40))
    assert (difference.nats_per_token, difference.standard_error) == (0.0, 0.0)


def test_kept_losses_are_the_same_and_known_by_their_digest(tmp_path: Path) -> None:
    storage, losses = Storage(str(tmp_path)), make_losses(30)
    digest = write_losses(storage, "t", losses)
    read = find_losses(storage, "t", digest)
    assert read is not None
    assert read.is_of_the_same_text(losses)
    assert read.nll_sum.tolist() == losses.nll_sum.tolist()
    assert find_losses(storage, "t", "sha256:other") is None
    assert find_losses(storage, "t", None) is None
    assert find_losses(storage, "other", digest) is None
    assert not read.is_of_the_same_text(make_losses(29))
    assert read.of_domain("a").domain.tolist() == ["a"] * int((losses.domain == "a").sum())

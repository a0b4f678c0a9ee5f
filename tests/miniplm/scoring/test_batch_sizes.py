"""Batch sizes are tried while real batches are scored: the fastest stays, at little cost, within memory, with the same scores."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from miniplm.models.loading import load_model
from miniplm.models.throughput import DeviceClock
from miniplm.scoring.batch_sizes import BatchSizeSearch
from miniplm.scoring.engine import Scorer
from miniplm.scoring.forward import ForwardPass
from tests.miniplm.made_models import make_llama, save_model

CPU = torch.device("cpu")
SHARD = 8_400_000
COMPILING = 20.0


class Device:
    """Scores shards of `SHARD` tokens at the rate that each size has; a new size costs its compiling once."""

    def __init__(self, rates: dict[int, float], start: int, largest: int = 1 << 30, compiling: float = COMPILING) -> None:
        self.rates, self.largest, self.compiling = rates, largest, compiling
        self.search, self.seconds, self.tried = BatchSizeSearch(start), 0.0, {start}
        self.search.add(start, 1, compiling)  # the warm-up

    def score_shard(self, num_tokens: int = SHARD) -> None:
        while num_tokens > 0:
            size = self.search.choose(num_tokens)
            if size > self.largest:
                self.search.leave_out(size)
                continue
            held = min(size, num_tokens)
            seconds = size / self.rates[size] + (0 if size in self.tried else self.compiling)
            self.tried.add(size)
            self.seconds += seconds
            self.search.add(size, held, seconds)
            num_tokens -= held


FLAT = dict.fromkeys((16384, 32768, 65536, 131072), 150e3)


@pytest.mark.parametrize(
    ("rates", "start", "best", "tried"),
    [
        (FLAT | {32768: 160e3, 65536: 155e3}, 16384, 32768, {16384, 32768, 65536}),
        (FLAT | {32768: 160e3, 65536: 170e3, 131072: 180e3}, 16384, 131072, {16384, 32768, 65536, 131072}),
        (FLAT | {16384: 170e3, 32768: 160e3}, 65536, 16384, {131072, 65536, 32768, 16384}),
        (FLAT | {131072: 151e3}, 65536, 65536, {131072, 65536, 32768}),  # 1 % is noise
        (FLAT, 16384, 16384, {16384, 32768}),
    ],
)
def test_the_fastest_size_is_found_and_costs_two_percent_at_most(rates, start, best, tried):
    device = Device(rates, start)
    while device.seconds < 6000:
        device.score_shard()
        assert COMPILING * (len(device.tried) - 1) <= 0.02 * device.seconds
    assert device.search.best == best == device.search.choose(SHARD)
    assert device.tried == tried


def test_nothing_is_tried_before_it_pays():
    device = Device(FLAT, 16384)
    while device.seconds < COMPILING / 0.02 - 60:
        device.score_shard()
    assert device.tried == {16384}


def test_what_costs_nothing_is_tried_in_the_first_shard():
    device = Device(FLAT | {32768: 160e3}, 16384, compiling=0.05)
    device.score_shard()
    assert device.search.best == 32768
    assert device.search.describe() == "16,384: 150,000 tokens/s; 32,768: 160,000 tokens/s; 65,536: 150,000 tokens/s"


def test_a_size_that_does_not_fit_is_left_out_with_all_larger_ones():
    device = Device(FLAT | {131072: 200e3}, 16384, largest=16384, compiling=0.0)
    device.score_shard()
    device.score_shard()
    assert device.tried == {16384}
    assert device.search.describe() == "16,384: 150,000 tokens/s; 32,768: out of memory"


def test_shards_of_a_few_batches_are_not_scored_in_larger_ones():
    device = Device(FLAT | {32768: 200e3}, 16384, compiling=0.0)
    for _ in range(9):
        device.score_shard(20 * 16384)
    assert device.tried == {16384}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load_model(save_model(make_llama(), tmp_path_factory.mktemp("model") / "llama"), "float32", CPU)


def simulate(monkeypatch, seconds_a_batch, largest=1 << 30) -> list[int]:
    """Lets a forward pass take the given seconds by the clock, whatever it takes, and no more tokens than fit; the sizes that ran."""
    monkeypatch.setattr("miniplm.scoring.batch_sizes.SIZES", (32, 64, 128))
    monkeypatch.setattr("miniplm.scoring.batch_sizes._MOST_SHARE", 0.2)
    monkeypatch.setattr("miniplm.scoring.batch_sizes._BATCHES_IN_SHARD", 6)
    now, sizes, real = [0.0], [], ForwardPass.__call__

    def forward(self, inputs):
        num_tokens = inputs.token_ids_RT.numel()
        if num_tokens > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(num_tokens)
        now[0] += seconds_a_batch[num_tokens]
        return real(self, inputs)

    monkeypatch.setattr(ForwardPass, "__call__", forward)
    monkeypatch.setattr(DeviceClock, "_mark", lambda self: now[0])
    return sizes


def test_the_engine_scores_with_each_size_and_says_which_stayed(llama, monkeypatch):
    sequences = [np.random.default_rng(row).integers(1, 100, 33) for row in range(100)]
    expected = Scorer(llama, 32).score(sequences, eos_token_id=0).nll_sum
    sizes = simulate(monkeypatch, {32: 1.0, 64: 1.5, 128: 4.0})
    scorer = Scorer(llama, 32)
    assert scorer._search is None  # a given size is kept, and so is a CPU's
    scorer._search = BatchSizeSearch(32)
    scores = scorer.score(sequences, eos_token_id=0).nll_sum
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    # The first batch is not judged by; then five seconds pay for another one of a second.
    assert sizes[:10] == [32] * 6 + [64] * 4
    assert sizes.count(128) == 4
    assert sizes[-1] == 64
    assert sum(sizes) == 100 * 32
    assert scorer.describe()["tokens_per_batch"] == 64
    assert scorer.describe()["batch_sizes"] == "32: 32 tokens/s; 64: 43 tokens/s; 128: 32 tokens/s"


def test_a_size_that_does_not_fit_is_said_and_the_one_before_stays(llama, monkeypatch, caplog):
    sequences = [np.random.default_rng(row).integers(1, 100, 33) for row in range(60)]
    expected = Scorer(llama, 32).score(sequences, eos_token_id=0).nll_sum
    simulate(monkeypatch, {32: 1.0, 64: 1.5}, largest=32)
    scorer = Scorer(llama, 32)
    scorer._search = BatchSizeSearch(32)
    with caplog.at_level(logging.WARNING, "miniplm"):
        scores = scorer.score(sequences, eos_token_id=0).nll_sum
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert scorer.describe()["tokens_per_batch"] == 32
    assert [record.message for record in caplog.records] == ["llama: batches of 64 tokens do not fit in memory; they stay at 32"]

"""The learning rate: worked values of warm-up and cosine."""

from __future__ import annotations

import math

import pytest

from miniplm.config.run import TrainingConfig
from miniplm.training.schedule import learning_rate


def config(**fields: float) -> TrainingConfig:
    return TrainingConfig(**{"steps": 10, "learning_rate": 1.0, "warmup_steps": 4, **fields})


def test_warmup_is_linear_and_its_first_step_is_not_zero() -> None:
    assert [learning_rate(config(), step, 10) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_is_halfway_in_the_middle_and_at_the_minimum_in_the_last_step() -> None:
    # 4 warm-up steps of 10: step 7 is the middle of the 6 that decay, (1 + 0.1) / 2.
    assert learning_rate(config(), 7, 10) == pytest.approx(0.55)
    assert learning_rate(config(), 5, 10) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 6)) / 2)
    assert learning_rate(config(), 10, 10) == pytest.approx(0.1)


def test_published_schedule() -> None:
    published = TrainingConfig(steps=100_000, learning_rate=6e-4)
    assert learning_rate(published, 1, 100_000) == pytest.approx(3e-7)
    assert learning_rate(published, 2_000, 100_000) == pytest.approx(6e-4)
    assert learning_rate(published, 51_000, 100_000) == pytest.approx(3.3e-4)
    assert learning_rate(published, 100_000, 100_000) == pytest.approx(6e-5)


def test_without_warmup_the_rate_starts_near_its_peak() -> None:
    rates = [learning_rate(config(warmup_steps=0), step, 10) for step in range(1, 11)]
    assert 0.97 < rates[0] < 1.0
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("warmup", "wanted"), [(0, 0.1), (1, 1.0)])
def test_a_single_step_has_a_rate(warmup: int, wanted: float) -> None:
    assert learning_rate(config(warmup_steps=warmup), 1, 1) == pytest.approx(wanted)


def test_warmup_as_long_as_the_run_ends_at_the_peak() -> None:
    assert learning_rate(config(warmup_steps=10), 10, 10) == 1.0


def test_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps is 11, but the training has 10 steps"):
        config(warmup_steps=11)


def test_warmup_is_at_most_the_steps_that_the_epochs_give() -> None:
    short = config(steps=None, epochs=1, warmup_steps=11)
    assert [learning_rate(short, step, 4) for step in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]


def test_warmup_that_is_not_given_is_a_tenth_of_a_short_run_and_the_published_number_of_a_long_one() -> None:
    none = config(warmup_steps=None)
    assert [none.resolve_warmup_steps(steps) for steps in (5, 50, 19_999, 100_000)] == [0, 5, 1999, 2000]


def stable(**fields: object) -> TrainingConfig:
    return TrainingConfig(**{"steps": 10, "learning_rate": 1.0, "warmup_steps": 2, "schedule": "warmup-stable-decay", **fields})


def test_stable_schedule_stays_at_its_peak_and_falls_in_a_line_to_the_minimum() -> None:
    # 0.4 of 10 steps decay, from 1 to 0.1: 0.9 / 4 a step.
    rates = [learning_rate(stable(decay_share=0.4), step, 10) for step in range(1, 11)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1])


def test_stable_schedule_of_a_long_run() -> None:
    config = TrainingConfig(steps=100_000, learning_rate=6e-4, schedule="warmup-stable-decay", min_learning_rate_ratio=0)
    assert learning_rate(config, 1_000, 100_000) == pytest.approx(3e-4)
    assert learning_rate(config, 80_000, 100_000) == 6e-4
    assert learning_rate(config, 90_000, 100_000) == pytest.approx(3e-4)
    assert learning_rate(config, 100_000, 100_000) == 0


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"decay_share": 1.0}, [0.5, 1.0, 0.55, 0.1]),  # no more than what the warm-up leaves
        ({"decay_share": 0.01}, [0.5, 1.0, 1.0, 0.1]),  # the last step at least
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_decay_lies_between_the_warmup_and_the_last_step(fields: dict[str, float], wanted: list[float]) -> None:
    config = stable(**{"steps": 4, **fields})
    assert [learning_rate(config, step, 4) for step in range(1, 5)] == pytest.approx(wanted)

"""Batches large enough that starting a process hardly counts, and small enough that every worker has one."""

from __future__ import annotations

import pytest

from flows.work_pool.batches import choose_batch_size, count_room, cut_batches
from miniplm.records.manifests import ScoreShardManifest


def make_manifest(seconds: float, start_seconds: float | None, shard_index: int = 0) -> ScoreShardManifest:
    return ScoreShardManifest(
        corpus_id="c",
        model_id="m",
        shard_index=shard_index,
        shard_digest="sha256:a",
        digest="sha256:b",
        num_bytes=1,
        num_sequences=1,
        num_tokens=1,
        num_scored_tokens=1,
        nll_sum=1.0,
        seconds=seconds,
        device="cpu",
        dtype="float32",
        start_seconds=start_seconds,
        versions={},
    )


# --- how many shards a flow run gets ---


def test_a_start_takes_one_percent_of_the_time_of_a_batch() -> None:
    # 60 s / (0.01 * 125 s) = 48
    assert choose_batch_size(2000, 4, [make_manifest(125.0, 60.0)]) == 48


def test_a_part_of_a_shard_more_is_a_whole_one() -> None:
    # 61 s / (0.01 * 125 s) = 48.8
    assert choose_batch_size(2000, 4, [make_manifest(125.0, 61.0)]) == 49


def test_starts_and_shards_are_averages_of_what_was_measured() -> None:
    # (30 + 90) / 2 = 60 s to start; (100 + 150 + 125) / 3 = 125 s a shard, of which one does not say how long its start took.
    assert choose_batch_size(2000, 4, [make_manifest(100.0, 30.0), make_manifest(150.0, 90.0), make_manifest(125.0, None)]) == 48


def test_no_worker_is_left_without_a_batch() -> None:
    # 100 shards over 4 workers are 25 each, the 50 that a start asks for would leave two idle; 101 are 26 at most.
    assert choose_batch_size(100, 4, [make_manifest(120.0, 60.0)]) == 25
    assert choose_batch_size(101, 4, [make_manifest(120.0, 60.0)]) == 26


def test_a_pool_without_workers_counts_as_one() -> None:
    assert choose_batch_size(30, 0, [make_manifest(120.0, 60.0)]) == 30


def test_with_nothing_measured_a_batch_is_one_shard() -> None:
    assert choose_batch_size(2000, 4, []) == 1
    assert choose_batch_size(2000, 4, [make_manifest(120.0, None)]) == 1


@pytest.mark.parametrize(("seconds", "start_seconds", "size"), [(0.0, 60.0, 500), (120.0, 0.0, 1), (1e6, 60.0, 1)])
def test_times_at_their_limits_give_a_batch_of_at_least_one(seconds: float, start_seconds: float, size: int) -> None:
    assert choose_batch_size(2000, 4, [make_manifest(seconds, start_seconds)]) == size


@pytest.mark.parametrize(("wanted", "num_free", "size"), [(7, 100, 7), (7, 3, 3), (1, 100, 1), (500, 100, 100)])
def test_a_configured_size_is_taken_whatever_was_measured(wanted: int, num_free: int, size: int) -> None:
    assert choose_batch_size(num_free, 4, [make_manifest(120.0, 60.0)], wanted) == size
    assert choose_batch_size(num_free, 4, [], wanted) == size


@pytest.mark.parametrize("num_free", [0, -1])
@pytest.mark.parametrize("wanted", ["auto", 7])
def test_where_nothing_is_free_there_is_no_batch(num_free: int, wanted: int | str) -> None:
    assert choose_batch_size(num_free, 4, [make_manifest(120.0, 60.0)], wanted) == 0


# --- how many flow runs there may be ---


@pytest.mark.parametrize(
    ("num_workers", "num_live", "has_measured", "room"),
    [
        (4, 0, True, 8),
        (4, 5, True, 3),
        (4, 8, True, 0),
        (4, 11, True, 0),  # workers went offline
        (4, 0, False, 4),
        (4, 3, False, 1),
        (4, 4, False, 0),
        (0, 0, True, 2),
        (0, 0, False, 1),
        (0, 1, False, 0),
    ],
)
def test_a_worker_has_one_batch_and_one_that_waits_once_shards_are_measured(
    num_workers: int, num_live: int, has_measured: bool, room: int
) -> None:
    assert count_room(num_workers, num_live, has_measured) == room


# --- which shards are together ---


def test_batches_are_the_first_free_shards_in_their_order() -> None:
    assert cut_batches([3, 4, 8, 9, 11], 2, 8) == [[3, 4], [8, 9], [11]]
    assert cut_batches([3, 4, 8, 9, 11], 2, 2) == [[3, 4], [8, 9]]


@pytest.mark.parametrize(("free", "size", "most"), [([], 2, 8), ([1, 2], 0, 8), ([1, 2], 2, 0)])
def test_without_shards_size_or_room_there_are_no_batches(free: list[int], size: int, most: int) -> None:
    assert cut_batches(free, size, most) == []

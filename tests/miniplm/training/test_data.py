"""The order of sequences: every one once an epoch, a function of seed and position, a window in memory."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from miniplm.config.run import TrainingConfig
from miniplm.derived import sequences as shard_reading
from miniplm.derived.sequences import TrainingShard
from miniplm.errors import CorpusError, TrainingError
from miniplm.records.manifests import CorpusManifest
from miniplm.storage.root import Storage
from miniplm.training.data import (
    SequenceOrder,
    check_batch_size,
    collate,
    count_scored_targets,
    count_steps,
    count_training_sequences,
)
from tests.ends import flip_byte
from tests.miniplm.made_corpora import make_corpus

# Sequence i is [i + 1, 7, 7, ...]: its first token tells which it is. Shards of 4, 1, 6 and 5 sequences.
COUNTS = (4, 1, 6, 5)
NUM = sum(COUNTS)


@pytest.fixture
def shards(storage: Storage) -> list[TrainingShard]:
    sequences = iter([index + 1] + [7] * (1 + index % 3) for index in range(NUM))
    corpus = make_corpus(storage, {"candidate": [[next(sequences) for _ in range(count)] for count in COUNTS]})
    return all_rows(corpus)


def all_rows(corpus: CorpusManifest) -> list[TrainingShard]:
    return [TrainingShard(shard, shard.num_sequences, shard.num_tokens) for shard in corpus.split_shards("candidate")]


def first_tokens(order: SequenceOrder, start: int, stop: int) -> list[int]:
    return [int(sequence[0]) for sequence in order.read(start, stop)]


@pytest.mark.parametrize("window_tokens", [1, 12, 30, 1_000])
def test_every_epoch_has_every_sequence_once_in_another_order(
    storage: Storage, shards: list[TrainingShard], window_tokens: int
) -> None:
    order = SequenceOrder(storage, shards, seed=3, window_tokens=window_tokens)
    epochs = [first_tokens(order, epoch * NUM, (epoch + 1) * NUM) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(1, NUM + 1)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_sequences_come_whole(storage: Storage, shards: list[TrainingShard]) -> None:
    sequences = SequenceOrder(storage, shards, seed=0, window_tokens=30).read(0, NUM)
    assert sorted(sequence.tolist() for sequence in sequences) == [[index + 1] + [7] * (1 + index % 3) for index in range(NUM)]


@pytest.mark.parametrize("window_tokens", [1, 30, 1_000])
def test_position_alone_decides_the_sequence(storage: Storage, shards: list[TrainingShard], window_tokens: int) -> None:
    whole = first_tokens(SequenceOrder(storage, shards, 5, window_tokens), 0, 3 * NUM)
    for start in range(0, 3 * NUM, 5):
        fresh = SequenceOrder(storage, shards, 5, window_tokens)
        assert first_tokens(fresh, start, min(start + 5, 3 * NUM)) == whole[start : start + 5]


def test_seed_changes_the_order(storage: Storage, shards: list[TrainingShard]) -> None:
    assert first_tokens(SequenceOrder(storage, shards, 1), 0, NUM) != first_tokens(SequenceOrder(storage, shards, 2), 0, NUM)


def test_where_all_fits_neighbours_are_mixed_across_shards(storage: Storage, shards: list[TrainingShard]) -> None:
    tokens = first_tokens(SequenceOrder(storage, shards, seed=0), 0, NUM)
    shard_of = np.repeat(range(len(COUNTS)), COUNTS)
    changes = sum(shard_of[a - 1] != shard_of[b - 1] for a, b in pairwise(tokens))
    assert changes > len(COUNTS) - 1


def test_going_on_late_reads_only_its_own_window(
    storage: Storage, shards: list[TrainingShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = shard_reading.read_shard

    def counting(storage: Storage, entry, **options):
        read.append(entry.shard_index)
        return original(storage, entry, **options)

    monkeypatch.setattr(shard_reading, "read_shard", counting)
    order = SequenceOrder(storage, shards, seed=0, window_tokens=1)
    order.read(NUM - 1, NUM)
    assert len(read) == 1
    order.read(NUM - 1, NUM)
    assert len(read) == 1


@pytest.mark.parametrize("window_tokens", [1, 30, 1_000])
def test_reading_ahead_changes_nothing_but_when_windows_are_read(
    storage: Storage, shards: list[TrainingShard], window_tokens: int
) -> None:
    wanted = first_tokens(SequenceOrder(storage, shards, 5, window_tokens), 0, 3 * NUM)
    order = SequenceOrder(storage, shards, 5, window_tokens)
    order.read_ahead_to(3 * NUM)
    assert [token for start in range(0, 3 * NUM, 4) for token in first_tokens(order, start, start + 4)] == wanted
    order.close()


def test_next_window_is_fetched_while_one_is_in_use_and_none_beyond_the_end(
    storage: Storage, shards: list[TrainingShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = shard_reading.read_shard

    def noting(storage: Storage, entry, **options):
        read.append(threading.current_thread().name)
        return original(storage, entry, **options)

    monkeypatch.setattr(shard_reading, "read_shard", noting)
    # Every shard is a window: the first is read at once, the second in the background, the third not yet.
    order = SequenceOrder(storage, shards, seed=0, window_tokens=1)
    order.read_ahead_to(NUM)
    order.read(0, 1)
    order.close()
    assert len(read) == 2
    assert read[1].startswith("fetch-window")
    read.clear()
    order = SequenceOrder(storage, shards, seed=0, window_tokens=1)
    order.read_ahead_to(NUM)
    order.read(NUM - 1, NUM)
    order.close()
    assert len(read) == 1, "nothing comes after the last window"


def test_damage_in_a_window_fetched_ahead_is_told_when_its_turn_comes(
    storage: Storage, shards: list[TrainingShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, num_read = shard_reading.read_shard, 0

    def failing(storage: Storage, entry, **options):
        nonlocal num_read
        num_read += 1
        if num_read == 2:
            raise CorpusError("shard is damaged")
        return original(storage, entry, **options)

    monkeypatch.setattr(shard_reading, "read_shard", failing)
    order = SequenceOrder(storage, shards, seed=0, window_tokens=1)
    order.read_ahead_to(NUM)
    order.read(0, 1)
    with pytest.raises(CorpusError, match="shard is damaged"):
        order.read(0, NUM)
    order.close()


def test_rows_of_a_shard_are_all_that_is_read(storage: Storage, shards: list[TrainingShard]) -> None:
    chosen = [
        TrainingShard(shards[2].entry, 2, 5, lambda: np.array([1, 4])),
        TrainingShard(shards[1].entry, 0, 0, lambda: np.array([])),
    ]
    order = SequenceOrder(storage, chosen, seed=0)
    assert order.num_sequences == 2
    assert sorted(first_tokens(order, 0, 2)) == [7, 10]


@pytest.mark.parametrize("rows", [[0, 6], [-1, 2], [1]])
def test_rows_that_are_not_of_the_shard_are_refused(storage: Storage, shards: list[TrainingShard], rows: list[int]) -> None:
    order = SequenceOrder(storage, [TrainingShard(shards[2].entry, 2, 5, lambda: np.array(rows))], seed=0)
    with pytest.raises(TrainingError, match=r"candidate shard 2 of corpus made: . rows chosen where 2 are expected, of 6"):
        order.read(0, 1)


def test_nothing_to_train_on_is_an_error(storage: Storage) -> None:
    with pytest.raises(TrainingError, match="no sequence to train on"):
        SequenceOrder(storage, [], seed=0)


def test_damaged_shard_is_an_error(storage: Storage, shards: list[TrainingShard]) -> None:
    path = next(Path(storage.root).glob("corpora/*/candidate/shard-00002.parquet"))
    flip_byte(path)
    with pytest.raises(CorpusError, match="shard-00002"):
        SequenceOrder(storage, shards, seed=0).read(0, 1)


@pytest.mark.parametrize(
    ("fields", "num_sequences", "sequences", "steps"),
    [
        ({"epochs": 1}, 10, 10, 3),
        ({"epochs": 2}, 10, 20, 5),
        ({"epochs": 0.25}, 10, 3, 1),
        ({"epochs": 0.1}, 30, 3, 1),
        ({"epochs": 1.1}, 10, 11, 3),
        ({"steps": 7}, 10, 28, 7),
    ],
)
def test_length_of_a_training(fields: dict, num_sequences: int, sequences: int, steps: int) -> None:
    config = TrainingConfig(batch_size=4, learning_rate=1e-3, **fields)
    assert count_training_sequences(config, num_sequences) == sequences
    assert count_steps(config, num_sequences) == steps


def test_batch_is_padded_with_eos_which_is_never_scored() -> None:
    batch = collate([np.array([5, 0, 6], np.uint16), np.array([8, 9, 3, 2], np.uint16), np.array([4], np.uint16)], eos_token_id=0)
    assert batch.token_ids_BT.tolist() == [[5, 0, 6, 0], [8, 9, 3, 2], [4, 0, 0, 0]]
    assert batch.mask_BS.tolist() == [[True, False, False], [True, True, True], [False, False, False]]
    assert batch.token_ids_BT.dtype == torch.int64
    assert batch.num_tokens == 8


def test_batch_filled_up_to_a_shape_scores_the_same_targets() -> None:
    sequences = [np.array([5, 0, 6], np.uint16), np.array([8, 9, 3, 2], np.uint16)]
    plain, filled = collate(sequences, eos_token_id=0), collate(sequences, 0, (3, 6))
    assert filled.token_ids_BT.tolist() == [[5, 0, 6, 0, 0, 0], [8, 9, 3, 2, 0, 0], [0] * 6]
    assert filled.num_tokens == 7
    assert filled.targets_N.tolist() == plain.targets_N.tolist() == [0, 9, 3, 2]
    assert filled.scored_N.tolist() == [0, 5, 6, 7]
    assert count_scored_targets(sequences, 0) == 4
    states = torch.arange(15)[:, None].reshape(3, 5, 1)
    assert filled.select(states)[:, 0].tolist() == [0, 5, 6, 7]


@pytest.mark.parametrize(
    ("fields", "num_sequences", "fits"),
    [
        ({"steps": 1}, 4, True),
        ({"steps": 1}, 3, False),
        ({"epochs": 1}, 3, True),  # one short batch
        ({"epochs": 0.5}, 3, True),
        ({"epochs": 2}, 3, False),
        ({"epochs": 2}, 5, True),
    ],
)
def test_fewer_sequences_than_a_batch_are_trained_on_once_or_not_at_all(fields: dict, num_sequences: int, fits: bool) -> None:
    config = TrainingConfig(batch_size=4, learning_rate=1e-3, **fields)
    if fits:
        check_batch_size(config, num_sequences)
        return
    with pytest.raises(TrainingError, match=r"batch_size is 4, but there are only 3 sequences.*batch_size to at most 3"):
        check_batch_size(config, num_sequences)

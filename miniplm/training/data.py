"""The order in which sequences are trained on, and how they are read: from the corpus shards, a bounded part at a time.

An epoch takes the shards in a random order and groups neighbours into windows of about `WINDOW_TOKENS` tokens; the
sequences of a window are shuffled together. Where all fits into one window that is a full shuffle. Which sequence
comes at a position is a function of the seed and the position alone, and reading it needs only its own window, so
training goes on at any step without reading what came before.

Shapes: B sequences, T tokens of the longest, S = T - 1 of them that are inputs, N scored targets, H width of the hidden state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from miniplm.config.run import TrainingConfig
from miniplm.derived.sequences import TrainingShard, read_sequences
from miniplm.errors import TrainingError
from miniplm.models.nll import mask_scored_targets
from miniplm.storage.root import Storage

# Token ids held in memory at a time: 256 MiB as uint16, 512 MiB as uint32.
WINDOW_TOKENS = 128 << 20


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of one forward pass, padded with EOS; `mask_BS` marks the scored targets, S = T - 1.

    `scored_N` are the places of the scored targets in the flat mask, ascending, found where the mask is made: to ask
    a GPU how many there are would make the host wait for it. `num_tokens` counts no padding; `lengths` are the tokens of
    each row without it, on the host.
    """

    token_ids_BT: torch.Tensor
    mask_BS: torch.Tensor
    num_tokens: int
    lengths: tuple[int, ...]
    scored_N: torch.Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.scored_N is None:  # made of the mask where it is not given
            object.__setattr__(self, "scored_N", self.mask_BS.flatten().nonzero()[:, 0])

    @property
    def targets_N(self) -> torch.Tensor:
        """The scored targets (N,), in the order of `scored_N`."""
        return self.token_ids_BT[:, 1:].flatten().index_select(0, self.scored_N)

    def select(self, states_BSH: torch.Tensor) -> torch.Tensor:
        """What a state (B, S, H) has at the scored targets: (N, H)."""
        return states_BSH.flatten(0, 1).index_select(0, self.scored_N)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device; from pinned memory without waiting for the copy."""
        tensors = (tensor.to(device, non_blocking=True) for tensor in (self.token_ids_BT, self.mask_BS, self.scored_N))
        token_ids_BT, mask_BS, scored_N = tensors
        return MicroBatch(token_ids_BT, mask_BS, self.num_tokens, self.lengths, scored_N)

    def split(self, num_rows: int) -> tuple[MicroBatch, ...]:
        """The same in parts of at most so many rows; itself where it has no more. On the host."""
        if len(self.lengths) <= num_rows:
            return (self,)
        parts = []
        for start in range(0, len(self.lengths), num_rows):
            rows = slice(start, start + num_rows)
            lengths = self.lengths[rows]
            part = MicroBatch(self.token_ids_BT[rows], self.mask_BS[rows], sum(lengths), lengths)
            parts.append(part.pin() if self.scored_N.is_pinned() else part)
        return tuple(parts)

    def pin(self) -> MicroBatch:
        """The same in memory that a GPU reads by itself."""
        token_ids_BT, mask_BS, scored_N = (tensor.pin_memory() for tensor in (self.token_ids_BT, self.mask_BS, self.scored_N))
        return MicroBatch(token_ids_BT, mask_BS, self.num_tokens, self.lengths, scored_N)


def collate(
    sequences: Sequence[NDArray[np.unsignedinteger]], eos_token_id: int, shape: tuple[int, int] | None = None
) -> MicroBatch:
    """Sequences (num_tokens,) side by side, (B, T) int64, padded with EOS to the longest, or to at least a `shape` of sequences and tokens."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    num_rows, num_columns = len(sequences), int(lengths.max())
    if shape is not None:
        num_rows, num_columns = max(num_rows, shape[0]), max(num_columns, shape[1])
        lengths = torch.nn.functional.pad(lengths, (0, num_rows - len(sequences)))
    token_ids_BT = torch.full((num_rows, num_columns), eos_token_id, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        token_ids_BT[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
    mask_BS = mask_scored_targets(token_ids_BT, lengths, eos_token_id)
    return MicroBatch(token_ids_BT, mask_BS, int(lengths.sum()), tuple(lengths.tolist()))


def count_scored_targets(sequences: Sequence[NDArray[np.unsignedinteger]], eos_token_id: int) -> int:
    """Targets whose input is not EOS, over all sequences (num_tokens,): what `collate` marks, padding left out."""
    return sum(int(np.count_nonzero(sequence[:-1] != eos_token_id)) for sequence in sequences)


def count_training_sequences(config: TrainingConfig, num_sequences: int) -> int:
    """Sequences of the whole training, epochs counted: steps * batch_size, or epochs * num_sequences rounded up."""
    if config.steps is not None:
        return config.steps * config.batch_size
    assert config.epochs is not None
    # As it is written: 0.1 epochs of 30 sequences are 3, where floats give a little more.
    return int(-(-Fraction(repr(config.epochs)) * num_sequences // 1))


def count_steps(config: TrainingConfig, num_sequences: int) -> int:
    """Optimizer steps of the training: as given, or enough for all its sequences, the last batch being short."""
    return -(-count_training_sequences(config, num_sequences) // config.batch_size)


def check_batch_size(config: TrainingConfig, num_sequences: int) -> None:
    """Raises `TrainingError` where one batch would hold a sequence twice: it has more than there are, and is not the only one.

    A single pass over fewer sequences than a batch has is one step with a short batch, averaged over its own targets.
    """
    if num_sequences >= config.batch_size or count_training_sequences(config, num_sequences) <= num_sequences:
        return
    raise TrainingError(
        f"training.batch_size is {config.batch_size}, but there are only {num_sequences} sequences to train on, so that one batch would hold "
        f"some of them twice; set training.batch_size to at most {num_sequences}, use a larger selection.ratio or more text, "
        "or train one pass (epochs: 1), which is one step on all of them"
    )


@dataclass(frozen=True)
class _Window:
    """Neighbouring shards of an epoch, and where their sequences lie in it: `start` ... `stop` - 1."""

    index: int
    start: int
    stop: int
    shards: tuple[TrainingShard, ...]


@dataclass(frozen=True)
class _WindowTokens:
    """A window in memory: position p of it is the sequence `order[p]`, `token_ids[ends[i] - lengths[i] : ends[i]]`."""

    epoch: int
    index: int
    token_ids: NDArray[np.unsignedinteger]  # (num_tokens,)
    lengths: NDArray[np.int64]  # this and all below (num_sequences,)
    ends: NDArray[np.int64]
    order: NDArray[np.int64]

    def sequence(self, position: int) -> NDArray[np.unsignedinteger]:  # (num_tokens,)
        index = self.order[position]
        # Copied, so that a batch does not keep its window in memory.
        return self.token_ids[self.ends[index] - self.lengths[index] : self.ends[index]].copy()


class SequenceOrder:
    """The endless order of training sequences, epoch after epoch; only the window last read is in memory, and with
    `read_ahead_to` the one after it, which is then fetched while the first is trained on.

    Raises `TrainingError` where there is no sequence at all.
    """

    def __init__(self, storage: Storage, shards: Sequence[TrainingShard], seed: int, window_tokens: int = WINDOW_TOKENS) -> None:
        self._storage = storage
        self._shards = [shard for shard in shards if shard.num_sequences > 0]
        self._seed = seed
        self._window_tokens = window_tokens
        self.num_sequences = sum(shard.num_sequences for shard in self._shards)
        if self.num_sequences == 0:
            raise TrainingError("there is no sequence to train on; prepare a larger corpus or use a larger selection.ratio")
        self.num_tokens = sum(shard.num_tokens for shard in self._shards)
        self._windows: tuple[int, list[_Window]] | None = None
        self._loaded: _WindowTokens | None = None
        self._last_position = 0
        self._fetching: tuple[tuple[int, int], Future[_WindowTokens]] | None = None
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="fetch-window")

    def read_ahead_to(self, stop: int) -> None:
        """From now on the window after the one in use is fetched in the background, where it begins before position `stop`."""
        self._last_position = stop - 1

    def close(self) -> None:
        """Waits for what is being fetched, and fetches no more."""
        self._last_position = 0
        self._fetcher.shutdown(wait=True, cancel_futures=True)

    def read(self, start: int, stop: int) -> list[NDArray[np.unsignedinteger]]:
        """Token ids (num_tokens,) of each of the sequences at positions `start` ... `stop` - 1."""
        sequences: list[NDArray[np.unsignedinteger]] = []
        while start < stop:
            epoch, offset = divmod(start, self.num_sequences)
            window = next(window for window in self._list_windows(epoch) if offset < window.stop)
            num = min(stop - start, window.stop - offset)
            loaded = self._load(epoch, window)
            sequences += [loaded.sequence(offset - window.start + index) for index in range(num)]
            start += num
        return sequences

    def _list_windows(self, epoch: int) -> list[_Window]:
        if self._windows is None or self._windows[0] != epoch:
            # Named in full: `default_rng` may be another generator one day, and a resumed training would read another order.
            order = np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(len(self._shards))
            shards = [self._shards[index] for index in order]
            self._windows = (epoch, list(_group_shards(shards, self._window_tokens)))
        return self._windows[1]

    def _load(self, epoch: int, window: _Window) -> _WindowTokens:
        wanted = (epoch, window.index)
        if self._loaded is None or (self._loaded.epoch, self._loaded.index) != wanted:
            self._loaded = None  # gives its memory back before the next is read
            if self._fetching is not None and self._fetching[0] == wanted:
                self._loaded = self._fetching[1].result()
            else:
                self._loaded = self._fetch(epoch, window)
            self._fetching = None
            self._fetch_next(epoch, window)
        return self._loaded

    def _fetch_next(self, epoch: int, window: _Window) -> None:
        if epoch * self.num_sequences + window.stop > self._last_position:
            return
        windows = self._list_windows(epoch)
        if window.index + 1 < len(windows):
            following = windows[window.index + 1]
        else:
            epoch += 1
            following = self._list_windows(epoch)[0]
        self._fetching = ((epoch, following.index), self._fetcher.submit(self._fetch, epoch, following))

    def _fetch(self, epoch: int, window: _Window) -> _WindowTokens:
        parts = [read_training_shard(self._storage, shard) for shard in window.shards]
        lengths = np.concatenate([lengths for _, lengths in parts])
        order = np.random.Generator(np.random.PCG64([self._seed, epoch, window.index])).permutation(len(lengths))
        token_ids = np.concatenate([token_ids for token_ids, _ in parts])
        return _WindowTokens(epoch, window.index, token_ids, lengths, np.cumsum(lengths), order)


def read_training_shard(storage: Storage, shard: TrainingShard) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """Token ids (num_tokens,) of a shard's training sequences one after another, and the sequences' lengths (num_sequences,), in row order.

    Raises `TrainingError` where the rows are not those of this shard, and what `read_shard` raises.
    """
    column = read_sequences(storage, shard.entry, ["token_ids"])["token_ids"].combine_chunks()
    if shard.load_rows is not None:
        rows = shard.load_rows()
        if len(rows) != shard.num_sequences or not 0 <= rows.min() <= rows.max() < len(column):
            raise TrainingError(
                f"{shard.entry.title}: {len(rows)} rows chosen "
                f"where {shard.num_sequences} are expected, of {len(column)}; the selection was made of another corpus, select again"
            )
        column = column.take(pa.array(rows))
    # `flatten` and not `values`, which gives what lies outside a slice too.
    return column.flatten().to_numpy(), column.value_lengths().to_numpy().astype(np.int64)


def _group_shards(shards: Sequence[TrainingShard], window_tokens: int) -> Iterator[_Window]:
    groups: list[list[TrainingShard]] = []
    for shard in shards:
        if not groups or sum(other.num_tokens for other in groups[-1]) + shard.num_tokens > window_tokens:
            groups.append([])
        groups[-1].append(shard)
    stops = list(accumulate(sum(shard.num_sequences for shard in group) for group in groups))
    for index, (group, start, stop) in enumerate(zip(groups, [0, *stops], stops, strict=False)):
        yield _Window(index, start, stop, tuple(group))

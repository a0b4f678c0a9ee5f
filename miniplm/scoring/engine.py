"""Scores sequences under a model: the sum of NLL over the scored targets of each, at the device's own speed.

Batches follow each other on the device without a pause: while one computes, the next is built and copied, and the
results of those before come back. What is scored is what `miniplm.models.nll.mask_scored_targets` says: every target whose
input is not EOS.

Shapes: N sequences, P parts of them, T tokens of a sequence, S segments, M tokens that a batch computes; K sums to be added.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniplm.errors import ModelError, ScoreError
from miniplm.models.devices import describe_memory, device_errors, free_cached_memory, is_out_of_memory, use_device
from miniplm.models.fused_linear import count_products
from miniplm.models.loading import LoadedModel
from miniplm.models.throughput import (
    ClockMark,
    DeviceClock,
    Throughput,
    count_flops_per_token,
    measure_matmul_peak,
    measure_seconds,
)
from miniplm.scoring.batch_sizes import BatchSizeSearch
from miniplm.scoring.batches import Attention, IntArray, count_parts, cut_segments, make_batches, resolve_tokens_per_batch
from miniplm.scoring.forward import Compile, ForwardPass
from miniplm.scoring.model_inputs import Batch, build_batch

# Told the tokens of each finished batch, and what the device has achieved on these sequences so far.
TokenCallback = Callable[[int, Throughput], None]

# Batches given to a GPU before the results of the first are waited for: a quarter of a second of a small model, in which
# whoever is told of the progress may be slow.
_BATCHES_AHEAD = 6
# A compiled body has a graph for each longest length, at some seconds each: so rounded, a corpus has a handful of them.
_LENGTH_STEP = 256


@dataclass(frozen=True)
class SequenceScores:
    """Scores in the order of the sequences given: `nll_sum` (N,) float64 in nats, `num_scored_tokens` (N,) int32.

    `num_parts` (N,) says into how many parts each sequence is cut by its EOS, one for each document in it; `part_nll_sum` and
    `part_num_scored_tokens` (P,) are the scores of all parts, one sequence after the other.
    """

    nll_sum: np.ndarray[Any, np.dtype[np.float64]]
    num_scored_tokens: np.ndarray[Any, np.dtype[np.int32]]
    num_parts: IntArray
    part_nll_sum: np.ndarray[Any, np.dtype[np.float64]]
    part_num_scored_tokens: np.ndarray[Any, np.dtype[np.int32]]
    throughput: Throughput


class Scorer:
    """A model ready to score any number of shards. One thread at a time has the device; others prepare meanwhile."""

    def __init__(
        self,
        model: LoadedModel,
        tokens_per_batch: int | str = "auto",
        attention: Attention = "sequence",
        compile: Compile = "auto",
        cache_folder: Path | None = None,
        head_kernel: str | None = None,
    ) -> None:
        """`tokens_per_batch` is halved for good when memory runs out, filling included; `auto` on a GPU is a first size, beside which others
        are tried in the first seconds or minutes (`BatchSizeSearch`). Other arguments as of `ForwardPass`.
        """
        self.model = model
        self.attention = attention
        self.tokens_per_batch = resolve_tokens_per_batch(tokens_per_batch, model.device.type, model.head.weight_VH.shape[1])
        self.forward = ForwardPass(model, compile, cache_folder, head_kernel)
        # Layers that are spread have no one clock.
        searches = tokens_per_batch == "auto" and model.device.type == "cuda" and not model.is_spread
        self._search = BatchSizeSearch(self.tokens_per_batch) if searches else None
        self._device_turn = threading.Lock()
        self._longest = 1
        # Here and not later, when another thread may have the device.
        self._matmul_peak = measure_matmul_peak(model.device, model.head.weight_VH.dtype)

    def describe(self) -> dict[str, str | int | bool]:
        """How the model is run, for the record."""
        sizes = "" if self._search is None else self._search.describe()
        return {
            "layout": self.forward.layout,
            "compiled": self.forward.is_compiled,
            "head": self.forward.head.name,
            "fused_products": count_products(self.model.body),
            "tokens_per_batch": self.tokens_per_batch,
            "attention": self.attention,
        } | ({"batch_sizes": sizes} if sizes else {})

    @property
    def notes(self) -> list[str]:
        """What users should know of how this model runs."""
        return self.forward.notes

    def warm_up(self, num_inputs: int) -> None:
        """Compiles for sequences of `num_inputs` inputs, so that no shard waits for it."""
        if self.forward.is_compiled:
            length = min(num_inputs, self.model.max_positions or num_inputs)
            # Token 1 everywhere, and an EOS that does not occur.
            self.score([np.ones(length + 1, dtype=np.int64)] * max(1, self.tokens_per_batch // length), eos_token_id=-1)

    def score(
        self,
        sequences: Sequence[np.ndarray[Any, Any]],
        eos_token_id: int,
        on_tokens: TokenCallback = lambda num_tokens, throughput: None,
    ) -> SequenceScores:
        """Sum of NLL over the scored targets of each sequence, (T,) token ids each.

        In float32 the result is within 1e-4 nats a token of a float64 computation, whatever the batch. A batch that
        runs out of memory is halved, and so are those after it. Raises `ModelError` for a token id beyond the vocabulary or a sequence longer than the model's
        positions, `ScoreError` where one sequence alone does not fit in memory, `DeviceError` where the GPU is gone.
        """
        _check_sequences(self.model, sequences)
        segments = cut_segments(sequences, eos_token_id, self.attention)
        # Weighted by tokens: what a token sees on average is half of its own segment, and most tokens lie in long ones.
        mean_length = float((segments.length**2).sum() / segments.length.sum()) if len(segments) else 0.0
        flops_per_token = count_flops_per_token(self.model.body, self.model.head, mean_length)
        device = self.model.device
        clock = DeviceClock(device)
        with self._device_turn, use_device(device), device_errors(device, f"scoring by model {self.model.name}"):
            started = time.perf_counter()
            # From here on the device waits until the first batch is there.
            clock.stop()
            longest = self._keep_longest(int(segments.length.max(initial=1)))
            batches = self._make_batches(segments.length, np.arange(len(segments), dtype=np.int64))

            def tell(num_tokens: int) -> None:
                on_tokens(num_tokens, achieved(work.num_told))

            def achieved(num_tokens: int) -> Throughput:
                clock.settle()
                # The events are those of one device; what the others wait is not seen.
                wait_seconds = None if self.model.is_spread else clock.wait_seconds
                return Throughput(num_tokens, time.perf_counter() - started, wait_seconds, flops_per_token, self._matmul_peak)

            num_parts = count_parts(sequences, eos_token_id)
            work = _Work(_Sums(len(sequences)), _Sums(int(num_parts.sum())), tell, self._search)
            num_left = int(segments.length.sum())
            while batches:
                if self._search is not None and (size := self._search.choose(num_left)) != self.tokens_per_batch:
                    self.tokens_per_batch = size
                    batches = self._make_batches(segments.length, np.concatenate(batches))
                chosen = batches.popleft()
                try:
                    batch = build_batch(
                        sequences, segments, chosen, eos_token_id, self.forward.layout, longest, self.filled_tokens()
                    )
                    launched = self._launch(batch, clock)
                # Of any class: by library and device, memory that runs out is a RuntimeError or an error of its own.
                except Exception as error:
                    self._give_up_or_halve(error, segments.length[chosen])
                    # Neither the batch that failed nor one that was to come after it is done.
                    batches = self._make_batches(segments.length, np.concatenate([chosen, *batches]))
                    # What is under way was launched before and is good; waited for, it gives its memory back.
                    work.collect(segments.sequence, at_most=0)
                    continue
                num_left -= batch.num_tokens
                work.add(batch, launched)
                work.collect(segments.sequence, at_most=_BATCHES_AHEAD - 1 if device.type == "cuda" else 0)
            work.collect(segments.sequence, at_most=0)
            num_tokens = sum(len(sequence) for sequence in sequences)
            throughput = achieved(num_tokens)
        if work.num_told < num_tokens:
            on_tokens(num_tokens - work.num_told, throughput)
        sums, parts = work.by_sequence, work.by_part
        return SequenceScores(sums.nll, sums.num_scored, num_parts, parts.nll, parts.num_scored, throughput)

    def _make_batches(self, lengths: IntArray, left: IntArray) -> deque[IntArray]:
        """Batches of the segments `left` (num_left,), of all lengths (S,)."""
        made = make_batches(lengths[left], self.tokens_per_batch, self.forward.layout, self.forward.needs_equal_lengths)
        return deque(left[batch] for batch in made)

    def _keep_longest(self, num_inputs: int) -> int:
        """The most inputs of a segment, as a number that changes little: a compiled body is compiled for it."""
        limit = self.model.max_positions or num_inputs + _LENGTH_STEP
        self._longest = max(self._longest, min(-(-num_inputs // _LENGTH_STEP) * _LENGTH_STEP, limit))
        return self._longest

    def filled_tokens(self) -> int | None:
        """Tokens that each batch is filled up to, where its shape is compiled."""
        return self.tokens_per_batch if self.forward.has_static_shapes else None

    def _count_computed(self, lengths: IntArray) -> int:
        """Tokens that the device computes for a batch of segments of these lengths (S,), padding and filling included."""
        num_tokens = int(len(lengths) * lengths.max() if self.forward.layout == "rows" else lengths.sum())
        return max(num_tokens, self.filled_tokens() or 0)

    def _launch(self, batch: Batch, clock: DeviceClock) -> _Launched:
        """Gives a batch to the device."""
        device = self.model.device
        inputs = batch.inputs.to(device)
        begin = clock.start()
        nll_M = self.forward(inputs)
        end = clock.stop()
        if device.type != "cuda":
            return _Launched(nll_M.cpu(), None, self.tokens_per_batch, begin, end)
        # Pinned, or the copy would wait for the device, and the next batch for the copy.
        on_host_M = torch.empty(nll_M.shape, dtype=nll_M.dtype, pin_memory=True)
        on_host_M.copy_(nll_M, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(nll_M.device))
        return _Launched(on_host_M, event, self.tokens_per_batch, begin, end)

    def _give_up_or_halve(self, error: Exception, lengths: IntArray) -> None:
        """Raises what is no lack of memory, or a batch of one segment; else the next batches are smaller. Lengths (S,) of the batch."""
        if not is_out_of_memory(error):
            raise error
        if self._search is not None:
            too_large, search = self.tokens_per_batch, self._search
            if too_large > search.best:
                search.leave_out(too_large)
                self.tokens_per_batch = search.best
                self.forward.note(
                    f"{self.model.name}: batches of {too_large:,} tokens do not fit in memory; they stay at {search.best:,}"
                )
                free_cached_memory()
                return
            # What is left of the memory is no place to try more in.
            self._search = None
        num_computed = self._count_computed(lengths)
        if len(lengths) == 1 and num_computed == lengths[0]:
            raise ScoreError(
                f"model {self.model.name}: one sequence of {int(lengths[0]) + 1} tokens does not fit in memory on {self.model.device} "
                f"({describe_memory(self.model.device)}); use a smaller dtype, another device or a shorter corpus.sequence_length"
            ) from error
        # Half of what was tried, not of what is allowed, so that a batch of two is halved too.
        self.tokens_per_batch = max(1, num_computed // 2)
        free_cached_memory()


@dataclass(frozen=True)
class _Launched:
    """A batch on its way: its NLLs are there once `event` has happened; made for `size` tokens, computed from `begin` to `end`."""

    nll_M: Tensor
    event: torch.cuda.Event | None
    size: int
    begin: ClockMark
    end: ClockMark


class _Sums:
    """`nll` (num_sums,) float64 and `num_scored` (num_sums,) int32 of sequences, or of parts of them."""

    def __init__(self, num_sums: int) -> None:
        self.nll = np.zeros(num_sums)
        self.num_scored = np.zeros(num_sums, dtype=np.int32)

    def add(self, owners: IntArray, nll: np.ndarray[Any, np.dtype[np.float64]], num_scored: IntArray) -> None:
        """Adds `nll` (K,) and `num_scored` (K,) to the sums `owners` (K,)."""
        # `add.at`, as two segments of a batch may be of one sequence: `+=` would count only the last.
        np.add.at(self.nll, owners, nll)
        np.add.at(self.num_scored, owners, num_scored.astype(np.int32))


@dataclass
class _Work:
    """What is summed up so far, and the batches whose results are still on their way."""

    by_sequence: _Sums
    by_part: _Sums
    on_tokens: Callable[[int], None]
    search: BatchSizeSearch | None = None
    num_told: int = 0

    def __post_init__(self) -> None:
        self._in_flight: deque[tuple[Batch, _Launched]] = deque()

    def add(self, batch: Batch, launched: _Launched) -> None:
        self._in_flight.append((batch, launched))

    def collect(self, owners: IntArray, at_most: int) -> None:
        """Adds the results of the oldest batches to the sequences that own their segments, (S,), until `at_most` are on their way."""
        while len(self._in_flight) > at_most:
            batch, launched = self._in_flight.popleft()
            if launched.event is not None:
                launched.event.synchronize()
            if self.search is not None:
                self.search.add(launched.size, batch.num_tokens, measure_seconds(launched.begin, launched.end))
            nll_M = launched.nll_M.numpy()
            self.by_sequence.add(owners[batch.segments], *batch.sum_by_segment(nll_M))
            self.by_part.add(*batch.sum_by_part(nll_M))
            # A segment stands for its inputs and the target after them.
            num_tokens = batch.num_tokens + len(batch.segments)
            self.num_told += num_tokens
            self.on_tokens(num_tokens)


def _check_sequences(model: LoadedModel, sequences: Sequence[np.ndarray[Any, Any]]) -> None:
    """Raises `ModelError` for token ids (T,) that the model does not have; on a GPU they would end the process's use of it."""
    for row, sequence in enumerate(sequences):
        if len(sequence) and int(sequence.max()) >= model.vocab_size:
            raise ModelError(
                f"row {row}: token id {int(sequence.max())} is beyond the vocabulary of model {model.name} ({model.vocab_size} ids); "
                "was the corpus made with another tokenizer?"
            )
        if model.max_positions is not None and len(sequence) - 1 > model.max_positions:
            raise ModelError(
                f"row {row}: {len(sequence) - 1} inputs are more than the {model.max_positions} positions of model {model.name}; "
                "prepare the corpus with a smaller corpus.sequence_length"
            )

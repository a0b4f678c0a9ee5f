"""Which tokens are computed together: segments, packed into batches so that next to no padding is computed.

A segment is a run of inputs that attend only to each other: a sequence whole, or, with `attention: document`, the
part of one document in it. The last token of a sequence is a target only, so a sequence of n tokens has n - 1 inputs.

Shapes: N sequences, T tokens of each, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Attention = Literal["sequence", "document"]
Layout = Literal["flat", "rows"]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

# Tokens a forward pass where the configuration says auto. On 2 CPU cores 2,048 was as fast as any (SmolLM2-135M float32:
# 1,024: 1,091 tokens/s, 2,048: 1,112, 4,096: 1,061; 2026-11-24). A GPU wants more to fill its multiprocessors, the more
# the narrower the model: on an H100, without this engine, a compiled body of width 2,048 was faster with 16,384 tokens than
# with 65,536 (161,900 to 156,300 tokens/s, 2026-11).
_CPU_TOKENS = 2048
_GPU_TOKENS, _GPU_TOKENS_WIDE = 65536, 16384
_WIDE = 1024


def resolve_tokens_per_batch(tokens_per_batch: int | str, device_type: str, width: int) -> int:
    """Tokens a forward pass: the given number, or what suits the device and a model of this width."""
    if not isinstance(tokens_per_batch, str):
        return tokens_per_batch
    if device_type == "cpu":
        return _CPU_TOKENS
    return _GPU_TOKENS_WIDE if width >= _WIDE else _GPU_TOKENS


@dataclass(frozen=True)
class Segments:
    """All segments of some sequences, each array (S,): inputs `token_ids[start : start + length]` of sequence `sequence`.

    Each sequence is cut by its EOS into parts, one for each document that is in it; `first_part` is that of which a segment's
    first input is, counted over all sequences.
    """

    sequence: IntArray
    start: IntArray
    length: IntArray
    first_part: IntArray

    def __len__(self) -> int:
        return len(self.sequence)


def cut_segments(sequences: Sequence[np.ndarray[Any, Any]], eos_token_id: int, attention: Attention) -> Segments:
    """The segments of sequences, each (T,) token ids. A sequence of fewer than 2 tokens has none; nor has a document of which only its EOS is there."""
    lengths = np.array([len(sequence) - 1 for sequence in sequences], dtype=np.int64)
    rows = np.flatnonzero(lengths > 0)
    first_parts = np.append(0, np.cumsum(count_parts(sequences, eos_token_id)))
    if attention == "sequence":
        return Segments(rows, np.zeros(len(rows), dtype=np.int64), lengths[rows], first_parts[rows])
    owners, starts, segment_lengths, parts = [], [], [], []
    for row in rows.tolist():
        # A document ends with EOS, which predicts nothing of the next one: it is a target here, and no input.
        ends = np.append(np.flatnonzero(sequences[row][:-1] == eos_token_id), lengths[row])
        begins = np.append(0, ends[:-1] + 1)
        kept = ends > begins
        owners.append(np.full(int(kept.sum()), row))
        starts.append(begins[kept])
        segment_lengths.append((ends - begins)[kept])
        parts.append(first_parts[row] + np.flatnonzero(kept))
    if not owners:
        return Segments(*(np.zeros(0, dtype=np.int64),) * 4)
    return Segments(np.concatenate(owners), np.concatenate(starts), np.concatenate(segment_lengths), np.concatenate(parts))


def count_parts(sequences: Sequence[np.ndarray[Any, Any]], eos_token_id: int) -> IntArray:
    """Into how many parts each of N sequences is cut by its EOS, (N,): one that ends with EOS has nothing after it."""
    return np.array([np.count_nonzero(sequence[:-1] == eos_token_id) + 1 for sequence in sequences], dtype=np.int64)


def make_batches(lengths: IntArray, tokens_per_batch: int, layout: Layout, equal_lengths: bool = False) -> list[IntArray]:
    """Indices of segments by batch, of their lengths (S,): each in exactly one batch of at most `tokens_per_batch` computed tokens; one alone may exceed it.

    `flat` puts segments one after the other, so only tokens of segments are computed. `rows` puts each into a row as
    long as the batch's longest; with `equal_lengths` only segments of one length share a batch. Longest first: if
    memory is short, that shows at once. Which they are depends on the lengths only.
    """
    return _fill_flat(lengths, tokens_per_batch) if layout == "flat" else _fill_rows(lengths, tokens_per_batch, equal_lengths)


def _fill_flat(lengths: IntArray, tokens_per_batch: int) -> list[IntArray]:
    """Fills a batch with the longest segments that still fit, again and again; lengths (S,).

    Segments of one length are taken as a group: a search costs as much as there are lengths, at most `sequence_length`, not segments.
    """
    # Among equals the order in which they were given, so that the same segments always share a batch, and the last bits stay.
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    negative_sizes, next_place, left = np.unique(-lengths[order], return_index=True, return_counts=True)
    sizes = -negative_sizes
    batches: list[IntArray] = []
    num_left = len(lengths)
    while num_left:
        parts: list[IntArray] = []
        room = max(tokens_per_batch, int(sizes[np.flatnonzero(left)[0]]))
        while len(fitting := np.flatnonzero((left > 0) & (sizes <= room))):
            group = fitting[0]
            num_taken = min(int(left[group]), room // int(sizes[group]))
            parts.append(order[next_place[group] : next_place[group] + num_taken])
            next_place[group] += num_taken
            left[group] -= num_taken
            room -= num_taken * int(sizes[group])
        batches.append(np.concatenate(parts))
        num_left -= len(batches[-1])
    return batches


def _fill_rows(lengths: IntArray, tokens_per_batch: int, equal_lengths: bool) -> list[IntArray]:
    """Rows by falling length, so that neighbours pad each other least; lengths (S,)."""
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        too_large = (len(batches[-1]) + 1) * longest > tokens_per_batch if batches else True
        if too_large or (equal_lengths and lengths[index] != longest):
            batches.append([])
            longest = int(lengths[index])
        batches[-1].append(int(index))
    return [np.array(batch, dtype=np.int64) for batch in batches]

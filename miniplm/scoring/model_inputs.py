"""From segments to the tensors of one forward pass, and from the NLL of tokens back to sums of segments.

Shapes: R rows, T tokens a row, M = R * T tokens computed, N of them in one row of segments, filling included; S segments of the
batch, P borders between its documents and segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniplm.scoring.batches import IntArray, Layout, Segments


@dataclass(frozen=True)
class ModelInputs:
    """The tensors of a forward pass. `borders` (S + 1,) int32 and `longest` are given where segments share one row."""

    token_ids_RT: Tensor
    targets_M: Tensor
    position_ids_RT: Tensor | None = None
    borders: Tensor | None = None
    longest: int = 0

    def to(self, device: torch.device) -> ModelInputs:
        """On a device; from pinned memory, without waiting for the copy."""
        if device.type == "cpu":
            return self
        token_ids, targets, positions, borders = (
            None if tensor is None else (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
            for tensor in (self.token_ids_RT, self.targets_M, self.position_ids_RT, self.borders)
        )
        assert token_ids is not None
        assert targets is not None
        return ModelInputs(token_ids, targets, positions, borders, self.longest)


@dataclass(frozen=True)
class Batch:
    """One batch on the host: its tensors, and where in them each segment lies.

    `offsets` (S,) is a segment's first place in the M tokens, `first_parts` (S,) as in `Segments`, `scored_M` marks the
    targets that count.
    """

    inputs: ModelInputs
    segments: IntArray
    offsets: IntArray
    lengths: IntArray
    first_parts: IntArray
    scored_M: np.ndarray[Any, np.dtype[np.bool_]]

    @property
    def num_tokens(self) -> int:
        """Inputs of the batch; what only fills up its shape is not counted."""
        return int(self.lengths.sum())

    def sum_by_segment(self, nll_M: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, np.dtype[np.float64]], IntArray]:
        """Float64 sums (S,) of the NLL of the scored targets, and their number (S,)."""
        ends = self.offsets + self.lengths
        # In float64 from here on: a sum of 1,024 float32 NLLs would differ in its last digits with the order of its terms.
        # reduceat takes every second part: what lies between two segments belongs to none.
        sums, counts = self._sum_between(np.stack([self.offsets, ends], axis=1).ravel(), nll_M)
        return sums[::2], counts[::2]

    def sum_by_part(self, nll_M: np.ndarray[Any, Any]) -> tuple[IntArray, np.ndarray[Any, np.dtype[np.float64]], IntArray]:
        """The same by document: the part (P,) as `Segments.first_part` counts, its sum (P,) and number (P,)."""
        # An input that is EOS has the next document's first token for its target, which is not scored: there a part begins.
        eos = np.flatnonzero(~self.scored_M)
        owners = np.searchsorted(self.offsets, eos, side="right") - 1
        is_input = eos < (self.offsets + self.lengths)[owners]  # the others only fill up, and add nothing
        borders = np.concatenate([self.offsets, eos[is_input]])
        order = np.argsort(borders, kind="stable")
        segments = np.concatenate([np.arange(len(self.offsets)), owners[is_input]])[order]
        within = np.arange(len(segments)) - np.searchsorted(segments, segments)
        # Two equal borders, as of a segment that begins with EOS, give the target there, which is not scored: 0.
        return self.first_parts[segments] + within, *self._sum_between(borders[order], nll_M)

    def _sum_between(
        self, borders: IntArray, nll_M: np.ndarray[Any, Any]
    ) -> tuple[np.ndarray[Any, np.dtype[np.float64]], IntArray]:
        """Sums (num_borders,) and numbers of the scored targets from each border (num_borders,) to the next; from the last to the end."""
        nll = np.append(np.where(self.scored_M, nll_M, 0.0).astype(np.float64), 0.0)
        scored = np.append(self.scored_M, False).astype(np.int64)
        return np.add.reduceat(nll, borders), np.add.reduceat(scored, borders)


def build_batch(
    sequences: Sequence[np.ndarray[Any, Any]],
    segments: Segments,
    chosen: IntArray,
    eos_token_id: int,
    layout: Layout,
    longest: int,
    num_computed: int | None = None,
) -> Batch:
    """The batch of the chosen segments (S,), of sequences of token ids (T,). `flat` is filled up to `num_computed` tokens where that is given, so that its shape repeats.

    `longest` is the most inputs that any segment has; what fills up is cut into segments of at most that.
    """
    lengths = segments.length[chosen]
    pieces = [
        sequences[segments.sequence[index]][segments.start[index] : segments.start[index] + segments.length[index] + 1]
        for index in chosen
    ]
    if layout == "rows":
        shape = (len(chosen), int(lengths.max()))
        token_ids, targets, scored = (
            np.full(shape, max(eos_token_id, 0)),  # any id will do for padding, which no token before it sees; -1 means no EOS
            np.zeros(shape, dtype=np.int64),
            np.zeros(shape, dtype=np.bool_),
        )
        for row, piece in enumerate(pieces):
            token_ids[row, : len(piece) - 1] = piece[:-1]
            targets[row, : len(piece) - 1] = piece[1:]
            scored[row, : len(piece) - 1] = piece[:-1] != eos_token_id
        offsets = np.arange(len(chosen), dtype=np.int64) * shape[1]
        inputs = ModelInputs(torch.from_numpy(token_ids.astype(np.int64)), torch.from_numpy(targets.ravel()))
        return Batch(inputs, chosen, offsets, lengths, segments.first_part[chosen], scored.ravel())
    num_tokens = int(lengths.sum())
    num_filling = 0 if num_computed is None else max(0, num_computed - num_tokens)
    filling = [longest] * (num_filling // longest) + ([num_filling % longest] if num_filling % longest else [])
    all_lengths = np.concatenate([lengths, np.array(filling, dtype=np.int64)])
    borders = np.append(0, np.cumsum(all_lengths))
    inputs_N = np.full(num_tokens + num_filling, max(eos_token_id, 0), dtype=np.int64)
    targets_N = np.zeros(num_tokens + num_filling, dtype=np.int64)
    np.concatenate([piece[:-1] for piece in pieces], out=inputs_N[:num_tokens], casting="unsafe")
    np.concatenate([piece[1:] for piece in pieces], out=targets_N[:num_tokens], casting="unsafe")
    positions = np.arange(len(inputs_N)) - np.repeat(borders[:-1], all_lengths)
    if num_computed is not None:
        # As many borders as a power of two, the last one repeated: few shapes, and an empty segment costs nothing.
        num_borders = 1 << int(np.ceil(np.log2(max(len(borders), 2 * num_computed // longest, 2))))
        borders = np.pad(borders, (0, num_borders - len(borders)), mode="edge")
    inputs = ModelInputs(
        torch.from_numpy(inputs_N)[None],
        torch.from_numpy(targets_N),
        torch.from_numpy(positions)[None],
        torch.from_numpy(borders.astype(np.int32)),
        longest,
    )
    return Batch(
        inputs,
        chosen,
        np.append(0, np.cumsum(lengths))[:-1],
        lengths,
        segments.first_part[chosen],
        inputs_N != eos_token_id,
    )

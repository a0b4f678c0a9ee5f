"""The mean hidden states of sequences: what a model has made of each before its head.

Shapes: N sequences, T tokens of one, S segments of a batch, M tokens that it computes, K of them scored, H width of the hidden state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from miniplm.models.devices import device_errors, free_cached_memory, is_out_of_memory, use_device
from miniplm.scoring.batches import cut_segments, make_batches
from miniplm.scoring.engine import Scorer
from miniplm.scoring.model_inputs import Batch, build_batch


def pool_states(scorer: Scorer, sequences: Sequence[NDArray[Any]], eos_token_id: int) -> NDArray[np.float64]:
    """The mean of the last hidden states over the tokens of each sequence (T,) whose target is scored: (N, H), zeros where none is.

    Batches are halved for good where memory runs out, as in `Scorer.score`.
    """
    device, forward = scorer.model.device, scorer.forward
    sums_NH = np.zeros((len(sequences), scorer.model.head.weight_VH.shape[1]))
    counts = np.zeros(len(sequences), dtype=np.int64)
    segments = cut_segments(sequences, eos_token_id, scorer.attention)
    longest = int(segments.length.max(initial=1))

    def make(left: NDArray[np.int64]) -> deque[NDArray[np.int64]]:  # (num_left,)
        batches = make_batches(segments.length[left], scorer.tokens_per_batch, forward.layout, forward.needs_equal_lengths)
        return deque(left[batch] for batch in batches)

    with use_device(device), device_errors(device, f"reading the states of model {scorer.model.name}"):
        batches = make(np.arange(len(segments), dtype=np.int64))
        while batches:
            chosen = batches.popleft()
            try:
                batch = build_batch(sequences, segments, chosen, eos_token_id, forward.layout, longest, scorer.filled_tokens())
                sums_SH, counts_S = _sum_states(forward.compute_states(batch.inputs.to(device)), batch)
            except Exception as error:  # of any class, as it is of the device's library
                if not is_out_of_memory(error) or len(chosen) == 1:
                    raise
                scorer.tokens_per_batch = max(1, int(segments.length[chosen].sum()) // 2)
                free_cached_memory()
                batches = make(np.concatenate([chosen, *batches]))
                continue
            np.add.at(sums_NH, segments.sequence[chosen], sums_SH)
            np.add.at(counts, segments.sequence[chosen], counts_S)
    return sums_NH / np.maximum(counts, 1)[:, None]


def _sum_states(hidden_MH: torch.Tensor, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums (S, H) over the scored tokens of each segment, and how many these are (S,)."""
    num_segments, places_M = len(batch.segments), np.arange(len(batch.scored_M))
    owners_M = np.searchsorted(batch.offsets, places_M, side="right") - 1
    # What fills up a row or a batch lies behind the end of the segment before it.
    scored_K = np.flatnonzero(batch.scored_M & (places_M < (batch.offsets + batch.lengths)[owners_M]))
    owners_K = owners_M[scored_K]
    states_KH = hidden_MH[torch.from_numpy(scored_K).to(hidden_MH.device)].float()
    sums_SH = torch.zeros(num_segments, hidden_MH.shape[1], device=hidden_MH.device)
    sums_SH.index_add_(0, torch.from_numpy(owners_K).to(hidden_MH.device), states_KH)
    return sums_SH.double().cpu().numpy(), np.bincount(owners_K, minlength=num_segments)

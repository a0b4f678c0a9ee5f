"""Scores sequences under a model: the sum of NLL over the scored targets of each, never storing a batch's logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniplm.errors import ModelError, ScoreError
from miniplm.models.devices import describe_memory, is_out_of_memory
from miniplm.models.loading import LoadedModel
from miniplm.nll import mask_scored_targets, nll_of_hidden, sum_nll_by_sequence
from miniplm.scoring.batches import plan_batches

TokenCallback = Callable[[int], None]


@dataclass(frozen=True)
class SequenceScores:
    """Scores in the order of the sequences given: `nll_sum` (N,) float64 in nats, `num_scored_tokens` (N,) int32."""

    nll_sum: np.ndarray[Any, np.dtype[np.float64]]
    num_scored_tokens: np.ndarray[Any, np.dtype[np.int32]]


def score_sequences(
    model: LoadedModel,
    sequences: Sequence[np.ndarray[Any, Any]],
    eos_token_id: int,
    tokens_per_batch: int,
    on_tokens: TokenCallback = lambda num_tokens: None,
) -> SequenceScores:
    """Sum of NLL over the scored targets of each sequence (see `mask_scored_targets`), a token id array each.

    In float32 the result is within 1e-4 nats a token of a float64 computation, whatever the batch. A batch that
    runs out of memory is halved, and so are those after it. `on_tokens` is told the tokens of each finished batch.
    Raises `ModelError` for a token id beyond the vocabulary or a sequence longer than the model's positions, and
    `ScoreError` where one sequence alone does not fit in memory.
    """
    _check_sequences(model, sequences)
    nll_sum = np.zeros(len(sequences), dtype=np.float64)
    num_scored_tokens = np.zeros(len(sequences), dtype=np.int32)
    lengths = [len(sequence) for sequence in sequences]
    pending = deque(plan_batches(lengths, tokens_per_batch, model.needs_equal_lengths))
    largest = max((len(batch) for batch in pending), default=0)
    while pending:
        batch = pending.popleft()
        if len(batch) > largest:
            pending.extendleft([batch[largest:], batch[:largest]])
            continue
        try:
            sums_B, counts_B = _score_batch(model, [sequences[index] for index in batch], eos_token_id)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ScoreError(
                    f"model {model.name}: one sequence of {lengths[batch[0]]} tokens does not fit in memory on {model.device} "
                    f"({describe_memory(model.device)}); use a smaller dtype, another device or a shorter corpus.sequence_length"
                ) from error
            largest = len(batch) // 2
            pending.appendleft(batch)
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        nll_sum[batch] = sums_B.cpu().numpy()
        num_scored_tokens[batch] = counts_B.cpu().numpy()
        on_tokens(sum(lengths[index] for index in batch))
    return SequenceScores(nll_sum, num_scored_tokens)


@torch.inference_mode()
def _score_batch(model: LoadedModel, sequences: list[np.ndarray[Any, Any]], eos_token_id: int) -> tuple[Tensor, Tensor]:
    token_ids_BT, num_tokens_B = pad_sequences(sequences, eos_token_id)
    mask_BS = mask_scored_targets(token_ids_BT, num_tokens_B, eos_token_id)
    if not mask_BS.any():
        return torch.zeros(len(sequences), dtype=torch.float64), mask_BS.sum(dim=1)
    token_ids_BT, mask_BS = token_ids_BT.to(model.device), mask_BS.to(model.device)
    # Causal attention: padding on the right is never seen by the tokens before it, so no attention mask is needed.
    hidden_BSH = model.body(input_ids=token_ids_BT[:, :-1], use_cache=False).last_hidden_state
    nll_N = nll_of_hidden(model.head, hidden_BSH[mask_BS], token_ids_BT[:, 1:][mask_BS])
    return sum_nll_by_sequence(nll_N, mask_BS)


def pad_sequences(sequences: Sequence[np.ndarray[Any, Any]], eos_token_id: int) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) int64, padded on the right with EOS to at least 2 tokens, and the lengths (B,)."""
    lengths = [len(sequence) for sequence in sequences]
    token_ids_BT = np.full((len(sequences), max(2, *lengths)), eos_token_id, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        token_ids_BT[row, : len(sequence)] = sequence
    return torch.from_numpy(token_ids_BT), torch.tensor(lengths)


def _check_sequences(model: LoadedModel, sequences: Sequence[np.ndarray[Any, Any]]) -> None:
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

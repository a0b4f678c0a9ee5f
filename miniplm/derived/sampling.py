"""Sampling whose outcome depends on the sequence and the position alone, not on what else is sampled together.

Greedy choice among logits with Gumbel noise is sampling from their softmax (Gumbel-max): argmax_v (l_v / temperature + g_v),
g_v = -log(-log u_v). The u_v come from a counter-based generator: a hash of seed, sequence, position and token.

Shapes: B sequences, T tokens before the one that is chosen, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

_MASK = 0xFFFFFFFF
_GOLDEN_RATIO = 0x9E3779B9  # 2**32 over the golden ratio: neighbouring tokens start far from each other


class GumbelSampling:
    """Adds the noise to the logits of each step, for transformers' `generate` with `do_sample=False`.

    Row b of a batch is the sequence `sequence_ids[b]`. Tokens from `vocab_size` on, rows of the embedding that no token
    has, are never chosen. `saw_nan` tells whether a logit was NaN.
    """

    def __init__(
        self, sequence_ids: Sequence[int], seed: int, vocab_size: int, temperature: float = 1.0, top_p: float = 1.0
    ) -> None:
        from transformers.generation.logits_process import TopPLogitsWarper

        self._sequence_ids = sequence_ids
        self._seed = seed
        self._vocab_size = vocab_size
        self._temperature = temperature
        self._keep_likeliest: Any = TopPLogitsWarper(top_p) if top_p < 1 else None
        self._nan: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) of the token after `input_ids` (B, T), to logits with noise, float64."""
        # Float64: in float32 two of 100,000 noisy logits are equal far more often, and which of them is the largest would be the device's
        # choice. It costs B x V numbers of 8 bytes, beside a forward pass.
        logits_BV = scores.double() / self._temperature
        logits_BV[:, self._vocab_size :] = -torch.inf
        # Kept on the device: to ask it at each token would make the host wait for it.
        has_nan = logits_BV.isnan().any()
        self._nan = has_nan if self._nan is None else self._nan | has_nan
        if self._keep_likeliest is not None:
            logits_BV = self._keep_likeliest(input_ids, logits_BV)
        keys = [make_key(self._seed, sequence_id, input_ids.shape[1]) for sequence_id in self._sequence_ids]
        return logits_BV + draw_gumbel(torch.tensor(keys, device=scores.device), logits_BV.shape[1])

    @property
    def saw_nan(self) -> bool:
        return self._nan is not None and bool(self._nan)


def make_key(seed: int, sequence_id: int, position: int) -> tuple[int, int]:
    """64 bits for one choice, as two numbers of 32: a BLAKE2b of what the choice may depend on."""
    digest = hashlib.blake2b(f"{seed}:{sequence_id}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def draw_gumbel(keys_B2: torch.Tensor, num: int) -> torch.Tensor:
    """Standard Gumbel noise (B, num), float64, on the device of the keys (B, 2) int64; u has 32 bits and is neither 0 nor 1."""
    counter_V = torch.arange(num, device=keys_B2.device) * _GOLDEN_RATIO
    mixed_BV = _mix((counter_V[None, :] + keys_B2[:, :1]) & _MASK)
    mixed_BV = _mix(mixed_BV ^ keys_B2[:, 1:])
    uniform_BV = (mixed_BV.double() + 0.5) / 2**32
    return -torch.log(-torch.log(uniform_BV))


def _mix(numbers: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit numbers (...), held as int64, that changes half of the bits for any bit of its input (lowbias32, C. Wellons)."""
    numbers = numbers ^ (numbers >> 16)
    numbers = (numbers * 0x7FEB352D) & _MASK
    numbers = numbers ^ (numbers >> 15)
    numbers = (numbers * 0x846CA68B) & _MASK
    return numbers ^ (numbers >> 16)

"""Gumbel noise of a sequence, a function of the seed and its id alone: whatever shard, process or order asks for it.

The best k by score / temperature + Gumbel noise are k draws without replacement in proportion to exp(score / temperature)
(Kool et al. 2019, Gumbel-top-k).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)
_UNIFORM_SHIFT = np.uint64(11)


def draw_gumbel(ids: NDArray[np.integer[Any]], seed: int) -> NDArray[np.float64]:
    """Standard Gumbel noise (num_ids,) of ids (num_ids,): -log(-log u), u of 53 bits and neither 0 nor 1."""
    start = np.uint64(int.from_bytes(hashlib.blake2b(f"selection:{seed}".encode(), digest_size=8).digest(), "little"))
    # SplitMix64 (Steele et al. 2014) at place `id` of the stream that begins at `start`; products wrap.
    numbers = ids.astype(np.uint64) * _STEP + start
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        numbers = (numbers ^ (numbers >> shift)) * multiplier
    numbers ^= numbers >> _SHIFTS[2]
    uniform = ((numbers >> _UNIFORM_SHIFT).astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray(-np.log(-np.log(uniform)))

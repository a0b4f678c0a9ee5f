"""Which sequences are scored together: by length, under a token budget, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Sequence

# Tokens a forward pass where the configuration says auto. On 2 CPU cores 2,048 was fastest (8 x 256: 680 tokens/s,
# 16 x 256: 645, 32 x 256: 580, SmolLM2-135M float32, 2026-11-23); a GPU wants more to fill its multiprocessors.
_AUTO_TOKENS = {"cpu": 2048}
_AUTO_TOKENS_ACCELERATOR = 65536


def resolve_tokens_per_batch(tokens_per_batch: int | str, device_type: str) -> int:
    return _AUTO_TOKENS.get(device_type, _AUTO_TOKENS_ACCELERATOR) if isinstance(tokens_per_batch, str) else tokens_per_batch


def plan_batches(num_tokens: Sequence[int], tokens_per_batch: int, equal_lengths: bool = False) -> list[list[int]]:
    """Indices of sequences, each in exactly one batch; longest first, ties by index.

    A batch's rows times its longest sequence is at most `tokens_per_batch`, except that one sequence alone may
    exceed it. With `equal_lengths` only sequences of one length share a batch. Longest first: if memory is short,
    that shows at once.
    """
    order = sorted(range(len(num_tokens)), key=lambda index: (-num_tokens[index], index))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        too_large = (len(batches[-1]) + 1) * longest > tokens_per_batch if batches else True
        if too_large or (equal_lengths and num_tokens[index] != longest):
            batches.append([])
            longest = num_tokens[index]
        batches[-1].append(index)
    return batches

"""Where a model's layers lie: on the one device asked for, or spread over the GPUs of the machine where it does not fit."""

from __future__ import annotations

import torch

from miniplm.errors import ModelError

# What a batch's activations and the logits of a tile may take; the rest of a GPU is for weights.
_RESERVED_SHARE = 0.15
# A parameter's, while it is loaded: those of fp8 come as bfloat16 and are rounded layer by layer.
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 2, "fp8-head": 2}


def place_model(num_parameters: int, dtype: str, device: torch.device) -> dict[int, int] | None:
    """None where the weights fit on `device`; else bytes for weights on each GPU, from which accelerate lays out the layers.

    Only `cuda` without a number may be spread: who names one GPU wants that one.
    """
    if device.type != "cuda" or device.index is not None or torch.cuda.device_count() < 2:
        return None
    free = {index: int(torch.cuda.mem_get_info(index)[0] * (1 - _RESERVED_SHARE)) for index in range(torch.cuda.device_count())}
    return spread_weights(num_parameters * _BYTES[dtype], free)


def spread_weights(num_bytes: int, free_bytes: dict[int, int]) -> dict[int, int] | None:
    """None where the first GPU holds all; else what each GPU takes, as few of them as do. Raises `ModelError` where all are too small."""
    if num_bytes <= free_bytes[min(free_bytes)]:
        return None
    taken: dict[int, int] = {}
    for index in sorted(free_bytes):
        taken[index] = free_bytes[index]
        # One layer's worth a GPU may stay empty, as layers are not cut.
        if sum(taken.values()) * 0.95 >= num_bytes:
            return taken
    # What does not fit would be left on the host or the disk, and fetched for every batch.
    raise ModelError(
        f"the model has {num_bytes / 2**30:.1f} GiB of weights, and the {len(taken)} GPUs of this machine have "
        f"{sum(taken.values()) / 2**30:.1f} GiB for them; use a smaller dtype or a larger machine"
    )

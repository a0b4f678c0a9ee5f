"""Which precision `auto` stands for."""

from __future__ import annotations


def choose_dtype(device_type: str) -> str:
    """float32 on a CPU, bfloat16 on a GPU.

    On a CPU with instructions for bfloat16 that is faster too, but float32 gives the same scores on every machine, so it is for
    the user to ask for.
    """
    return "float32" if device_type == "cpu" else "bfloat16"

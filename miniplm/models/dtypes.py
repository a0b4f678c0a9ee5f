"""Which precision `auto` stands for."""

from __future__ import annotations


def choose_dtype(device_type: str) -> str:
    """What a model is trained and measured in: float32 on a CPU, bfloat16 on a GPU."""
    return "float32" if device_type == "cpu" else "bfloat16"


def choose_scoring_dtype(device_type: str, native_bfloat16: bool) -> str:
    """What a model scores in: bfloat16 on a GPU and on a CPU that multiplies in it (`native_bfloat16`), float32 on any other CPU."""
    return "bfloat16" if native_bfloat16 else choose_dtype(device_type)

"""Which precision `auto` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Hidden width from which products in bfloat16 are faster on a CPU that has them. Measured on two cores with AVX512-BF16, bfloat16 over
# float32: 0.68 at width 256 (qwen-tiny), 1.86 at 512 (qwen-104m), 1.34 at 576 (SmolLM2-135M).
LEAST_WIDTH_OF_BFLOAT16 = 512
# As the families of transformers call their width in config.json.
_WIDTHS = ("hidden_size", "n_embd", "d_model", "n_embed", "dim", "model_dim")


def choose_dtype(device_type: str) -> str:
    """What a model is trained and measured in: float32 on a CPU, bfloat16 on a GPU."""
    return "float32" if device_type == "cpu" else "bfloat16"


def choose_scoring_dtype(device_type: str, native_bfloat16: bool, hidden_width: int) -> str:
    """What a model scores in: bfloat16 on a GPU, and on a CPU that multiplies in it (`native_bfloat16`) where the model is wide enough
    to be faster for it; else float32, which is exacter.
    """
    is_faster = native_bfloat16 and hidden_width >= LEAST_WIDTH_OF_BFLOAT16
    return "bfloat16" if is_faster else choose_dtype(device_type)


def find_hidden_width(config: Mapping[str, Any]) -> int:
    """The width of a model's hidden states by the content of its config.json; 0 where that does not tell."""
    text = config.get("text_config")
    places = [text, config] if isinstance(text, Mapping) else [config]
    found = (place.get(name) for place in places for name in _WIDTHS)
    return next((width for width in found if isinstance(width, int)), 0)

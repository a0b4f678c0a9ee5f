"""Architectures by name: each is the content of a config.json without the size of its vocabulary.

The Qwen2 and Llama ones have the published widths (arXiv 2410.17215, table of model configurations), one key and value
head a query head. The published names round generously: with the vocabulary of 151,936, `qwen-300m` has 247 M
parameters and `qwen-500m` has 464 M.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """An architecture that any family of transformers may be."""

    description: str
    config: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """Everything but the size of the vocabulary, and of the context where any will do, as the content of a config.json; a copy."""
        return copy.deepcopy(dict(self.config))


def _transformer(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "hidden_act": "silu",
    }


_QWEN2 = {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-6}
# Positions as of the models of Meta: their scaling for long contexts is part of the family, needed or not.
_LLAMA_3_1 = {
    "model_type": "llama",
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
}

PRESETS: dict[str, Preset] = {
    "qwen-tiny": Preset("for demos and tests; learns on two CPU cores", _QWEN2 | _transformer(128, 352, 4, 4)),
    "qwen-104m": Preset("the published reference model", _QWEN2 | _transformer(512, 1408, 8, 8)),
    "qwen-200m": Preset("published student", _QWEN2 | _transformer(768, 2112, 12, 12)),
    "qwen-300m": Preset("published student", _QWEN2 | _transformer(768, 2112, 18, 12)),
    "qwen-500m": Preset("published student", _QWEN2 | _transformer(1024, 2816, 24, 16)),
    "qwen-1.2b": Preset(
        "published student; embeddings not tied", _QWEN2 | _transformer(1536, 4224, 24, 16) | {"tie_word_embeddings": False}
    ),
    # 212 M is what comes out with a feed-forward width of 4 * 768 and the 128,256 ids of Llama 3.1; with 2,112 it would be 185 M.
    "llama-3.1-212m": Preset(
        "published student of another family, for the tokenizer of Llama 3.1", _LLAMA_3_1 | _transformer(768, 3072, 12, 12)
    ),
    "mamba-130m": Preset(
        "published student of another family, a state space model, for the tokenizer of GPT-NeoX; as state-spaces/mamba-130m",
        {
            "model_type": "mamba",
            "hidden_size": 768,
            "num_hidden_layers": 24,
            "state_size": 16,
            "expand": 2,
            "conv_kernel": 4,
            "time_step_rank": 48,
            "use_bias": False,
            "use_conv_bias": True,
            "residual_in_fp32": True,
            # The fresh weights of state-spaces; the published config.json says otherwise, but of trained weights.
            "rescale_prenorm_residual": True,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
        },
    ),
}

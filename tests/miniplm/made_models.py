"""Tiny random models in folders, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB_SIZE = 100


def make_llama(seed: int = 0, vocab_size: int = VOCAB_SIZE, max_positions: int = 128) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


def make_qwen2(seed: int = 0, vocab_size: int = VOCAB_SIZE) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.4,
    )
    return Qwen2ForCausalLM(config).eval()


def make_gpt2(seed: int = 0, vocab_size: int = VOCAB_SIZE) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4)
    return GPT2LMHeadModel(config).eval()


_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
}
_GPT2_SIZES = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.4}
# A window or state that is shorter than the test's sequences, so that it matters.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "qwen2": _SIZES,
    "qwen3": _SIZES | {"head_dim": 8},
    "gemma": _SIZES | {"head_dim": 8},
    "gemma2": _SIZES | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": _SIZES | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "mistral": _SIZES | {"head_dim": 8, "sliding_window": 8},
    "smollm3": _SIZES | {"pad_token_id": 0},
    "phi3": _SIZES | {"pad_token_id": 0},
    "olmo2": _SIZES,
    "granite": _SIZES | {"logits_scaling": 2.0},
    "cohere": _SIZES | {"logit_scale": 0.25},
    "gpt2": _GPT2_SIZES,
    "gpt_neox": _SIZES,
    "opt": {key: value for key, value in _SIZES.items() if "key_value" not in key} | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "falcon": {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False},
    "mamba": {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
    },
}


def make_family(family: str) -> PreTrainedModel:
    """A tiny random model of a transformers model type, its weights large enough that every part of it matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder

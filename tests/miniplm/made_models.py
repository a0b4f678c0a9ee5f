"""Tiny random models in folders, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB_SIZE = 100


def make_llama(
    seed: int = 0, vocab_size: int = VOCAB_SIZE, max_positions: int = 128, num_layers: int = 2, initializer_range: float = 0.4
) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        initializer_range=initializer_range,
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


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder

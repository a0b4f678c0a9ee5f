"""Tiny random models of every family that transformers takes for a causal language model, for tests: one line a family.

A family's line says only what `SMALL` does not: layers of each kind that it has, and what its own config cannot do without.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB_SIZE = 100
WINDOW = 8  # shorter than the tests' sequences, as chunks and blocks are

# Sizes under all names that configs have for them; a config is given those that it knows.
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "dff", "dim_ff"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "window_size", "attention_window_size"), WINDOW),
    "attention_chunk_size": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": WINDOW,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "is_decoder": True,
    "state_size": 8,
    "chunk_size": 16,
    "type_vocab_size": 2,
}

S, F, L = "sliding_attention", "full_attention", "linear_attention"
_BOTH = {"layer_types": [S, F]}
_GDN = {
    "layer_types": [L, F],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_MAMBA2 |= {"mamba_expand": 2}

_MLA = {"num_key_value_heads": 4, "head_dim": 8}
_GEMMA4 = _BOTH | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB_SIZE, "global_head_dim": 8}

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_GEMMA3N = {
    "num_hidden_layers": 4,
    "layer_types": [S, F, S, F],
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "laurel_rank": 4,
    "activation_sparsity_pattern": [0.0] * 4,
}

ZOO: dict[str, dict[str, Any]] = {
    "afmoe": _BOTH | {"num_dense_layers": 1},
    "apertus": {},
    "arcee": {},
    "aria_text": {},
    "axk1": _MLA,
    "axk2": _MLA,
    "bailing_hybrid": _MLA,
    "bamba": _MAMBA2 | {"attn_layer_indices": [1]},
    "bart": {},
    "beam": _BOTH,
    "bert": {},
    "bert-generation": {},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {},
    "biogpt": {},
    "bitnet": {},
    "blenderbot": {},
    "blenderbot-small": {},
    "bloom": {},
    "camembert": {},
    "codegen": {"rotary_dim": 4},
    "cohere": {"logit_scale": 0.25},
    "cohere2": _BOTH,
    "cohere2_moe": _BOTH,
    "cohere_compass_text": _BOTH | {"rope_parameters": {F: _ROPE, S: _ROPE}},
    "cpmant": {},
    "ctrl": {},
    "cwm": _BOTH,
    "data2vec-text": {},
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "deepseek_v4": {},
    "diffllama": {},
    "doge": {},
    "dots1": _BOTH | {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": _MLA,
    "electra": {},
    "ernie": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": _BOTH,
    "exaone_moe": _BOTH,
    "falcon": {},
    "falcon_h1": _MAMBA2,
    "falcon_mamba": {},
    "flex_olmo": {},
    "flint": _BOTH,
    "gemma": {},
    "gemma2": _BOTH | {"query_pre_attn_scalar": 8},
    "gemma3_text": _BOTH | {"query_pre_attn_scalar": 8},
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": _MLA,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": _BOTH,
    "gptj": {"rotary_dim": 4},
    "granite": {"logits_scaling": 2.0},
    "granite_swa": _BOTH,
    "granitemoe": {},
    "granitemoe_swa": _BOTH,
    "granitemoehybrid": _MAMBA2 | {"layer_types": ["mamba", "attention"]},
    "granitemoeshared": {},
    "helium": {},
    "hrm_text": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {},
    "hyperclovax": {},
    "inkling2_text": {},
    "inkling_text": {},
    "jais2": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
    "jetmoe": {},
    "kimi_linear": _MLA | {"linear_head_dim": 8, "linear_num_heads": 4},
    "kolibri1": _BOTH,
    "laguna": _BOTH,
    "lfm2": {"layer_types": ["conv", F]},
    "lfm2_moe": {"layer_types": ["conv", F]},
    "lfm3": {},
    "llama": {},
    "llama4_text": {"layer_types": ["chunked_attention", F], "no_rope_layers": [1, 0]},
    "longcat_flash": _MLA,
    "mamba": {},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "marian": {},
    "mbart": {},
    "megatron-bert": {},
    "mellum": _BOTH,
    "mimo_v2_flash": _BOTH,
    "minicpm3": _MLA,
    "minimax": {},
    "minimax_m2": {},
    "minimax_m3_vl_text": {},
    "ministral": _BOTH,
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": _BOTH,
    "moshi": {},
    "mpt": {},
    "mvp": {},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {"ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "use_mamba_kernels": False},
    "olmo": {},
    "olmo2": {},
    "olmo3": _BOTH,
    "olmo_hybrid": {},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {"word_embed_proj_dim": 32},
    "pegasus": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "plbart": {},
    "prophetnet": {},
    "qwen2": _BOTH | {"use_sliding_window": True},
    "qwen2_moe": _BOTH | {"use_sliding_window": True},
    "qwen3": _BOTH | {"use_sliding_window": True},
    "qwen3_5_moe_text": _GDN,
    "qwen3_5_text": _GDN,
    "qwen3_moe": {"use_sliding_window": True},
    "qwen3_next": _GDN,
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32},
    "reformer": {
        "axial_pos_embds_dim": (16, 16),
        "axial_pos_shape": (8, 16),
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "num_hashes": 1,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "feed_forward_size": 48,
    },
    "rembert": {},
    "roberta": {},
    "roberta-prelayernorm": {},
    "roc_bert": {},
    "roformer": {},
    "rwkv": {},
    "seed_oss": {},
    "smollm3": {"use_sliding_window": True, "layer_types": [S, F]},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "trocr": {},
    "vaultgemma": _BOTH,
    "whisper": {},
    "xglm": {},
    "xlm": {},
    "xlm-roberta": {},
    "xlm-roberta-xl": {},
    "xlnet": {},
    "xlstm": {},
    "xmod": {"default_language": "en_XX"},
    "youtu": _MLA,
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}


# Why a family is refused: what its error says.
_HEAD = "makes its logits in a way that is not known here"  # a layer of its own between body and logits
_ENCODER = "is an encoder, in which each token sees those after it"
_DIRECTION = "is no causal language model as its config.json has it"
REFUSED = {
    **dict.fromkeys(("bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert"), _HEAD),
    **dict.fromkeys(("roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"), _HEAD),
    **dict.fromkeys(("inkling_text", "modernbert-decoder", "prophetnet"), _HEAD),
    # CPM-Ant reads a text in both directions; Reformer sorts tokens into buckets of random hashes.
    **dict.fromkeys(("cpmant", "reformer"), _DIRECTION),
    # In both directions too, which is known of the type.
    **dict.fromkeys(("xlm", "xlnet"), _ENCODER),
}

# Not in the zoo, and why.
LEFT_OUT = {
    **dict.fromkeys(("gpt-sw3", "internlm3", "iquestcoder", "dots3_note"), "another name for a family that is here"),
    **dict.fromkeys(
        (
            *("emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "git", "got_ocr2", "llama4", "mllama"),
            *("moss_transcribe_diarize", "musicgen", "musicgen_melody", "phi4_multimodal", "qwen3_5", "qwen3_5_moe", "qwen4_exp"),
        ),
        "text beside images or sound: towers that are not made tiny here; their text model is here by itself where it has a config",
    ),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "drafts tokens for another model, whose states it reads"),
    "blt": "reads bytes in patches, by models of its own",
    "dbrx": "its config (transformers 5.23) has no rope_theta, so that it cannot be made",
    "qwen4_exp_text": "its config (transformers 5.23) has no defaults for its indexer",
    "zamba": "its shared layers (transformers 5.23) cannot be tied when it is tiny",
}


def make_config(family: str, **changes: Any) -> Any:
    """The config of a tiny model of a family: `SMALL` as far as the family knows it, its line, and the given changes."""
    known = CONFIG_MAPPING[family]
    default = known()
    names = set(default.to_dict()) | set(getattr(known, "attribute_map", {}))
    small = {key: value for key, value in SMALL.items() if key in names}
    return AutoConfig.for_model(family, **small | ZOO[family] | changes)


def make_family(family: str, **changes: Any) -> PreTrainedModel:
    """A tiny model of a family, random weights large enough that each part matters, biases and norms included."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(family, **changes))
    return randomize(model)


@torch.no_grad()
def randomize(model: PreTrainedModel) -> PreTrainedModel:
    """The model with other weights: matrices of standard deviation 0.2, vectors and biases as they were made but for 0.1."""
    generator = torch.Generator().manual_seed(0)
    stored = set(model.state_dict())
    weights = [
        *model.named_parameters(),
        *((name, buffer) for name, buffer in model.named_buffers() if name in stored and "bias" in name),
    ]
    for name, weight in weights:
        if not weight.is_floating_point():
            continue
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() >= 2 and "bias" not in name:
            weight.copy_(0.2 * noise)
        else:
            weight.add_(0.1 * noise)
    return model.eval()

"""What of a model's numbers depends on how long its input is, by its config.json."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# Attention to the keys of highest score: which they are among equals depends on how many there are.
_SELECTIONS = ("index_topk", "index_topk_blocks", "indexer_budget", "keep_window_size")
# Something that happens at a distance: a window, a chunk, a block.
_DISTANCES = re.compile(r"window|chunk|block_size|local_attention|conv_kernel|d_conv")
# Tokens of the longest probe: the windows of masks are proved without one.
_LONGEST_PROBE = 256
_SHORTEST_PROBE = 16


def find_max_positions(config: Any) -> int | None:
    """The longest input in tokens, None where the family has no limit."""
    text_config = config.get_text_config(decoder=True)
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(text_config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def depends_on_length(config: Any) -> bool:
    """Whether what a token's hidden state is depends on the length of the whole input, padding included.

    The position encoding does so in LongRoPE (Phi-3) and dynamic NTK, sparse attention (DeepSeek V3.2) in how it breaks ties.
    """
    text_config = config.get_text_config(decoder=True)
    return any(kind in ("longrope", "su", "dynamic") for kind in _rope_kinds(text_config)) or any(
        isinstance(getattr(text_config, key, None), int) for key in _SELECTIONS
    )


def choose_probe_length(config: Any) -> int:
    """Tokens of a probe in which whatever happens at a distance happens, up to 256 and what the model takes; else 16."""
    content = config.get_text_config(decoder=True).to_dict()
    values = [value for key, value in content.items() if _DISTANCES.search(key) and type(value) is int]
    length = max([_SHORTEST_PROBE, *(value + 9 for value in values if value + 9 <= _LONGEST_PROBE)])
    return min(length, find_max_positions(config) or length)


def forget_seen_lengths(model: nn.Module) -> None:
    """Has each forward pass compute dynamic NTK positions of its own length.

    transformers (5.23) keeps those of the longest input so far, so that a text's numbers depend on what was read before it.
    """
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and any("dynamic" in kind for kind in _module_kinds(module)):
            module.register_forward_pre_hook(_forget)


def _forget(module: Any, _: Any) -> None:
    """Takes back both things that a module keeps of the longest input: its length, and the frequencies that were made for it."""
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        setattr(module, name, module.original_max_seq_len)
    for name, frequencies in list(module.named_buffers(recurse=False)):
        if name.endswith("original_inv_freq"):
            module.register_buffer(name.replace("original_", ""), frequencies.clone(), persistent=False)


def _module_kinds(module: Any) -> list[str]:
    kind = getattr(module, "rope_type", "")
    return [str(value) for value in (kind.values() if isinstance(kind, dict) else [kind])]


def _rope_kinds(config: Any) -> list[str]:
    kinds = []
    for name in ("rope_parameters", "rope_scaling"):
        parameters = getattr(config, name, None) or {}
        for each in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
            kinds.append(str(each.get("rope_type", each.get("type"))))
    return kinds

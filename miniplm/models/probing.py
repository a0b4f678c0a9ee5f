"""What is tried on a model before it is used: that no token sees a later one, and that its two ways of attention are one.

Shapes: T tokens of a run, H width of the hidden state.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from miniplm.errors import ConfigError, ModelError, first_line
from miniplm.models.devices import is_device_lost, is_out_of_memory
from miniplm.models.lengths import find_max_positions

_log = logging.getLogger("miniplm")

# Largest difference of a token's hidden state, as a share of what tells it from the others, that is rounding.
ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
# What comes before a change is computed from the same numbers in the same shapes; only sums of experts may be rounded otherwise.
_ROUNDING_BEFORE_CHANGE = {torch.float64: 1e-6, torch.float32: 1e-5}

_LENGTH = 37
# No multiples of any usual block or chunk, inside which a token might see the later ones.
_CHANGED_FROM = (13, 35)
# In low precision a router may choose another expert for a rounding error, but not for each of several texts.
_TRIALS = 3


def make_probe(vocab_size: int, length: int, device: torch.device, shift: int = 0) -> Tensor:
    """Token ids (T,) int64 that do not repeat before the vocabulary is used up: 7919 is a prime, so its multiples meet every id of any usual size."""
    places = torch.arange(1, length + 1, dtype=torch.long, device=device)
    return torch.remainder(places * 7919 + shift, vocab_size)


def differences(found_TH: Tensor, expected_TH: Tensor) -> Tensor:
    """How far each token's hidden state is from what is expected (T,), as a share of what tells it from the mean of all.

    One channel that is large for all tokens, as trained models have, must not hide what differs.
    """
    found_TH, expected_TH = found_TH.float(), expected_TH.float()
    distinct_T = (expected_TH - expected_TH.mean(dim=0)).norm(dim=1).clamp(min=1e-6)
    difference_T: Tensor = (found_TH - expected_TH).norm(dim=1) / distinct_T
    return difference_T


@torch.no_grad()
def check_causal(body: nn.Module, vocab_size: int, device: torch.device, who: str, raises: type[ModelError | ConfigError]) -> None:
    """Raises `raises` where a token's hidden state changes with a token after it: it would be told what it is to predict."""
    config: Any = body.config
    dtype = next(body.parameters()).dtype
    tolerance = _ROUNDING_BEFORE_CHANGE.get(dtype, ROUNDING[dtype])
    length = min(_LENGTH, find_max_positions(config) or _LENGTH)
    leaks = []
    for trial in range(1 if dtype in _ROUNDING_BEFORE_CHANGE else _TRIALS):
        token_ids_T = make_probe(vocab_size, length, device, shift=trial * 31)
        before_TH = _run(body, token_ids_T)
        leak = 0.0
        for start in sorted({min(place, length - 1) for place in _CHANGED_FROM} - {0}):
            changed_T = token_ids_T.clone()
            changed_T[start:] = (changed_T[start:] + 1 + vocab_size // 3) % vocab_size
            # NaN is a difference too.
            worst = differences(_run(body, changed_T)[:start], before_TH[:start]).nan_to_num(torch.inf).max().item()
            leak = max(leak, worst)
        leaks.append(leak)
    if min(leaks) > tolerance:
        said = [f"{key}: {value}" for key in _DIRECTIONS if (value := getattr(config, key, None)) is not None]
        raise raises(
            f"{who} ({type(body).__name__}) is no causal language model as its config.json has it{_listed(said)}: hidden states change "
            f"with tokens that come later, by {min(leaks):.2g} of themselves, so each token would be predicted in sight of itself. "
            "Use a causal model; if this one was trained as one, mend its config.json"
        )


# Keys of configs that say in which direction a token sees.
_DIRECTIONS = ("is_causal", "use_bidirectional_attention", "is_decoder", "causal", "attn_type")


def says_it_is_not_causal(config: Any) -> str | None:
    """What in a config asks for attention in both directions, which fresh weights may not show yet; None where nothing does."""
    text_config = config.get_text_config(decoder=True)
    if getattr(text_config, "is_causal", True) is False:
        return "is_causal: false"
    # "vision" is about the tokens of images.
    if getattr(text_config, "use_bidirectional_attention", None) in (True, "all"):
        return f"use_bidirectional_attention: {text_config.use_bidirectional_attention}"
    return None


@torch.no_grad()
def check_implementations(model: Any, body: Any, vocab_size: int, device: torch.device, who: str) -> None:
    """Raises `ModelError` where transformers' own two ways of this model's attention give different results: one of them is wrong."""
    own = model.config._attn_implementation
    # Falcon's eager attention (transformers 5.23) adds ALiBi twice, which low precision may hide.
    if model.config.model_type == "falcon" and model.config.alibi:
        raise ModelError(
            f"{who} ({type(model).__name__}) cannot be scored: it has alibi: true, which transformers adds once in one of its attentions and "
            "twice in the other, so that its scores would depend on which one runs. Use another model"
        )
    if own == "eager":
        return
    token_ids_T = make_probe(vocab_size, min(_LENGTH, find_max_positions(model.config) or _LENGTH), device)
    expected_TH = _run(body, token_ids_T)
    # Not by `set_attn_implementation`, which leaves models alone whose layers look at the config themselves (Falcon).
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        found_TH = _run(body, token_ids_T)
    except Exception as error:
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        _log.info("%s has no eager attention to compare its own with: %s", who, first_line(error))
        return
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
    difference = differences(found_TH, expected_TH).nan_to_num(torch.inf).median().item()
    # They round otherwise in each layer, so that of low precision only the whole can be told.
    if difference > ROUNDING[expected_TH.dtype]:
        raise ModelError(
            f"{who} ({type(model).__name__}) cannot be scored: its attention in transformers gives other hidden states as {own!r} than "
            f"as 'eager' (by {difference:.2g} of themselves), and nothing says which is right. Use another model"
        )


def _run(body: nn.Module, token_ids_T: Tensor) -> Tensor:
    """Hidden states (T, H)."""
    hidden_TH: Tensor = body(input_ids=token_ids_T[None], use_cache=False).last_hidden_state[0]
    return hidden_TH


def _listed(said: list[str]) -> str:
    return f" ({', '.join(said)})" if said else ""

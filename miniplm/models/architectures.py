"""Model architectures, of a preset or of a config.json, and models of them with fresh weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniplm.errors import ConfigError, ModelError, reading_users_file
from miniplm.models.configuration import make_config
from miniplm.models.files import read_json_object
from miniplm.models.identity import stable_config
from miniplm.models.locations import locate_config
from miniplm.models.presets import PRESETS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

# The head's product then uses whole tiles of tensor cores; it costs at most 63 rows that no token has.
_VOCAB_MULTIPLE = 64
# Each process of a training holds a whole model, 16 bytes a parameter with gradients and moments: far above what any machine has.
_MOST_PARAMETERS = 100_000_000_000
# The published sequence length in tokens; a preset takes at least these positions.
_MIN_POSITIONS = 1025
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")


def resolve_vocab_size(given: int | None, tokenizer_vocab_size: int) -> int:
    """Rows of the embedding: as given, or the tokenizer's size rounded up to a multiple of 64.

    Raises `ConfigError` where the given size has no room for the tokenizer's ids.
    """
    if given is None:
        return -(-tokenizer_vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    if given < tokenizer_vocab_size:
        raise ConfigError(f"vocab_size is {given}, but the tokenizer has {tokenizer_vocab_size} ids; give at least that, or null")
    return given


def describe_architecture(architecture: str) -> dict[str, Any]:
    """What an architecture is, as the content of a config.json: of the preset, or of the folder's or hub's file.

    Two names for the same architecture give the same content. Raises `ConfigError` where the name is neither.
    """
    if architecture in PRESETS:
        return PRESETS[architecture].describe()
    return stable_config(_read_content(architecture, locate_config(architecture)))


def check_architecture(architecture: str, vocab_size: int, max_positions: int, trust_remote_code: bool = False) -> None:
    """Raises `ConfigError` where `build_model` would, or the model could not compute, without memory for its weights."""
    from miniplm.models.skeleton import check_forward

    model = build_empty_model(architecture, vocab_size, max_positions, trust_remote_code)
    if (num_parameters := count_parameters(model)) > _MOST_PARAMETERS:
        raise ConfigError(
            f"architecture {architecture!r} makes a model of {num_parameters:,} parameters; at most {_MOST_PARAMETERS:,} can be trained. "
            "Mend the sizes in its config.json"
        )
    if architecture not in PRESETS:
        check_forward(model, locate_config(architecture), ConfigError)


def build_model(
    architecture: str, vocab_size: int, max_positions: int, seed: int, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A float32 model with fresh weights, a function of the arguments only, in training mode.

    All dropout is off. `max_positions` is the longest input in tokens; the model may take more. The global random
    state is neither used nor changed. Raises `ConfigError` where the architecture is unknown, is no causal
    language model (each token sees only those before it), or has no head that can be run apart.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from miniplm.models.lengths import forget_seen_lengths
    from miniplm.models.loading import keep_stored_weights, split_head
    from miniplm.models.probing import check_causal, says_it_is_not_causal

    config = _make_config(architecture, vocab_size, max_positions, trust_remote_code)
    if (direction := says_it_is_not_causal(config)) is not None:
        raise ConfigError(
            f"architecture {architecture!r}: its config.json asks for attention to later tokens ({direction}), and a student learns to "
            "predict them; use a causal architecture"
        )
    # The CPU's generator alone, which makes the weights: to save those of all GPUs would make a context on each of them, and
    # `torch.manual_seed` would seed them for the whole process.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        with reading_users_file(
            f"architecture {architecture!r}", "cannot be built as a causal language model", "mend its config.json", ConfigError
        ):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    # The fresh weights are divided already; a config that still asked for it would have them divided again when they are loaded.
    keep_stored_weights(model.config)
    try:
        body, head = split_head(model)
    except ModelError as error:
        raise ConfigError(f"architecture {architecture!r}: {error}") from error
    if head.weight_VH.shape[0] != vocab_size:
        raise ConfigError(
            f"architecture {architecture!r} keeps {head.weight_VH.shape[0]} rows in its embedding where {vocab_size} are wanted; "
            "use a plain causal language model"
        )
    # On the meta device there is no value to compare; `check_architecture` is followed by a build with values.
    if head.weight_VH.device.type != "meta":
        check_causal(body.eval(), vocab_size, head.weight_VH.device, f"architecture {architecture!r}", ConfigError)
    forget_seen_lengths(model)
    built: PreTrainedModel = model.train()
    return built


def build_empty_model(
    architecture: str, vocab_size: int, max_positions: int = _MIN_POSITIONS, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model without memory for its weights (on the meta device), to count parameters with."""
    import torch

    with torch.device("meta"):
        return build_model(architecture, vocab_size, max_positions, 0, trust_remote_code)


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model; tied weights count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _read_content(architecture: str, path: Path) -> dict[str, Any]:
    try:
        content = read_json_object(path)
    except ModelError as error:
        raise ConfigError(f"architecture {architecture!r}: {error}") from error
    if not isinstance(content.get("model_type"), str):
        raise ConfigError(
            f"architecture {architecture!r}: {path} names no model_type; is it the config.json of a transformers model?"
        )
    return content


def _make_config(architecture: str, vocab_size: int, max_positions: int, trust_remote_code: bool) -> PretrainedConfig:
    from transformers import AutoConfig

    if architecture in PRESETS:
        content = PRESETS[architecture].describe()
        config = AutoConfig.for_model(content.pop("model_type"), **content)
        if hasattr(config, "max_position_embeddings"):  # a state space model has no such limit
            config.max_position_embeddings = max(content.get("max_position_embeddings", _MIN_POSITIONS), max_positions)
    else:
        path = locate_config(architecture)
        config = make_config(_read_content(architecture, path), path, ConfigError, trust_remote_code)
        for key in _POSITION_KEYS:
            own = getattr(config, key, None)
            if isinstance(own, int) and own < max_positions:
                setattr(config, key, max_positions)
    config.vocab_size = vocab_size
    # Ids of another tokenizer mean nothing here; a padding id would also keep that token's embedding from learning.
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    # Dropout draws from a device's generator, whose state no checkpoint has: a resumed training would draw otherwise.
    for key, value in config.to_dict().items():
        if ("dropout" in key or "pdrop" in key or "layerdrop" in key) and isinstance(value, (int, float)) and value:
            setattr(config, key, 0.0)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config

"""A model's config.json as transformers takes it, refused with file and field where the model cannot be used here."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniplm.errors import ConfigError, ModelError, list_offenders, reading_users_file
from miniplm.models.files import read_model_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_log = logging.getLogger("miniplm")

_LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIZE_FIELDS = (
    *_LAYER_FIELDS,
    *("vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "head_dim"),
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"),
)
# Far above any model, and far below what would be built for hours before it is refused.
_MOST_LAYERS = 10_000
_MOST_OF_A_SIZE = 2**31 - 1
# Encoders that transformers opens as causal language models and does not list among the masked ones.
_OTHER_ENCODERS = ("bert-generation", "xlnet")
# Attention that every installation of PyTorch has. What else a config.json may name is a package, or code of a hub.
_KEPT_ATTENTION = "eager"


def read_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of the model in a folder, a new object that may be changed.

    Raises `ModelError` where config.json is missing, damaged, of a quantised model, of no causal language model, or does not fit itself.
    """
    content = read_model_config(folder)
    check_not_quantised(content, folder)
    return make_config(content, folder / "config.json", ModelError, trust_remote_code)


def make_config(
    content: dict[str, Any], path: Path, raises: type[ModelError] | type[ConfigError], trust_remote_code: bool = False
) -> PretrainedConfig:
    """As `read_config`, of a file whose content was read, with another class of error for what the file has wrong."""
    from transformers import AutoConfig

    _check_sizes(content, path, raises)
    if trust_remote_code:
        _check_own_code(content, path, raises)
    _check_no_other_file(content, path, raises)
    with reading_users_file(
        path, "cannot be loaded as a causal language model", "mend the fields named, or take another copy of the model", raises
    ):
        config = AutoConfig.from_pretrained(str(path.parent), trust_remote_code=trust_remote_code)
    _check_family(config, path, raises)
    _drop_foreign_attention(config, path)
    # How a forward pass gives its results is for who calls it, and no part of the model.
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    return config


def check_not_quantised(content: dict[str, Any], folder: Path) -> None:
    """Raises `ModelError` for a model whose weights are quantised, by the method's name."""
    # One level down too: models that see keep the settings of their text part in `text_config`.
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        for field in ("quantization_config", "compression_config", "quantization"):
            if settings := part.get(field):
                raise ModelError(
                    f"model folder {folder} is quantised ({field} of config.json: {_name_method(settings)}), and its scores would be those of "
                    "an approximation by kernels that differ between machines. Give the checkpoint that it was made from, or dequantise it once: "
                    "`from_pretrained`, `.dequantize()`, `save_pretrained`. Where the weights here are plain ones, take that field away"
                )


def _name_method(settings: Any) -> str:
    if not isinstance(settings, dict):
        return repr(settings)
    method = settings.get("quant_method")
    if method is None and any(key.startswith(("load_in_", "bnb_", "_load_in_")) for key in settings):
        method = "bitsandbytes"
    bits = settings.get("bits") or settings.get("w_bit")
    return f"{method or 'of an unnamed method'}{f', {bits} bits' if isinstance(bits, int) else ''}"


def _check_sizes(content: dict[str, Any], path: Path, raises: type[ModelError] | type[ConfigError], place: str = "") -> None:
    """Sizes are whole numbers of 1 and more; transformers lets some through that make a model without layers or one that never ends."""
    for field in _SIZE_FIELDS:
        value = content.get(field)
        if value is None or isinstance(value, (list, dict)):  # None is the family's own; some have a list, one size a layer
            continue
        most = _MOST_LAYERS if field in _LAYER_FIELDS else _MOST_OF_A_SIZE
        if type(value) is not int or not 1 <= value <= most:
            raise raises(f"{path}: {place}{field} is {value!r}, which is no whole number from 1 to {most:,}. Mend it")
    text = content.get("text_config")
    if isinstance(text, dict) and not place:
        _check_sizes(text, path, raises, "text_config.")


def _check_no_other_file(content: dict[str, Any], path: Path, raises: type[ModelError] | type[ConfigError]) -> None:
    """transformers may take another file for config.json, by its own version; what is read here, and names the model, is config.json."""
    from transformers.configuration_utils import get_configuration_file

    if "configuration_files" not in content:
        return
    with reading_users_file(path, "has configuration_files that are no list of file names", "take that field away", raises):
        taken = get_configuration_file(content["configuration_files"])
    if taken != path.name:
        raise raises(
            f"{path}: its configuration_files has the installed transformers take {taken} instead, and another version another one. "
            f"Give the file that is meant the name {path.name}, and take that field away"
        )


def _check_own_code(content: dict[str, Any], path: Path, raises: type[ModelError] | type[ConfigError]) -> None:
    """Code that lies elsewhere than the model is no part of its name, and may be other code the next time."""
    classes = content.get("auto_map")
    named = classes.values() if isinstance(classes, dict) else ()
    foreign = sorted({str(name) for name in named if "--" in str(name)})
    if foreign:
        raise raises(
            f"{path}: its auto_map takes code from elsewhere ({list_offenders(foreign)}), which may change while the model stays the same. "
            "Copy the Python files of that repository beside it, and take everything up to `--` out of auto_map"
        )


def _check_family(config: PretrainedConfig, path: Path, raises: type[ModelError] | type[ConfigError]) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    family = config.model_type
    kind = None
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder and a decoder, which reads its text twice"
    elif (family in MODEL_FOR_MASKED_LM_MAPPING_NAMES or family in _OTHER_ENCODERS) and not getattr(config, "is_decoder", False):
        kind = "an encoder, in which each token sees those after it"
    if kind is not None:
        raise raises(
            f"{path}: a model of type {family} is {kind}; it cannot be loaded as a causal language model. Use a decoder, such as llama or qwen3"
        )


def _drop_foreign_attention(config: PretrainedConfig, path: Path) -> None:
    """Leaves the kind of attention to transformers where the file names one that not every machine has; says so once."""
    parts = [config, *(part for key in config.sub_configs if (part := getattr(config, key, None)) is not None)]
    asked = {str(name) for part in parts if (name := part._attn_implementation) is not None} - {_KEPT_ATTENTION, "sdpa"}
    config._attn_implementation = _KEPT_ATTENTION if config._attn_implementation == _KEPT_ATTENTION else None
    if asked:
        _say_attention(path, ", ".join(sorted(asked)))


@cache
def _say_attention(path: Path, asked: str) -> None:
    _log.warning(
        f"{path} asks for the attention {asked}, which not every machine has; PyTorch's own (sdpa, or eager where the family lacks it) is used instead"
    )

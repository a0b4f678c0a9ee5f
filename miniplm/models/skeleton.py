"""A model without its values: what config.json makes of it, and which stored tensors become its parameters.

All of it is on torch's meta device, so that even a large model takes no memory and less than some seconds; what does not fit is
found before a corpus is prepared or scored.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, UnsupportedFakeTensorException

from miniplm.errors import ConfigError, ModelError, list_offenders, reading_users_file
from miniplm.models.configuration import check_not_quantised, make_config
from miniplm.models.files import StoredTensor, read_model_config, read_values, read_weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# What a parameter may be stored as: each becomes the dtype of the computation by a plain conversion.
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_FURTHER_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers")
_ENDING = "copy the model again, or mend its config.json"


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device, its dtype of no meaning; `weights` are the stored tensors that become its parameters.

    `content` is that of its config.json, `files` are those with its weights, `num_parameters` counts what the loaded model has: tied weights
    once, neither buffers nor what is stored beside.
    """

    content: dict[str, Any]
    files: tuple[Path, ...]
    model: PreTrainedModel
    weights: tuple[StoredTensor, ...]
    num_parameters: int

    @property
    def num_ids(self) -> int:
        """Ids that the model can read and predict: rows of its embedding and of its head, the fewer of the two."""
        layers = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return min(int(layer.weight.shape[0]) for layer in layers if getattr(layer, "weight", None) is not None)


class _StoredSlice:
    """In place of a stored tensor while transformers loads: gives its shape alone, and remembers whether it was wanted."""

    def __init__(self, tensor: StoredTensor) -> None:
        self.tensor = tensor
        self.was_read = False

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        return self.tensor.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Without values and on no device; its shape is what is wanted, (...) as stored, and its dtype of no meaning."""
        self.was_read = True
        return torch.empty(self.tensor.shape, dtype=torch.bfloat16, device="meta")[index]


def read_skeleton(folder: Path, trust_remote_code: bool = False) -> Skeleton:
    """The model of a folder without its values.

    Raises `ModelError` where a file is missing or damaged, config.json cannot be used or does not fit the weights, or weights are
    stored as something else than floating point numbers.
    """
    content = read_model_config(folder)
    check_not_quantised(content, folder)
    config = make_config(content, folder / "config.json", ModelError, trust_remote_code)
    files = read_weight_files(folder, content)
    # Where a name is in two files, the last one counts, as in transformers.
    slices = {tensor.name: _StoredSlice(tensor) for tensors in files.values() for tensor in tensors}
    with reading_users_file(folder, "cannot be loaded as a causal language model", _ENDING, ModelError), _quiet_report():
        empty = build_on_meta(config, trust_remote_code)
        model, info = type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict=slices,
            dtype=torch.float32,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,  # they are told below, in our words
            output_loading_info=True,
        )
    unread = sorted(name for name, piece in slices.items() if not piece.was_read)
    check_all_loaded(folder, info, unread)
    _check_none_left(folder, model, info)
    buffers = {name for name, _ in model.named_buffers()}
    # A table of integers that belongs to the model (DeepSeek V4's experts by token) may be stored below another module's name.
    tables = {(name.rpartition(".")[2], buffer.shape) for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    read = [
        piece.tensor
        for piece in slices.values()
        if piece.was_read
        and not _find_name(piece.tensor.name, buffers)
        and (piece.tensor.name.rpartition(".")[2], piece.tensor.shape) not in tables
    ]
    _check_types(folder, read)
    _check_no_scales(folder, read, unread)
    return Skeleton(content, tuple(files), model, tuple(read), _count_parameters(model, {tensor.name: tensor for tensor in read}))


def build_on_meta(config: PretrainedConfig, trust_remote_code: bool = False) -> Any:
    """The model of a configuration on the meta device, in float32: for any other dtype transformers changes that of all threads."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)


def check_all_loaded(folder: Path, info: dict[str, Any], unread: list[str] | None = None) -> None:
    """Raises `ModelError` where a loading left parameters without a stored value, or found one of another shape."""
    for key, meaning in (
        ("mismatched_keys", "has weights of another shape than its config.json says"),
        ("missing_keys", "lacks weights"),
    ):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in info.get(key) or ())
        if names:
            others = f" (it has weights without a place in the model: {list_offenders(unread)})" if unread else ""
            raise ModelError(
                f"model folder {folder} {meaning}: {list_offenders(names)}{others}; they would be random. Copy the model again"
            )


def _check_none_left(folder: Path, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raises `ModelError` where stored tensors are named as parameters but for a number: layers that config.json does not count.

    Layers that predict further tokens (GLM 4.5 and others) follow the counted ones, and no scores are made of them: transformers
    leaves them out by name, or the config says how many there are.
    """
    config = model.config.get_text_config(decoder=True)
    num_further = sum(number for field in _FURTHER_LAYERS if isinstance(number := getattr(config, field, None), int))
    further = {str(getattr(config, "num_hidden_layers", 0) + index) for index in range(num_further)}
    known = {_NUMBER.sub("N", name) for name, _ in model.named_parameters()}
    left = []
    for name in sorted(info.get("unexpected_keys") or ()):
        kind, numbers = _NUMBER.sub("N", name), _NUMBER.findall(name)
        is_named_so = kind in known or f"{model.base_model_prefix}.{kind}" in known
        if numbers and numbers[0] not in further and is_named_so:
            left.append(name)
    if left:
        raise ModelError(
            f"model folder {folder} has weights of layers that its config.json does not count, and would be scored without them: "
            f"{list_offenders(left)}. Mend the number of layers in config.json, or copy the model again"
        )


def check_forward(model: PreTrainedModel, path: Path, raises: type[ModelError] | type[ConfigError]) -> None:
    """Raises unless the shapes inside a model on the meta device fit each other, as they do not where heads do not divide.

    A family whose shapes depend on values cannot be tried without them, and passes. The model is left in bfloat16, for the
    kernels of experts take nothing else.
    """
    token_ids_BT = torch.zeros((1, 4), dtype=torch.long, device="meta")
    with (
        reading_users_file(path, "makes a model that cannot compute", "mend the sizes in it", raises),
        torch.no_grad(),
        _quiet("torch._subclasses.fake_tensor"),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        try:
            model.eval().to(torch.bfloat16)(input_ids=token_ids_BT, use_cache=False)
        except (DataDependentOutputException, UnsupportedFakeTensorException, NotImplementedError):
            return


def _check_types(folder: Path, weights: list[StoredTensor]) -> None:
    wrong = [f"{tensor.name} ({tensor.dtype})" for tensor in weights if tensor.dtype not in _FLOATS]
    if wrong:
        raise ModelError(
            f"model folder {folder} stores weights as something else than floating point numbers: {list_offenders(wrong)}. They are quantised, or no "
            "weights; give the checkpoint that they were made from, with values of float32, bfloat16, float16 or float8"
        )


def _check_no_scales(folder: Path, weights: list[StoredTensor], unread: list[str]) -> None:
    """A tensor beside a weight that says how to scale it (`weight_scale_inv`, `weight.absmax`, `input_scale`) means that its values are not whole."""
    modules: dict[str, list[str]] = {}
    for tensor in weights:
        module, _, last = tensor.name.rpartition(".")
        modules.setdefault(module, []).append(last)
    scales = []
    for name in unread:
        places = [(name[:at], name[at + 1 :]) for at, letter in enumerate(name) if letter == "."]
        if any(
            "scale" in rest or rest == "SCB" or rest.startswith((f"{last}_", f"{last}."))
            for module, rest in places
            for last in modules.get(module, ())
        ):
            scales.append(name)
    if scales:
        raise ModelError(
            f"model folder {folder} stores beside its weights what is to be done to them: {list_offenders(scales)}. It is quantised, though its "
            "config.json does not say so, and without these the weights are wrong; give the checkpoint that it was made from"
        )


def _count_parameters(model: PreTrainedModel, weights: dict[str, StoredTensor]) -> int:
    parameters = dict(model.named_parameters())
    total: int = sum(parameter.numel() for parameter in parameters.values())
    # Where both of a tied pair are stored, transformers ties them if their values are equal, which the meta device cannot tell.
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target not in parameters or source not in parameters:
            continue  # one and the same
        pair = [weights[name] for name in (_find_name(target, weights), _find_name(source, weights)) if name is not None]
        if len(pair) < 2 or torch.equal(*(read_values(tensor).to(torch.float32) for tensor in pair)):
            total -= parameters[target].numel()
    return total


def _find_name(name: str, names: Any) -> str | None:
    """The same tensor's name among others, where one of the two may have a prefix more, such as `model.` or `transformer.`."""
    return next((other for other in names if other == name or other.endswith(f".{name}") or name.endswith(f".{other}")), None)


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    was_disabled = logger.disabled
    logger.disabled = True  # its level stays: transformers does other things at other levels
    try:
        yield
    finally:
        if not was_disabled:  # else another thread's block may have been the first, and it ends that
            logger.disabled = False


@contextmanager
def _quiet_report() -> Iterator[None]:
    """Without the loading's own table and bar: both come with the real one."""
    from transformers.utils import logging as transformers_logging

    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with _quiet("transformers.modeling_utils"):
            yield
    finally:
        if had_bars:
            transformers_logging.enable_progress_bar()

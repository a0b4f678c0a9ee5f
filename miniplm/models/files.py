"""A model as files: read, and refused with a reason where it cannot be used.

Weights are read from safetensors only: a pickle can run any code when it is opened.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from miniplm.errors import ModelError, list_offenders, reading_users_file

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Files of a distributed checkpoint of PyTorch: transformers reads these before all others.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_COPY_AGAIN = "copy the model again"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file as its header tells: `dtype` in the words of safetensors, such as BF16."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]


def read_model_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises `ModelError` where it is missing or no JSON, and for the folder of an adapter, which is no model of its own.
    """
    with reading_users_file(folder, "cannot be read", "check its permissions", ModelError):
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"model folder {folder} has an adapter_config.json: an adapter (PEFT, LoRA) is put on its base model or not, as the machine has "
                "peft installed or not. Merge the two once (`merge_and_unload`, `save_pretrained`) and give the merged model's folder; "
                "where the weights here are whole without the adapter, take that file away"
            )
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model folder {folder} has no config.json{_explain_link(folder / 'config.json') or _explain_cache(folder)}"
            )
    return read_json_object(folder / "config.json")


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file of a model that holds an object. Raises `ModelError` where it cannot be read, is no JSON, or has a NaN in it."""

    def refuse(constant: str) -> float:
        if constant == "NaN":
            raise ValueError("it holds NaN, which JSON does not have, and no setting of a model can be")
        return float(constant)

    with reading_users_file(path, "is not valid JSON", f"mend it, or {_COPY_AGAIN}", ModelError):
        content = json.loads(path.read_bytes().decode("utf-8"), parse_constant=refuse)
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object; {_COPY_AGAIN}")
    return content


def list_weight_files(folder: Path) -> list[Path]:
    """The files of `read_weight_files`, sorted by name."""
    return list(read_weight_files(folder, read_model_config(folder)))


def read_weight_files(folder: Path, config: dict[str, Any]) -> dict[Path, list[StoredTensor]]:
    """The safetensors files that transformers loads for this folder and no others, sorted by name, each seen to be whole, with its tensors.

    As it chooses (5.23): what `transformers_weights` of config.json, whose content `config` is, names, else model.safetensors, else what the
    index names. Raises `ModelError` where there are none, one that the index names is missing, or one is truncated.
    """
    with reading_users_file(folder, "cannot be read", "check its permissions", ModelError):
        distributed = sorted(path.name for path in folder.iterdir() if _DISTRIBUTED.match(path.name))
    if distributed:
        raise ModelError(
            f"model folder {folder} holds a distributed checkpoint ({list_offenders(distributed)}), which cannot be used here; "
            "load it once with transformers and `save_pretrained` it to another folder"
        )
    chosen = config.get("transformers_weights") or (_SINGLE if (folder / _SINGLE).is_file() else _INDEX)
    path = folder / str(chosen)
    if not path.is_file():
        raise ModelError(_explain_no_weights(folder, str(chosen)))
    files = _read_index(folder, path) if path.name.endswith(".index.json") else [path]
    return {file: read_stored_tensors(file) for file in files}


def _read_index(folder: Path, index: Path) -> list[Path]:
    content = read_json_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{index} is damaged (it has no weight_map from tensors to files); {_COPY_AGAIN}")
    if not isinstance(content.get("metadata"), dict):
        raise ModelError(f'{index} has no metadata, without which transformers does not read it; add `"metadata": {{}}`')
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"model folder {folder} lacks weight files that its index names: {list_offenders(missing)}; {_COPY_AGAIN}")
    return [folder / name for name in names]


def _explain_link(path: Path) -> str:
    return f" (it is a link to {os.readlink(path)}, which does not exist; copy the model again)" if path.is_symlink() else ""


def _explain_cache(folder: Path) -> str:
    """What to give instead of a folder in which the hub's files are kept."""
    snapshots = sorted(path.parent for path in (*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")))
    return f"; give the folder of a model, such as {snapshots[0]}" if snapshots else "; is it a transformers model?"


def _explain_no_weights(folder: Path, chosen: str) -> str:
    for name in (chosen, _SINGLE, _INDEX):
        if link := _explain_link(folder / name):
            return f"model folder {folder} has no {name}{link}"
    if chosen not in (_SINGLE, _INDEX):
        return f"model folder {folder} lacks {chosen}, which transformers_weights of its config.json names; {_COPY_AGAIN}, or take that field away"
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
    if others:
        return (
            f"model folder {folder} has neither {_SINGLE} nor {_INDEX}, and transformers loads nothing else; it has {list_offenders(others)}. "
            f"Rename the one that holds the whole model to {_SINGLE}, or give the folder of another copy"
        )
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"model folder {folder} has its weights as pickle only ({list_offenders(pickles)}), and opening a pickle can run any code. "
            'Convert it once, where you trust it: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}-safetensors')\" "
            "and give the new folder (copy the tokenizer files too)"
        )
    return f"model folder {folder} has no *.safetensors weights"


def list_code_files(folder: Path) -> list[Path]:
    """The Python files of a model with code of its own, sorted by their place below the folder."""
    return sorted(folder.rglob("*.py"))


def has_tokenizer(folder: Path) -> bool:
    """Whether a model comes with a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def read_stored_tensors(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file. Raises `ModelError` unless it can be read, is exactly as long as its header says, and that makes sense."""
    with reading_users_file(path, "is truncated or no safetensors file", _COPY_AGAIN, ModelError):
        num_bytes = path.stat().st_size
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(head := file.read(8), "little")
            if len(head) < 8 or header_bytes > num_bytes - 8:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(header_bytes))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        wanted = 8 + header_bytes + max(ends, default=0)
        if wanted != num_bytes:
            raise ModelError(
                f"{path} has {num_bytes:,} bytes where its header says {wanted:,}: it is truncated or damaged; {_COPY_AGAIN}"
            )
        with safe_open(
            path, framework="pt"
        ) as stored:  # the library checks types, shapes and places of all tensors when it opens a file
            pieces = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
            return [StoredTensor(name, path, piece.get_dtype(), tuple(piece.get_shape())) for name, piece in pieces.items()]


def read_values(tensor: StoredTensor) -> Any:
    """A stored tensor's values as a torch tensor of its stored shape and dtype. Raises `ModelError` where they cannot be read."""
    with (
        reading_users_file(tensor.path, f"has a tensor {tensor.name} that cannot be read", _COPY_AGAIN, ModelError),
        safe_open(tensor.path, framework="pt") as stored,
    ):
        return stored.get_tensor(tensor.name)


def check_finite_weights(folder: Path, tensors: Iterable[StoredTensor]) -> None:
    """Raises `ModelError` where a weight is NaN or infinite. Reads every given weight once, one tensor in memory at a time."""
    import torch

    broken = []
    for tensor in tensors:
        values = read_values(tensor)
        if values.dtype.itemsize == 1:
            values = values.to(torch.float32)  # torch cannot tell of a float8 whether it is finite
        if count := int((~torch.isfinite(values)).sum()):
            broken.append(f"{tensor.name} ({count} values)")
    if broken:
        raise ModelError(
            f"model folder {folder} has weights that are NaN or infinite: {list_offenders(broken)}. Use another copy or checkpoint"
        )

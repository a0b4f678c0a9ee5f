"""A model as files: found in a folder or on the hub, and refused with a reason where it cannot be used.

Weights are read from safetensors only: a pickle can run any code when it is opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miniplm.errors import ModelError, list_offenders

_WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def locate_model(name: str, revision: str | None = None) -> Path:
    """The local folder of a model: `name` itself where it is a folder, else the hub's files, downloaded once.

    Raises `ModelError` where there is no such folder and the hub does not give it either.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"model {name!r} is a file; give the folder that holds its config.json and safetensors weights")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"there is no model folder {name!r} (looked from {Path.cwd()}); give a folder or a hub id such as owner/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except Exception as error:  # the hub client raises a family of errors; each means that the model cannot be had
        raise ModelError(
            f"model {name!r} is neither a folder (looked from {Path.cwd()}) nor could it be had from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"
        ) from error


def read_model_config(folder: Path) -> dict[str, Any]:
    """The content of config.json. Raises `ModelError` where it is missing or not JSON."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"model folder {folder} has no config.json; is it a transformers model?")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); copy the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object; copy the model again")
    return content


def list_weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, sorted by name, each checked to be whole.

    Raises `ModelError` where there are none, one that the index names is missing, or one is truncated.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} is damaged ({error}); copy the model again") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"model folder {folder} lacks weight files that its index names: {list_offenders(missing)}; copy the model again"
            )
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"model folder {folder} has its weights as pickle only ({list_offenders(pickles)}), and opening a pickle can run any code. "
                'Convert it once, where you trust it: python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}-safetensors')\" "
                "and give the new folder (copy the tokenizer files too)"
            )
        raise ModelError(f"model folder {folder} has no *.safetensors weights")
    for path in files:
        check_safetensors(path)
    return files


def has_tokenizer(folder: Path) -> bool:
    """Whether a model comes with a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def check_safetensors(path: Path) -> None:
    """Raises `ModelError` unless the file is exactly as long as its header says."""
    num_bytes = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        header_bytes = int.from_bytes(head, "little")
        try:
            if len(head) < 8 or header_bytes > num_bytes - 8:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(header_bytes))
            wanted = (
                8
                + header_bytes
                + max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} is truncated or no safetensors file ({error}); copy the model again") from error
    if wanted != num_bytes:
        raise ModelError(
            f"{path} has {num_bytes:,} bytes where its header says {wanted:,}: it is truncated or damaged; copy the model again"
        )


def check_finite_weights(files: list[Path]) -> None:
    """Raises `ModelError` where a weight is NaN or infinite. Reads every weight once, one tensor in memory at a time."""
    import torch
    from safetensors import safe_open

    broken = []
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and (count := int((~torch.isfinite(tensor)).sum())):
                    broken.append(f"{name} ({count} values)")
    if broken:
        raise ModelError(
            f"model folder {files[0].parent} has weights that are NaN or infinite: {list_offenders(broken)}. Use another copy or checkpoint"
        )


def count_stored_parameters(files: list[Path]) -> int:
    """Parameters in the weight files; tied weights count once."""
    from safetensors import safe_open

    total = 0
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a dict
                size = 1
                for dimension in tensors.get_slice(key).get_shape():
                    size *= dimension
                total += size
    return total

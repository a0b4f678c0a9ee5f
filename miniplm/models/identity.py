"""The name of a model as it scores: made of its weights, its configuration and the precision it computes in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from miniplm.config.run import ScoringDtype
from miniplm.errors import ModelError, reading_users_file
from miniplm.models.files import list_code_files, read_model_config, read_weight_files
from miniplm.records.manifests import ModelEntry
from miniplm.storage.file_facts import digest_kept_file
from miniplm.storage.root import Storage, digest_content, digest_file

if TYPE_CHECKING:
    from miniplm.models.skeleton import Skeleton

# Raised when a change of the code changes the scores of an unchanged model.
SCORING_VERSION = 1

# What of a config.json says nothing of the numbers that the model computes.
_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures")


def identify_model(
    folder: Path,
    source: str,
    dtype: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attention: Literal["sequence", "document"] = "sequence",
    storage: Storage | None = None,
    skeleton: Skeleton | None = None,
) -> ModelEntry:
    """The entry of a given model whose files are in `folder`; `source` is its hub id or path, `skeleton` what was read of it already.

    Its weights are digested, and with them its own code where that is what runs; digests that `storage` keeps are taken from there.
    Raises `ModelError` as `read_skeleton`.
    """
    from miniplm.models.skeleton import read_skeleton

    skeleton = skeleton or read_skeleton(folder, trust_remote_code)
    weights_digest = _digest_files(folder, skeleton.files, skeleton.content, trust_remote_code, storage)
    return ModelEntry(
        model_id=name_model(skeleton.num_parameters, weights_digest, skeleton.content, dtype, attention),
        source=source,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        attention=attention,
        weights_digest=weights_digest,
        num_parameters=skeleton.num_parameters,
    )


def require_same_model(entry: ModelEntry, folder: Path, storage: Storage) -> None:
    """Raises `ModelError` where weights or config.json in `folder` are not those that a given model was named by: its scores would be another's."""
    config = read_model_config(folder)
    # It may be opened in another dtype than the one it was named for.
    names = {
        name_model(entry.num_parameters, entry.weights_digest, config, dtype, entry.attention) for dtype in get_args(ScoringDtype)
    }
    are_same = {
        "the weights": _digest_files(folder, read_weight_files(folder, config), config, entry.trust_remote_code, storage)
        == entry.weights_digest,
        "the settings of config.json": entry.model_id in names,
    }
    if others := [name for name, is_same in are_same.items() if not is_same]:
        raise ModelError(
            f"{' and '.join(others)} in {folder} are not those of {entry.model_id}, which it was when it was named; put them back, "
            "or run `miniplm run CONFIG`, which names it anew and scores by what it is now"
        )


def _digest_files(
    folder: Path, weights: Iterable[Path], config: dict[str, Any], trust_remote_code: bool, storage: Storage | None
) -> str:
    code = list_code_files(folder) if trust_remote_code and config.get("auto_map") else []
    return digest_weights([*weights, *code], storage)


def name_model(
    num_parameters: int,
    weights_digest: str,
    config: dict[str, Any],
    dtype: str,
    attention: Literal["sequence", "document"] = "sequence",
) -> str:
    """The id of a model, e.g. `llama-135m-float32-<12 hex>`: of all that changes its scores, not of its place.

    That is its weights, configuration, dtype, attention and `SCORING_VERSION`.
    """
    # What follows is part of the content only where it is not the usual, so that models named before it existed keep their ids.
    content = [weights_digest, stable_config(config), dtype, SCORING_VERSION] + ([] if attention == "sequence" else [attention])
    if config.get("rescale_prenorm_residual"):
        content.append("weights as stored")  # as they were not always taken, see `keep_stored_weights`
    if _was_misread(config):
        content.append("of its own length and window")
    return f"{slug(str(config.get('model_type', 'model')))}-{_size(num_parameters)}-{dtype}-{digest_content(content)}"


def _was_misread(config: dict[str, Any]) -> bool:
    """Whether a model of this config.json may have scores from when a window in its mask, or a dependence on length, was overlooked."""
    text = config.get("text_config")
    content = config | text if isinstance(text, dict) else config
    ropes = [rope for key in ("rope_parameters", "rope_scaling") if isinstance(rope := content.get(key), dict)]
    ropes += [rope for outer in ropes for rope in outer.values() if isinstance(rope, dict)]
    return (
        any(rope.get("rope_type", rope.get("type")) == "dynamic" for rope in ropes)
        or any(isinstance(content.get(key), int) for key in ("index_topk", "index_topk_blocks", "keep_window_size"))
        or (content.get("model_type") in ("qwen2_moe", "phimoe") and bool(content.get("sliding_window")))
    )


def _size(num_parameters: int) -> str:
    return f"{num_parameters / 1e9:.1f}b" if num_parameters >= 999.5e6 else f"{max(1, round(num_parameters / 1e6))}m"


def digest_weights(files: list[Path], storage: Storage | None = None) -> str:
    """One digest over the digests of all files, in the order given; those that `storage` keeps are not made again."""
    sha = hashlib.sha256()
    for path in files:
        # By content alone: a file of another name is the same weights.
        with reading_users_file(path, "cannot be read", "check its permissions, or copy the model again", ModelError):
            digest = digest_file(path) if storage is None else digest_kept_file(storage, path)
            sha.update(digest.encode())
    return f"sha256:{sha.hexdigest()}"


def stable_config(config: dict[str, Any]) -> dict[str, Any]:
    """A model configuration without what changes nothing in its numbers."""
    return {key: value for key, value in config.items() if key not in _VOLATILE}


def slug(name: str) -> str:
    """The last part of a hub id or path, in lower-case letters, digits, '.' and '-'."""
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9.]+", "-", last).strip("-.")[:40] or "model"

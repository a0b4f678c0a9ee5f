"""Where a model, a tokenizer or an architecture lies that a configuration names: a folder, a URL or an id of the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from miniplm.errors import ConfigError, MiniplmError, ModelError, TokenizerError, reading_users_file
from miniplm.models.presets import PRESETS
from miniplm.storage.fetched import fetch_folder, is_url

_OF_MODEL = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py")
_OF_TOKENIZER = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py")
_OF_ARCHITECTURE = ("config.json", "*.py")


def locate_model(name: str, revision: str | None = None) -> Path:
    """The local folder of a model: of that name, else a copy of what is at a URL, or the hub's files. Raises `ModelError` where there is none."""
    if revision is not None and is_url(name):
        raise ModelError(f"model {name!r} is a URL, and `revision` is of the hub; leave that out, or give a hub id")
    return _locate(name, "model", _OF_MODEL, ModelError, revision)


def locate_tokenizer(name: str) -> Path:
    """The local folder of a tokenizer, as `locate_model`; its hub id may lack an owner. Raises `TokenizerError`."""
    return _locate(name, "tokenizer", _OF_TOKENIZER, TokenizerError, needs_owner=False)


def locate_config(architecture: str) -> Path:
    """The config.json of a folder, URL or hub id. Raises `ConfigError` where there is none."""
    folder = _find_folder(architecture, "architecture", _OF_ARCHITECTURE, ConfigError)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise ConfigError(f"architecture {architecture!r} is a folder without a config.json")
        return folder / "config.json"
    if architecture.count("/") != 1 or architecture.startswith((".", "/", "~")):
        raise ConfigError(
            f"there is no architecture {architecture!r}; give one of the presets ({', '.join(PRESETS)}), "
            "or the folder, URL or hub id of a config.json"
        )
    from huggingface_hub import hf_hub_download

    problem = f"is no preset ({', '.join(PRESETS)}), no folder, and its config.json could not be fetched from the hub"
    next_step = "give one of the presets, or check the id and the connection"
    with reading_users_file(f"architecture {architecture!r}", problem, next_step, ConfigError):
        return Path(hf_hub_download(architecture, "config.json"))


def _locate(
    name: str, kind: str, wanted: Sequence[str], raises: type[MiniplmError], revision: str | None = None, needs_owner: bool = True
) -> Path:
    """`kind` is what messages call it; with `needs_owner` a hub id is owner/name."""
    folder = _find_folder(name, kind, wanted, raises)
    if folder is not None:
        return folder
    if Path(name).expanduser().exists():
        raise raises(f"{kind} {name!r} is a file; give the folder that holds it and the files beside it")
    parts = name.split("/")
    if len(parts) not in ((2,) if needs_owner else (1, 2)) or not all(parts) or "\\" in name or name.startswith((".", "~")):
        raise raises(
            f"there is no {kind} folder {name!r} (looked from {Path.cwd()}); give a folder, a URL such as s3://bucket/{kind}, or a hub id "
            "such as owner/name"
        )
    from huggingface_hub import snapshot_download

    problem = f"is neither a folder (looked from {Path.cwd()}) nor could it be fetched from the hub"
    next_step = f"give the folder or the URL of a {kind}, or check the id and the connection"
    with reading_users_file(f"{kind} {name!r}", problem, next_step, raises):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted)))


def _find_folder(name: str, kind: str, wanted: Sequence[str], raises: type[MiniplmError] | type[ConfigError]) -> Path | None:
    """The folder of that name, or of a URL a copy with the `wanted` files, made once where the hub's files are kept; None where the name is neither.

    Raises `raises` where nothing is at the URL, its protocol is one that nothing here speaks, or a wanted file may not be read:
    asked here once, as each library says it in another way and at another time. `StorageError` as `fetch_folder`.
    """
    if is_url(name):
        from huggingface_hub import constants

        with reading_users_file(f"{kind} {name!r}", "could not be fetched", "check the URL", raises):
            return fetch_folder(name, wanted, Path(constants.HF_HOME) / "miniplm")
    with reading_users_file(f"{kind} {name!r}", "cannot be looked for", "check the path and its permissions", raises):
        folder = place = Path(name).expanduser()
        if not folder.is_dir():
            return None
        try:
            for file in sorted(os.listdir(folder)):
                place = folder / file
                if any(fnmatch(file, pattern) for pattern in wanted) and place.is_file():
                    place.open("rb").close()
        except PermissionError as error:
            raise raises(
                f"{kind} {folder}: {place} may not be read by this process, which runs as user {os.geteuid()}; "
                f"let it, for instance by `chmod -R a+rX {folder}`"
            ) from error
        return folder

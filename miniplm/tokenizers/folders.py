"""A tokenizer as files, read as tokenizer.json says.

transformers builds the class that tokenizer_config.json or the model's type names, and where that class has splitting rules or tokens of its
own, it puts them in the place of those in tokenizer.json: other ids than the model was trained on. So the ids come from tokenizer.json
wherever there is one, and transformers only says which tokens have names (EOS, BOS) and what else goes with them. Where it disagrees on the
ids, that is said once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from miniplm.errors import TokenizerError, describe_reason, list_offenders, reading_users_file, refuse_pointer

_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_NAMES = ("eos_token", "bos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_COPY = "copy the tokenizer's files again"
_log = logging.getLogger("miniplm")


@dataclass(frozen=True)
class TokenizerSettings:
    """What goes with a vocabulary: `names` of tokens (`eos_token`: "</s>"), and `others` such as a chat template."""

    names: dict[str, str] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer as it was read: a Rust `backend`, or the transformers tokenizer `python` where it has none."""

    settings: TokenizerSettings
    backend: Any = None
    python: Any = None

    @property
    def tokenizer(self) -> Any:
        return self.python if self.backend is None else self.backend


def read_tokenizer(folder: Path, trust_remote_code: bool = False, with_settings: bool = True) -> TokenizerFolder:
    """The tokenizer of a folder. Raises `TokenizerError` where it holds none, or its files are damaged.

    `with_settings`: also what transformers, which takes seconds to import, says beside tokenizer.json.
    """
    for name in _SETTINGS_FILES:
        _check_object(folder / name)
    file = folder / "tokenizer.json"
    if not file.is_file():
        python = _read_by_transformers(folder, trust_remote_code)
        _check_has_vocabulary(folder, python)
        settings = TokenizerSettings(_list_names(python, folder), _list_others(python))
        is_rust = getattr(python, "is_fast", False) and getattr(python, "backend_tokenizer", None) is not None
        if not is_rust:
            return TokenizerFolder(settings, python=python)
        return TokenizerFolder(settings, backend=_make_plain(python.backend_tokenizer, folder))
    backend = read_backend(file)
    settings = _read_settings(folder, backend, trust_remote_code) if with_settings else TokenizerSettings()
    return TokenizerFolder(settings, backend=backend)


def read_backend(file: Path) -> Any:
    """The Rust tokenizer of a tokenizer.json. Raises `TokenizerError`."""
    from tokenizers import Tokenizer

    next_step = f"{_COPY}, or save them again with the installed tokenizers library"
    with reading_users_file(
        file.parent, f"holds no tokenizer that can be loaded: {file.name} cannot be read", next_step, TokenizerError
    ):
        refuse_pointer(file, TokenizerError)
        content = file.read_bytes()
        backend = Tokenizer.from_buffer(content)
        _check_ids(file, backend, orjson.loads(content).get("added_tokens") or [])
        return _make_plain(backend, file.parent)


def _check_ids(file: Path, backend: Any, added: list[dict[str, Any]]) -> None:
    """Raises `TokenizerError` where the library gives an added token another id than the file, as it does behind a gap, or two tokens have one id."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    if len(set(vocabulary.values())) < len(vocabulary):
        counts = Counter(vocabulary.values())
        shared = sorted(token for token, token_id in vocabulary.items() if counts[token_id] > 1)
        raise TokenizerError(f"{file} gives several tokens one id: {list_offenders(map(repr, shared))}; {_COPY}")
    moved = [
        f"{token['content']!r} ({token['id']}, not {found})"
        for token in added
        if (found := backend.token_to_id(token["content"])) != token["id"]
    ]
    if moved:
        raise TokenizerError(
            f"{file} gives added tokens other ids than the tokenizers library takes for them: {list_offenders(moved, most=5)}; it numbers them "
            "without gaps behind the vocabulary. Fill the gap with tokens that no text has, so that the ids are those that the model was trained on"
        )


def list_named_extras(folder: Path, vocabulary: dict[str, int]) -> list[tuple[int, str]]:
    """Tokens with their ids that a folder's settings add to the `vocabulary` of its tokenizer.json, in the order of their ids."""
    from transformers import PreTrainedTokenizerFast

    with reading_users_file(folder, "holds settings of a tokenizer that cannot be read", _COPY, TokenizerError):
        named = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True).get_vocab()
    return sorted((token_id, token) for token, token_id in named.items() if token not in vocabulary)


def describe_rules(backend: Any) -> dict[str, Any]:
    """The parts of tokenizer.json that decide the ids of a text, special tokens aside, each by its name there."""
    content = json.loads(backend.to_str())
    words = sorted((token for token in content["added_tokens"] if not token["special"]), key=lambda token: token["id"])
    parts = {name: content[name] for name in ("model", "normalizer", "pre_tokenizer")}
    # Left out are the vocabulary's many ways to say nothing ("", null, false), and what decides offsets, not ids.
    model = {key: value for key, value in parts["model"].items() if key == "vocab" or value not in (None, "", False)}
    return {**_without_offsets(parts), "model": model, "added_tokens": words}


def list_differing_rules(one: Any, other: Any) -> list[str]:
    """The parts of two tokenizers' rules (`describe_rules`) that are not the same, by name."""
    ours, theirs = describe_rules(one), describe_rules(other)
    return [part for part in ours if ours[part] != theirs[part]]


def _without_offsets(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _without_offsets(value) for key, value in part.items() if key not in ("trim_offsets", "vocab", "merges")}
    return [_without_offsets(one) for one in part] if isinstance(part, list) else part


# What was read of a folder, by the digest of its files: transformers builds the whole vocabulary to say which token is EOS.
_known: dict[tuple[str, bool], TokenizerSettings] = {}


def _read_settings(folder: Path, backend: Any, trust_remote_code: bool) -> TokenizerSettings:
    key = (digest_files(folder), trust_remote_code)
    if key not in _known:
        _known[key] = _ask_transformers(folder, backend, trust_remote_code)
    return _known[key]


def _ask_transformers(folder: Path, backend: Any, trust_remote_code: bool) -> TokenizerSettings:
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = _read_by_transformers(folder, trust_remote_code)
    except TokenizerError as error:
        # The class that the folder names may be unknown, need its own code, or not take this vocabulary: tokenizer.json needs none of it.
        with reading_users_file(folder, "holds no tokenizer that can be loaded", _COPY, TokenizerError):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        cause = error.__cause__ or error
        _log.warning(
            f"tokenizer {folder}: the ids are those of its tokenizer.json; AutoTokenizer cannot read it ({describe_reason(cause)})"
        )
    else:
        _tell_disagreement(folder, backend, tokenizer)
    _tell_other_names(folder, getattr(tokenizer, "eos_token", None))
    return TokenizerSettings(_list_names(tokenizer, folder), _list_others(tokenizer))


def _tell_disagreement(folder: Path, backend: Any, tokenizer: Any) -> None:
    name = type(tokenizer).__name__
    theirs = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
    if theirs is None:
        _log.warning(
            f"tokenizer {folder}: the ids are those of its tokenizer.json, not of the Python class {name} that AutoTokenizer takes"
        )
        return
    rules = list_differing_rules(backend, theirs)
    ours = backend.get_vocab(with_added_tokens=True)
    added = sorted(token for token in theirs.get_vocab(with_added_tokens=True) if token not in ours)
    said = [f"other rules than the file has ({', '.join(rules)})"] if rules else []
    said += [f"tokens that the file has not ({list_offenders(added, most=3)})"] if added else []
    if said:
        _log.warning(
            f"tokenizer {folder}: the ids are those of its tokenizer.json; AutoTokenizer, which makes a {name} of it, has {' and '.join(said)}"
        )


def _tell_other_names(folder: Path, taken: object) -> None:
    """Says which EOS token is taken where two files of a folder name different ones."""
    named = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token")
            named[name] = token.get("content") if isinstance(token, dict) else token
    tokens = {token for token in named.values() if isinstance(token, str)}
    if len(tokens) > 1:
        said = " and ".join(f"{token!r} in {name}" for name, token in named.items())
        _log.warning(
            f"tokenizer {folder} has two EOS tokens, {said}: as transformers does, {taken!r} is taken. "
            "Where the model was trained with the other one, name that as the separator (eos_token)"
        )


def _read_by_transformers(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    next_step = "it needs a tokenizer.json, as `save_pretrained` of a transformers tokenizer writes it"
    with reading_users_file(folder, "holds no tokenizer that can be loaded", next_step, TokenizerError):
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)


def _check_has_vocabulary(folder: Path, tokenizer: Any) -> None:
    """transformers makes a tokenizer without a vocabulary of a folder without its files, and no text has tokens then."""
    wanted = sorted(set(getattr(type(tokenizer), "vocab_files_names", {}).values()))
    if wanted and not any((folder / name).is_file() for name in wanted):
        raise TokenizerError(
            f"{folder} holds no tokenizer that can be loaded: it has none of the files of a {type(tokenizer).__name__} "
            f"({list_offenders(wanted)}); {_COPY}"
        )


def _list_names(tokenizer: Any, folder: Path) -> dict[str, str]:
    names = {}
    for name in _NAMES:
        token = getattr(tokenizer, name, None)
        if token is not None and not isinstance(token, str):
            raise TokenizerError(f"{folder / 'tokenizer_config.json'} gives {token!r} as {name}, which is no text; {_COPY}")
        if token:
            names[name] = token
    return names


def _list_others(tokenizer: Any) -> dict[str, Any]:
    others = {
        name: getattr(tokenizer, name, None) for name in ("model_max_length", "padding_side", "truncation_side", "chat_template")
    }
    return {name: value for name, value in others.items() if value is not None}


def _make_plain(backend: Any, folder: Path) -> Any:
    """Nothing is cut off, nothing filled up, nothing left to chance: a tokenizer.json may say all three, for the training of its model."""
    backend.no_truncation()
    backend.no_padding()
    if chance := getattr(backend.model, "dropout", None):
        # With it the same text has other ids each time: a shard made again, and the copy of a document, would be others.
        backend.model.dropout = None
        _tell_dropout(folder, chance)
    return backend


@cache
def _tell_dropout(folder: Path, chance: float) -> None:
    _log.warning(
        f"tokenizer {folder} leaves out merges by chance (dropout {chance:.3g} in tokenizer.json), which is for the training of a model; "
        "here all merges are made, so that a text has the same ids each time"
    )


def _check_object(path: Path) -> None:
    if not path.is_file():
        return
    with reading_users_file(path, "is not valid JSON", _COPY, TokenizerError):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__} where a JSON object is due; {_COPY}")


def digest_files(folder: Path) -> str:
    """A digest of all files of a folder that may say something of its tokenizer."""
    sha = hashlib.sha256()
    paths = sorted(
        path for pattern in ("*.json", "*.jinja", "*.py", "*.model", "*.txt") for path in folder.glob(pattern) if path.is_file()
    )
    for path in paths:
        if not path.name.endswith(".index.json"):  # of weights, which say nothing of tokens and may be megabytes
            sha.update(f"{path.name}:{path.stat().st_size}\n".encode())
            sha.update(path.read_bytes())
    return sha.hexdigest()

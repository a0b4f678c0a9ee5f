"""Reads a run's YAML file, applies `--set` overrides, and tells in plain words what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from miniplm.config.fields import Section
from miniplm.config.run import RunConfig
from miniplm.errors import ConfigError, reading_users_file
from miniplm.storage.root import open_filesystem

AnySection = TypeVar("AnySection", bound=Section)

_CREDENTIALS = re.compile(r"://.*@|\?.*")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the plain loader keeps the last one silently."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=deep)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def load_config(url: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The checked configuration of a YAML file at a path or fsspec URL.

    `overrides` are `dotted.path=value` with the value in YAML, e.g. `selection.ratio=0.3` or
    `students.0.training.steps=10`. Raises `ConfigError` that names the file, the field, the rule and the value got.
    """
    content = _read_yaml(url)
    if not isinstance(content, dict):
        raise ConfigError(f"{url} holds {_describe(content)} where a mapping of fields is wanted (name, storage, corpus, ...)")
    for override in overrides:
        apply_override(content, override)
    return check_config(content, url)


def _read_yaml(url: str) -> Any:
    with reading_users_file(url, "is not valid YAML", "mend what is named", ConfigError):
        filesystem, path = open_filesystem(url)
        try:
            with filesystem.open(path, "rt", encoding="utf-8") as file:
                return yaml.load(file, Loader=_UniqueKeyLoader)
        except FileNotFoundError:
            raise ConfigError(f"there is no config file {url}; deployments/configs/ holds examples") from None
        except IsADirectoryError:
            raise ConfigError(f"{url} is a folder; give the YAML file of a run") from None
        except PermissionError as error:
            raise ConfigError(f"{url} cannot be read: {error.strerror or error}; give this user the right to read it") from error
        except yaml.YAMLError as error:  # with line and column, in lines of its own
            raise ConfigError(f"{url} is not valid YAML: {error}") from error


def check_config(content: dict[str, Any], origin: str) -> RunConfig:
    """The configuration of a mapping; `origin` is named in the error."""
    return check_section(RunConfig, content, f"{origin} is not a valid run configuration")


def check_section(kind: type[AnySection], content: dict[str, Any], problem: str) -> AnySection:
    """A part of a configuration out of a mapping. Raises `ConfigError` with `problem`, then every field that is wrong, and why."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [f"{problem}:"]
        problems = error.errors()
        above = {found["loc"][:depth] for found in problems for depth in range(len(found["loc"]))}
        for found in problems:
            if found["type"] == "too_short" and found["loc"] in above:
                continue  # pydantic counts only the items that are right
            field = ".".join(str(part) for part in found["loc"]) or f"({'whole file' if kind is RunConfig else 'as a whole'})"
            message = found["msg"].removeprefix("Value error, ")
            got = (
                ""
                if isinstance(found["input"], (dict, list)) or found["type"] == "missing"
                else f" (got {_hide_credentials(found['input'])!r})"
            )
            hint = "; no such field" if found["type"] == "extra_forbidden" else ""
            lines.append(f"  {field}: {message}{hint}{got}")
        lines.append("`miniplm config --schema` tells every field with its meaning.")
        raise ConfigError("\n".join(lines)) from error


def _hide_credentials(value: Any) -> Any:
    """A value for an error message; of a URL nothing between `://` and `@`, and no query."""
    return _CREDENTIALS.sub("***", value) if isinstance(value, str) and "://" in value else value


def apply_override(content: dict[str, Any], override: str) -> None:
    """Sets one field in place from `dotted.path=value`; list items are named by their index.

    Raises `ConfigError` for an override without `=`, or a path through something that has no fields.
    """
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {override}: write FIELD=VALUE, e.g. --set selection.ratio=0.3")
    with reading_users_file(f"--set {override}:", "the value is not valid YAML", "mend it", ConfigError):
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    target: Any = content
    parts = path.strip().split(".")
    for part in parts[:-1]:
        target = _step_into(target, part, override)
    last = parts[-1]
    if isinstance(target, list):
        target[_list_index(target, last, override)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ConfigError(f"--set {override}: {'.'.join(parts[:-1])} is {_describe(target)} and has no fields")


def _step_into(target: Any, part: str, override: str) -> Any:
    """What is to be changed below `target`, as a copy put in its place: in YAML an anchor and its aliases are one object."""
    if isinstance(target, list):
        index = _list_index(target, part, override)
        target[index] = copy(target[index])
        return target[index]
    if isinstance(target, dict):
        target[part] = {} if target.get(part) is None else copy(target[part])
        return target[part]
    raise ConfigError(f"--set {override}: {part!r} is below {_describe(target)}, which has no fields")


def _list_index(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(f"--set {override}: {part!r} is not an index of a list of {len(items)} items")
    return int(part)


def _describe(value: Any) -> str:
    return "nothing" if value is None else f"the {type(value).__name__} {value!r}"

"""A sweep: one configuration with some of its fields at several values, as a run for each combination of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any

from miniplm.config.files import apply_override, check_config
from miniplm.config.run import RunConfig, config_as_dict
from miniplm.errors import ConfigError, list_offenders
from miniplm.storage.root import digest_content

_MOST_NAME = 100
_BRACKETS = {"[": "]", "{": "}"}


@dataclass(frozen=True)
class SweptRun:
    """One combination: the value of each swept field, as it was written, and the configuration that it makes."""

    values: dict[str, str]
    config: RunConfig


def expand_sweep(content: Mapping[str, Any], settings: Sequence[str], origin: str) -> list[SweptRun]:
    """All combinations of `settings`, each FIELD=VALUE or FIELD=VALUE,VALUE,..., over a configuration; the last field varies fastest.

    A comma inside quotes or brackets belongs to its value. Each run is named after the sweep and its values. Raises `ConfigError`
    where nothing varies, a field is given twice or a value of it, two combinations are one run, and for every combination that is no valid
    configuration.
    """
    axes: dict[str, list[str]] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        field = field.strip()
        if not equals or not field:
            raise ConfigError(f"--set {setting}: write FIELD=VALUE or FIELD=VALUE,VALUE, e.g. --set selection.ratio=0.3,0.5")
        if field in axes:
            raise ConfigError(f"--set {setting}: {field} is given twice; write all of its values in one --set, with commas")
        values = split_values(text)
        if repeated := sorted({value for value in values if values.count(value) > 1}):
            raise ConfigError(f"--set {setting}: {list_offenders(repeated)} stands there twice")
        if len(values) > 1 and "" in values:
            raise ConfigError(
                f"--set {setting}: there is nothing between two commas, or after the last; write null where no value is meant"
            )
        axes[field] = values
    swept = [field for field, values in axes.items() if len(values) > 1]
    if not swept:
        raise ConfigError("nothing to sweep: give a field several values, e.g. --set selection.ratio=0.3,0.5,0.7")
    name, runs = str(content.get("name")), list[SweptRun]()
    told_of: dict[str, str] = {}
    for combination in product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        changed = deepcopy(dict(content))
        for field, value in chosen.items():
            apply_override(changed, f"{field}={value}")
        varied = {field: chosen[field] for field in swept}
        changed["name"] = _name_run(name, varied)
        told = ", ".join(f"{field}={value}" for field, value in varied.items())
        run = SweptRun(varied, check_config(changed, f"{origin} with {told}"))
        # 0.3 and 0.30 are one value, and so is a value that the run takes anyway; names are the sweep's to give.
        meant = digest_content(config_as_dict(run.config) | {"name": name})
        if meant in told_of:
            raise ConfigError(
                f"{told_of[meant]} and {told} are the same run: they differ in nothing but what it is called; leave one of them out"
            )
        told_of[meant] = told
        runs.append(run)
    return runs


def split_values(text: str) -> list[str]:
    """The values between commas that stand in no quotes and no brackets."""
    values, value, closing, quote = [], "", [], ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _BRACKETS:
            closing.append(_BRACKETS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == "," and not closing:
            values.append(value.strip())
            value = ""
            continue
        value += character
    return [*values, value.strip()]


def _name_run(name: str, values: Mapping[str, str]) -> str:
    """`NAME-ratio-0.3-model-qwen`: the end of each field and of its value; with a digest where that is too long or leaves letters out."""
    parts, is_whole = [name], True
    for field, value in values.items():
        short = value.strip("'\"").rstrip("/").rsplit("/", 1)[-1]
        clean = re.sub(r"[^A-Za-z0-9._]+", "-", short).strip("-.")
        is_whole &= clean == value
        parts += [field.rsplit(".", 1)[-1], clean or "x"]
    whole = "-".join(parts)
    if is_whole and len(whole) <= _MOST_NAME:
        return whole
    digest = digest_content([name, dict(values)]).removeprefix("sha256:")[:8]
    return f"{whole[: _MOST_NAME - len(digest) - 1]}-{digest}"

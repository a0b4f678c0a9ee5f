"""Credentials of an S3 store out of a Prefect block, for machines whose environment does not hold them."""

from __future__ import annotations

from typing import Any

import fsspec.config
from prefect.blocks.system import Secret

from miniplm.errors import ConfigError

_NEEDED = ("key", "secret")
_OPTIONAL = ("token", "endpoint_url")
_SHAPE = '{"key": "...", "secret": "...", "endpoint_url": "https://..."} (token and endpoint_url where they are needed)'


def use_credentials_block(name: str) -> None:
    """Has every S3 storage root and source that this process opens from now on use the credentials of a Prefect `Secret` block.

    The block's value is a JSON mapping with `key` and `secret`, and where needed `token` and `endpoint_url`. They go into
    fsspec's configuration in memory, before those of the environment, and nowhere else. Raises `ConfigError`
    where there is no such block or its value is another; the message names fields, never their values.
    """
    try:
        block: Any = Secret.load(name, _sync=True)  # type: ignore[call-arg]
    except ValueError as error:
        raise ConfigError(
            f"the Prefect server has no Secret block named {name!r} (MINIPLM_S3_BLOCK names it); "
            f"make it in the UI under Blocks, type Secret, with the value {_SHAPE}"
        ) from error
    value = block.get()
    if not isinstance(value, dict):
        raise ConfigError(f"the Secret block {name!r} does not hold a JSON mapping; make its value {_SHAPE}")
    faults = [f"{field} is missing" for field in _NEEDED if not value.get(field)]
    faults += [f"{field} is not known" for field in sorted(map(str, value)) if field not in _NEEDED + _OPTIONAL]
    faults += [f"{field} is no text" for field in _NEEDED + _OPTIONAL if value.get(field) and not isinstance(value[field], str)]
    if faults:
        raise ConfigError(f"the Secret block {name!r} cannot be used: {', '.join(faults)}; its value has to be {_SHAPE}")
    fsspec.config.conf["s3"] = {**fsspec.config.conf.get("s3", {}), **{field: text for field, text in value.items() if text}}

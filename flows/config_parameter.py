"""A configuration as a flow's parameter: all of it, or the URL of its YAML file, if that URL may be read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from miniplm.config import RunConfig, config_as_dict
from miniplm.config_files import apply_override, check_config, load_config
from miniplm.errors import ConfigError

ConfigUrl = Annotated[
    str,
    Field(
        title="URL of a YAML file",
        description="s3://bucket/refine.yaml, gs://..., https://... or an absolute path that the worker sees",
        min_length=1,
    ),
]

InlineConfig = Annotated[RunConfig, Field(title="All of it, here")]

# Below which URLs a worker reads configurations, separated by spaces; without it, any URL of the protocols below.
ALLOWED_VARIABLE = "MINIPLM_CONFIG_URLS"
_PROTOCOLS = ("s3", "gs", "gcs", "https", "file")


def resolve_parameter(config: RunConfig | str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a parameter gives, changed by `overrides`. Raises `ConfigError` for a URL that may not be read."""
    if isinstance(config, str):
        check_url(config)
        return load_config(config, overrides)
    if not overrides:
        return config
    content = config_as_dict(config)
    for override in overrides:
        apply_override(content, override)
    return check_config(content, f"run {config.name}")


def check_url(url: str) -> None:
    """Raises `ConfigError` where a flow run may not read a configuration at that URL."""
    protocol, separator, rest = url.partition("://")
    if not separator:
        protocol, rest = "file", url
        if not os.path.isabs(url):
            raise ConfigError(
                f"config {url!r} is a relative path, and a worker has no folder of yours; give an absolute path or a URL"
            )
    if protocol not in _PROTOCOLS or "::" in url:
        raise ConfigError(
            f"config {url!r}: a configuration is not read from {protocol}://; use one of {', '.join(f'{name}://' for name in _PROTOCOLS)}"
        )
    if "@" in rest.split("/", 1)[0] or "?" in rest:
        raise ConfigError(
            "config: the URL holds credentials or a query; flow runs' parameters are stored as they are, so put the file "
            "where the worker's own credentials reach it"
        )
    allowed = os.environ.get(ALLOWED_VARIABLE, "").split()
    if allowed and (".." in rest.split("/") or not any(url.startswith(prefix) for prefix in allowed)):
        raise ConfigError(f"config {url!r} is not below what this worker may read ({ALLOWED_VARIABLE}: {', '.join(allowed)})")

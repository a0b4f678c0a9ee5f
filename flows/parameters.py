"""A flow's parameters: a configuration, as all of it or as the URL of its YAML file, if that URL may be read; a run that is there, by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import unquote

from pydantic import Field

from miniplm.config.files import apply_override, check_config, load_config
from miniplm.config.run import RunConfig, Url, config_as_dict
from miniplm.errors import ConfigError
from miniplm.records.run import load_run
from miniplm.storage.root import Storage

ConfigUrl = Annotated[
    str,
    Field(
        title="URL of a YAML file",
        description="s3://bucket/refine.yaml, gs://..., https://... or an absolute path that the worker sees",
        min_length=1,
    ),
]

InlineConfig = Annotated[RunConfig, Field(title="All of it, here")]

StorageUrl = Url
RunName = Annotated[str, Field(min_length=1)]

# Below which URLs a worker reads configurations, separated by spaces; without it, any URL of the protocols below.
ALLOWED_VARIABLE = "MINIPLM_CONFIG_URLS"
_PROTOCOLS = ("s3", "gs", "gcs", "https", "file")
# A user before the host, `user:password@` also where the password holds slashes, and any query (presigned URLs).
_SECRETS = re.compile(r"//[^/@]*@|:(?!//)[^@]*@|^[^/].*\?", re.DOTALL)


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
    """Raises `ConfigError` where a flow run may not read a configuration at that URL; a URL that may hold a secret is not repeated."""
    if _SECRETS.search(url):
        raise ConfigError(
            "config: the URL holds credentials or a query; flow runs' parameters are stored as they are, so put the file "
            "where the worker's own credentials reach it"
        )
    protocol, separator, path = url.partition("://")
    if not separator:
        protocol, path = "file", url
    if protocol not in _PROTOCOLS or "::" in url or not url.isprintable():
        raise ConfigError(
            f"config {url!r}: a configuration is read from an absolute path or a plain URL of "
            f"{', '.join(f'{name}://' for name in _PROTOCOLS)}, not through other protocols, chains (::) or control characters"
        )
    if protocol == "file" and not path.startswith("/"):
        raise ConfigError(f"config {url!r} is a relative path, and a worker has no folder of yours; give an absolute path or a URL")
    allowed = os.environ.get(ALLOWED_VARIABLE, "").split()
    if allowed and not any(_is_below(url, folder) for folder in allowed):
        raise ConfigError(f"config {url!r} is not below what this worker may read ({ALLOWED_VARIABLE}: {', '.join(allowed)})")


def _is_below(url: str, folder: str) -> bool:
    """Whether a URL is a folder or file that is allowed, or below it; never one whose name only begins alike, nor by `..`."""
    url, folder = url.removeprefix("file://"), folder.removeprefix("file://")
    # HTTP clients resolve `%2e%2e` as they do `..`.
    goes_up = ".." in unquote(url).replace("\\", "/").split("/")
    return not goes_up and (url == folder or url.startswith(folder.rstrip("/") + "/"))


def load_run_config(storage: str, run: str) -> RunConfig:
    """The configuration that a run's record keeps, at this root. Raises `RunError` naming the runs there are."""
    content = load_run(Storage(storage), run).config | {"storage": storage}
    return check_config(content, f"run {run} at {storage}")

"""A run as a flow's parameter: where it lies and what it is called."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from miniplm.config.files import check_config
from miniplm.config.run import RunConfig, Url
from miniplm.records.run import load_run
from miniplm.storage.root import Storage

StorageUrl = Url
RunName = Annotated[str, Field(min_length=1)]


def load_run_config(storage: str, run: str) -> RunConfig:
    """The configuration that a run's record keeps, at this root. Raises `RunError` naming the runs there are."""
    content = load_run(Storage(storage), run).config | {"storage": storage}
    return check_config(content, f"run {run} at {storage}")

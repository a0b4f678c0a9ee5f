"""Small runs on a pool, and what they leave at the storage root."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny_runs import make_tiny_run

# Two batches a model, one a worker: each costs a start of Python with everything imported. How `auto` cuts them, a test of its own tells.
_ON_POOL = {"fan_out": "work-pool", "stale_seconds": 60, "shards_per_batch": 11}


def make_run(folder: Path, name: str, **changes: Any) -> Path:
    """A tiny run on the pool that ends with its selection: some twenty shards, scored once, as the teacher is its own reference.

    Its device is named, so that no worker need be asked for it.
    """
    reference = {"model": str(folder / "teacher"), "dtype": "float32"}
    execution = _ON_POOL | changes.pop("execution", {})
    scoring = {"device": "cpu"} | changes.pop("scoring", {})
    return make_tiny_run(
        folder,
        name,
        sequences_per_shard=32,
        **({"students": [], "execution": execution, "scoring": scoring, "reference": reference} | changes),
    )


def read_scores(data: Path) -> dict[str, bytes]:
    """The files of scored shards, by their path; manifests too, which no two scorings give alike."""
    return {str(path.relative_to(data)): path.read_bytes() for path in (data / "scores").glob("*/*/shard-*")}


def read_parquet(data: Path, kind: str) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in sorted((data / kind).rglob("*.parquet"))}


def list_manifests(data: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in (data / "scores").glob("*/*/shard-*.json")]

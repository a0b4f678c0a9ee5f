"""Small runs that the containers' workers do, with all that they read in the fleet's bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.containers.compose_fleet import ComposeFleet
from tests.tiny_runs import make_tiny_run

MODEL = "s3://miniplm/models/tiny"
# Seconds that a test gives a run: it takes one or two minutes, and ten where eight others want each core.
PATIENCE = 900


def upload(fleet: ComposeFleet, folder: Path) -> None:
    make_tiny_run(folder)
    for source, target in (("sources", "sources"), ("teacher", "models/tiny")):
        for path in (folder / source).iterdir():
            fleet.bucket.put_file(str(path), f"miniplm/{target}/{path.name}")


def make_config(name: str, sequences_per_shard: int, **changes: Any) -> dict[str, Any]:
    """A run of eight shards, each a flow run, that a worker scores by a model out of the bucket; it ends with its selection."""
    model = {"model": MODEL, "dtype": "float32"}
    return {
        "name": name,
        "storage": f"s3://miniplm/{name}",
        "corpus": {
            "sources": [{"path": "s3://miniplm/sources/*.jsonl", "domain": "meta.domain"}],
            "tokenizer": MODEL,
            "sequence_length": 64,
            "sequences_per_shard": sequences_per_shard,
            "splits": {"reference": 0.3, "heldout": 0.1},
        },
        "teacher": model,
        "reference": model,
        "scoring": {"device": "cpu"},
        "students": [],
        "execution": {"fan_out": "work-pool", "stale_seconds": 60, "shards_per_batch": 1},
    } | changes

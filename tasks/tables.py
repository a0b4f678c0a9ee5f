"""The table of a model's shards in the UI: one artifact, kept up to date in place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from miniplm import layout
from miniplm.records.manifests import ScoreShardManifest, ShardEntry
from tasks.artifacts import LiveArtifact, make_key

# A page that shows more rows is of no use to people, and slow.
_MOST_ROWS = 2000


class ShardTable:
    """State, tokens, mean NLL, worker and seconds of each shard; failed ones first."""

    def __init__(self, key: str, title: str) -> None:
        self._title = title
        self._artifact = LiveArtifact("table", make_key(key))
        self._published_at = 0.0

    def is_due(self, seconds: float) -> bool:
        """Whether the last publication is that long ago."""
        return time.monotonic() - self._published_at >= seconds

    def publish(
        self,
        shards: Sequence[ShardEntry],
        done: Mapping[int, ScoreShardManifest],
        failed: Mapping[int, str],
        running: Mapping[int, str],
    ) -> None:
        """Makes the artifact, or brings it up to date."""
        self._published_at = time.monotonic()
        order = {"failed": 0, "scoring": 1, "waiting": 2, "done": 3}
        by_index = sorted(shards, key=lambda shard: shard.shard_index)
        rows = sorted((_make_row(shard, done, failed, running) for shard in by_index), key=lambda row: order[row["state"]])
        counts = {state: sum(row["state"] == state for row in rows) for state in order}
        description = f"{self._title}: " + ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
        if len(rows) > _MOST_ROWS:
            description += f" (the first {_MOST_ROWS:,} of {len(rows):,} rows)"
            rows = rows[:_MOST_ROWS]
        self._artifact.publish(rows, description)


def _make_row(
    shard: ShardEntry, done: Mapping[int, ScoreShardManifest], failed: Mapping[int, str], running: Mapping[int, str]
) -> dict[str, Any]:
    index = shard.shard_index
    manifest = done.get(index)
    state = "done" if manifest else "failed" if index in failed else "scoring" if index in running else "waiting"
    return {
        "shard": layout.shard_name(index),
        "state": state,
        "tokens": shard.num_tokens,
        "mean NLL": f"{manifest.nll_sum / max(manifest.num_scored_tokens, 1):.4f}" if manifest else "",
        "worker": manifest.worker if manifest else "",
        "seconds": round(manifest.seconds, 1) if manifest else "",
        "remark": failed.get(index, running.get(index, "") if state == "scoring" else ""),
    }

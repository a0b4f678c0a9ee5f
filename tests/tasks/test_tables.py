"""The table of a model's shards in the UI."""

from __future__ import annotations

from typing import Any

import pytest

from miniplm.records.manifests import ShardEntry
from tasks.artifacts import LiveArtifact
from tasks.tables import ShardTable


def make_shard(index: int) -> ShardEntry:
    return ShardEntry(
        corpus_id="c",
        split="candidate",
        shard_index=index,
        digest="sha256:x",
        num_bytes=1,
        num_sequences=1,
        num_tokens=1,
        first_sequence_id=index,
    )


def test_failed_shards_come_first_and_shards_of_one_state_in_the_order_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[dict[str, Any]] = []
    monkeypatch.setattr(LiveArtifact, "publish", lambda _, rows, description: published.extend(rows))
    shards = [make_shard(index) for index in (100_001, 99_999, 100_000, 7)]
    ShardTable("shards-c", "shards").publish(shards, {}, {100_001: "NaN"}, {})
    assert [row["shard"] for row in published] == ["shard-100001", "shard-00007", "shard-99999", "shard-100000"]

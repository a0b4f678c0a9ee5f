from __future__ import annotations

from miniplm.progress import Progress
from tasks import progress as module
from tasks.progress import StageProgress, report_progress, shard_callback, stage_progress, watch_progress


def test_watchers_hear_while_they_watch():
    heard = []
    with watch_progress(heard.append):
        report_progress(Progress("a", 1, 2, "tokens"))
    report_progress(Progress("a", 2, 2, "tokens"))
    assert heard == [Progress("a", 1, 2, "tokens")]


def test_a_stage_sums_its_shards_and_counts_a_repeated_one_once(monkeypatch):
    updates = []
    monkeypatch.setattr(module.LiveArtifact, "publish", lambda self, percent, description: updates.append((percent, description)))
    heard = []
    with watch_progress(heard.append), stage_progress("score teacher", 100, "tokens", done=20) as stage:
        first, second = shard_callback("score teacher", "shard-00001"), shard_callback("score teacher", "shard-00002")
        first(Progress("x", 30, 40, "tokens"))
        second(Progress("x", 40, 40, "tokens"))
        first(Progress("x", 40, 40, "tokens"))
        assert isinstance(stage, StageProgress)
    assert [progress.done for progress in heard] == [20, 50, 90, 100]
    assert updates[-1][0] == 100.0
    assert "100 of 100 tokens" in updates[-1][1]


def test_outside_a_stage_a_shard_reports_plainly():
    assert shard_callback("no such stage", "shard-00000") is report_progress

from __future__ import annotations

import logging

from miniplm.progress import Progress
from tasks import progress as module
from tasks.progress import StageProgress, report_progress, shard_callback, stage_progress, training_progress, watch_progress


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


def test_a_training_is_told_to_the_terminal_the_ui_and_now_and_then_to_the_log(monkeypatch, caplog):
    updates = []
    monkeypatch.setattr(module.LiveArtifact, "publish", lambda self, percent, description: updates.append((percent, description)))
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("run"))
    heard = []
    with (
        caplog.at_level(logging.INFO, "run"),
        watch_progress(heard.append),
        training_progress("train small", "train small x") as tell,
    ):
        for done in (4, 5, 6, 8):
            tell(Progress("train miniplm-x", done, 8, "steps", f"loss {done}.0"))
    assert [(progress.key, progress.done, progress.detail) for progress in heard[1:]] == [
        ("train small", done, f"loss {done}.0") for done in (4, 5, 6, 8)
    ]
    assert (updates[0][0], updates[-1][0]) == (50.0, 100.0)
    assert "train small: 8 of 8 steps" in updates[-1][1]
    assert "(loss 8.0)" in updates[-1][1]
    assert [record.getMessage() for record in caplog.records] == [
        "train small: 4 of 8 steps. loss 4.0",
        "train small: 8 of 8 steps. loss 8.0",
    ]


def test_a_training_that_is_finished_already_shows_nothing(monkeypatch):
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("run"))
    monkeypatch.setattr(module, "StageProgress", None)
    with training_progress("train small", "x"):
        pass

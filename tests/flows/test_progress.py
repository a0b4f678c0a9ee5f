"""Progress in the terminal: work of one name that begins anew, as in the next run of a sweep, has a rate of its own."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from flows.cli import progress as shown
from flows.cli.progress import TerminalProgress
from miniplm.progress import Progress


@pytest.mark.parametrize("is_live", [False, True])
def test_work_that_begins_anew_has_no_negative_rate(is_live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    told = io.StringIO()
    tell = TerminalProgress(Console(file=told, force_terminal=is_live, width=200))
    with tell:
        for done in (0.0, 500.0, 1000.0, 20.0, 520.0, 1000.0):
            tell(Progress("evaluate pretrain", done, 1000.0, "tokens"))
            now[0] += 20.0
    assert "-" not in re.sub("\x1b.*?[a-zA-Z]", "", told.getvalue()).replace("━", "")
    # 500 tokens in the 20 seconds since the work began anew, not since the first of that name.
    if not is_live:
        lines = told.getvalue().splitlines()
        assert lines[3] == "evaluate pretrain: 20 tokens of 1,000 tokens (2 %)"
        assert lines[4] == "evaluate pretrain: 520 tokens of 1,000 tokens (52 %)  25 tokens/s  19 s left"


def test_the_last_words_of_threads_begin_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    told = io.StringIO()
    tell = TerminalProgress(Console(file=told, width=200))
    for done in (0.0, 1000.0, 990.0, 1000.0):
        tell(Progress("score teacher", done, 1000.0, "tokens"))
        now[0] += 0.01
    assert len(told.getvalue().splitlines()) == 2

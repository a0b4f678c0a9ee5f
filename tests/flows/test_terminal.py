"""What reaches a terminal: the text of a corpus as it is and harmless, in a width that can be read, and every warning."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.cli.options import watched_stage
from flows.cli.process import check_current_folder
from flows.cli.tables import make_table
from flows.cli.terminal import PlainConsole
from miniplm.errors import MachineError


def test_what_a_corpus_holds_neither_controls_the_terminal_nor_is_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = "red \x1b[31m, \x00, \r, \x9b2J, :smile:, [bold]x[/], é\u2028日本\tend\u202e\nnext"
    shown = r"red \x1b[31m, \x00, \x0d, \x9b2J, :smile:, [bold]x[/], é" + "\u2028日本"
    PlainConsole(soft_wrap=True).print(text)
    said = capsys.readouterr().out
    assert said.startswith(shown)
    assert said.endswith("end\\u202e\nnext\n")
    table = make_table("T", "domain")
    table.add_row("\x1b[2J:smile:\na\tb")
    PlainConsole().print(table)
    assert r"\x1b[2J:smile:\x0aa\x09b" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["0", "7", "200", "many", ""])
def test_a_table_is_printed_however_narrow_the_terminal_says_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = make_table("T", "domain", "tokens")
    table.add_row("a domain", "1,234,567")
    PlainConsole().print(table)
    assert " a domain   1,234,567" in capsys.readouterr().out


def test_warnings_of_a_stage_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PREFECT_API_URL", "MINIPLM_S3_BLOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    plan = cast(Any, SimpleNamespace(is_on_work_pool=False))
    with watched_stage(plan, verbose=False, as_json=True):
        assert logging.getLogger("miniplm").isEnabledFor(logging.WARNING)


def test_a_folder_that_was_deleted_under_a_command_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    check_current_folder()
    gone.rmdir()
    try:
        with pytest.raises(MachineError, match="the current folder was deleted"):
            check_current_folder()
    finally:
        os.chdir(tmp_path)

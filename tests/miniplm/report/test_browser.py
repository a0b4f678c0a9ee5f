"""The report against figures computed another way, hostile names and texts, runs that are not finished, and a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from miniplm.records.run import RunRecord
from miniplm.report import write_report
from miniplm.storage.root import Storage
from tests.miniplm.report_fixtures import RunPlan, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, RunRecord]:
    return make_run(tmp_path_factory.mktemp("run"), plan=RunPlan(num_sequences=200, num_per_shard=70))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH")
def test_page_opens_in_a_browser_without_a_console_message(run: tuple[Storage, RunRecord], tmp_path: Path) -> None:
    url = write_report(run[0], "demo")
    dom, messages = open_in_chromium(f"file://{url}", tmp_path)
    headline = re.search(r'<h1 id="headline">.*?</h1>', dom, re.DOTALL)
    assert headline is not None
    assert "on held-out text, 0.034 lower (better) than 4.846 for random data" in headline.group(0)
    assert not [line for line in messages.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH")
def test_browser_check_sees_a_console_message(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<!doctype html><script>console.error('seen')</script>")
    assert "CONSOLE" in open_in_chromium(f"file://{path}", tmp_path)[1]


def open_in_chromium(url: str, folder: Path) -> tuple[str, str]:
    """The page's DOM as the browser has it, and what the browser logged."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += [
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
        "--v=0",
    ]
    process = subprocess.Popen(
        ["chromium", *flags, "--dump-dom", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise

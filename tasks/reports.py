"""Writes the report of a run, and links to it."""

from __future__ import annotations

from prefect import task

from miniplm.report import write_report as write_page
from miniplm.storage.root import Storage
from tasks.artifacts import LiveArtifact, make_key
from tasks.retries import TASK_OPTIONS


@task(name="write-report", task_run_name="report {run_name}", **TASK_OPTIONS)
def write_report(storage_url: str, run_name: str) -> str:
    """Writes `report.html` and returns where it lies."""
    url = write_page(Storage(storage_url), run_name)
    link = url if "://" in url else f"file://{url}"
    description = f"The report of {run_name}, at `{url}`. A browser opens it where it sees that place; else copy the file, it is whole in itself."
    LiveArtifact("markdown", make_key("report", run_name)).publish(f"[report.html of {run_name}]({link})", description)
    return url

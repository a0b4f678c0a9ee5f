"""Writes the report of a run, and links to it."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact

from miniplm.report import write_report as write_page
from miniplm.storage import Storage
from tasks.retries import TASK_OPTIONS


@task(name="write-report", task_run_name="report {run_name}", **TASK_OPTIONS)
def write_report(storage_url: str, run_name: str) -> str:
    """Writes `report.html` and returns where it lies."""
    url = write_page(Storage(storage_url), run_name)
    create_markdown_artifact(f"The report of {run_name} is at `{url}`", key="report", description="report.html")
    return url

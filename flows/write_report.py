"""What a run's record names becomes its report."""

from __future__ import annotations

from prefect import flow

from tasks import reports


@flow(name="write-report", flow_run_name="report {run_name}")
def write_report(storage_url: str, run_name: str) -> str:
    """Writes `report.html` of a run; returns where it lies."""
    return reports.write_report(storage_url, run_name)

"""Makes the files of an export: one open export in this process serves all its parts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prefect import task

from miniplm.errors import StoppedError
from miniplm.export.job import ExportJob
from miniplm.export.parts import ExportPlan
from miniplm.export.records import ExportedPart
from miniplm.export.target import ExportTarget
from miniplm.progress import Progress
from tasks.progress import shard_callback
from tasks.retries import TASK_OPTIONS


@dataclass
class _OpenExport:
    job: ExportJob
    target: ExportTarget
    plan: ExportPlan
    stopping: threading.Event = field(default_factory=threading.Event)


_open_exports: dict[str, _OpenExport] = {}


@contextmanager
def open_export(job: ExportJob, target: ExportTarget, plan: ExportPlan) -> Iterator[None]:
    """Lets tasks of this process make parts of the export while the block runs. Parts under way when it fails are given up."""
    opened = _open_exports[target.url] = _OpenExport(job, target, plan)
    try:
        yield
    except BaseException:
        opened.stopping.set()
        raise
    finally:
        del _open_exports[target.url]


@task(name="export-part", task_run_name="{stage}: file {part_index:05d}", **TASK_OPTIONS)
def export_part(target_url: str, part_index: int, stage: str) -> ExportedPart:
    """Makes one part of an export that is open in this process, or returns its record where it is made already."""
    opened = _open_exports[target_url]
    on_progress = shard_callback(stage, f"file {part_index:05d}")

    def unless_stopped(progress: Progress) -> None:
        if opened.stopping.is_set():
            raise StoppedError(
                f"file {part_index} of the export to {target_url} was stopped before it was done; nothing of it is kept"
            )
        on_progress(progress)

    return opened.job.make_part(opened.target, opened.plan.parts[part_index], part_index, len(opened.plan.parts), unless_stopped)

"""What this process has open and tasks make parts of: a derived set, an export, a corpus that is prepared. What fails is told to all parts."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from prefect import task

from miniplm.corpus.part_making import PartMaking
from miniplm.corpus.token_parts import TokenPart
from miniplm.errors import StoppedError
from miniplm.export.job import ExportJob
from miniplm.export.parts import ExportPlan
from miniplm.export.records import ExportedPart
from miniplm.export.target import ExportTarget
from miniplm.progress import Progress, ProgressCallback
from tasks.progress import shard_callback
from tasks.retries import TASK_OPTIONS

Work = TypeVar("Work")


def unless_stopped(stopping: threading.Event, on_progress: ProgressCallback, message: str) -> ProgressCallback:
    """The callback, which raises `StoppedError` with the message once `stopping` is set."""

    def call(progress: Progress) -> None:
        if stopping.is_set():
            raise StoppedError(message)
        on_progress(progress)

    return call


class Served(Generic[Work]):
    """Pieces of work that are open in this process, by key."""

    def __init__(self) -> None:
        self._open: dict[Hashable, tuple[Work, threading.Event]] = {}

    @contextmanager
    def serve(self, key: Hashable, work: Work) -> Iterator[None]:
        """Lets tasks of this process make parts of the work while the block runs. Parts under way when it fails are given up."""
        stopping = threading.Event()
        self._open[key] = (work, stopping)
        try:
            yield
        except BaseException:
            stopping.set()
            raise
        finally:
            del self._open[key]

    def find(self, key: Hashable) -> Work:
        """Work that is open."""
        return self._open[key][0]

    def callback(self, key: Hashable, stage: str, part: str, message: str) -> ProgressCallback:
        """The callback of a part of open work, which raises `StoppedError` with the message where the work is given up."""
        return unless_stopped(self._open[key][1], shard_callback(stage, part), message)


# By the URL of the target.
open_exports = Served[tuple[ExportJob, ExportTarget, ExportPlan]]()
# By the corpus.
open_makings = Served[PartMaking]()


@task(name="export-part", task_run_name="{stage}: file {part_index:05d}", **TASK_OPTIONS)
def export_part(target_url: str, part_index: int, stage: str) -> ExportedPart:
    """Makes one part of an export that is open in this process, or returns its record where it is made already."""
    message = f"file {part_index} of the export to {target_url} was stopped before it was done; nothing of it is kept"
    job, target, plan = open_exports.find(target_url)
    on_progress = open_exports.callback(target_url, stage, f"file {part_index:05d}", message)
    return job.make_part(target, plan.parts[part_index], part_index, len(plan.parts), on_progress)


@task(name="prepare-part", task_run_name="prepare {corpus_id}: part {part_index:05d}", **TASK_OPTIONS)
def prepare_part(corpus_id: str, part_index: int) -> TokenPart:
    """Makes one part of a corpus that is served in this process, or returns its record where it is made already."""
    message = f"part {part_index} of corpus {corpus_id} was stopped before it was done; nothing of it is kept"
    on_progress = open_makings.callback(corpus_id, "prepare", f"part {part_index:05d}", message)
    return open_makings.find(corpus_id).make(part_index, on_progress)

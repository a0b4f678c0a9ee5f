"""Makes the shards of derived sets: one load of models and tokenizers serves all shards of a set."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from prefect import task

from miniplm import layout
from miniplm.derived.recipes import DerivedShard
from miniplm.derived.sets import DerivedJob, DerivedSource, ShardMaker, make_shard
from miniplm.errors import DeviceError
from miniplm.models.devices import free_cached_memory
from miniplm.progress import Progress
from miniplm.storage.root import Storage
from tasks.parts import Served
from tasks.retries import TASK_OPTIONS


@dataclass
class _OpenJob:
    """A set under way in this process."""

    storage: Storage
    job: DerivedJob
    sources: Sequence[DerivedSource]
    device: str
    maker: ShardMaker | None = None
    loading: threading.Lock = field(default_factory=threading.Lock)

    def load_once(self) -> ShardMaker:
        with self.loading:
            if self.maker is None:
                self.maker = self.job.open_maker(self.storage, self.sources, self.device)
            return self.maker


_open_jobs = Served[_OpenJob]()


@contextmanager
def open_job(storage: Storage, job: DerivedJob, sources: Sequence[DerivedSource], device: str) -> Iterator[None]:
    """Lets tasks of this process make shards of the set while the block runs; then its models go. Shards under way when it fails are given up."""
    try:
        with _open_jobs.serve((storage.root, job.derived_id), _OpenJob(storage, job, sources, device)):
            yield
    finally:
        gc.collect()
        free_cached_memory()


@task(name="load-maker", task_run_name="load what makes {derived_id}", **TASK_OPTIONS)
def load_maker(storage_url: str, derived_id: str) -> None:
    """Loads models and tokenizers of an open set once, before any shard: what is wrong with them is said once, not by every shard."""
    _open_jobs.find((storage_url, derived_id)).load_once()


@task(name="derive-shard", task_run_name="{stage}: shard-{shard_index:05d}", **TASK_OPTIONS)
def derive_shard(storage_url: str, derived_id: str, shard_index: int, stage: str) -> DerivedShard:
    """Makes one shard of a set that is open in this process, or returns its manifest where it is made already."""
    name, key = layout.shard_name(shard_index), (storage_url, derived_id)
    opened = _open_jobs.find(key)
    on_progress = _open_jobs.callback(key, stage, name, f"{name} was stopped before it was done; nothing of it is published")
    source = opened.sources[shard_index]
    on_progress(Progress(stage, 0, opened.job.count_units(source), opened.job.unit))
    try:
        return make_shard(opened.storage, opened.job, opened.load_once(), shard_index, source, on_progress)
    except DeviceError:
        opened.maker = None  # the next try loads it on a device that answers
        raise

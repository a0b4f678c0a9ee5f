"""Makes parts of a corpus that is being prepared: one open making in this process serves them all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prefect import task

from miniplm.corpus.part_making import PartMaking
from miniplm.corpus.token_parts import TokenPart
from miniplm.errors import StoppedError
from miniplm.progress import Progress
from tasks.progress import shard_callback
from tasks.retries import TASK_OPTIONS


@dataclass
class _Served:
    making: PartMaking
    stopping: threading.Event = field(default_factory=threading.Event)


_served: dict[str, _Served] = {}


@contextmanager
def serving_parts(making: PartMaking, corpus_id: str) -> Iterator[None]:
    """Lets tasks of this process make parts of the corpus while the block runs. Parts under way when it fails are given up."""
    served = _served[corpus_id] = _Served(making)
    try:
        yield
    except BaseException:
        served.stopping.set()
        raise
    finally:
        del _served[corpus_id]


@task(name="prepare-part", task_run_name="prepare {corpus_id}: part {part_index:05d}", **TASK_OPTIONS)
def prepare_part(corpus_id: str, part_index: int) -> TokenPart:
    """Makes one part of a corpus that is served in this process, or returns its record where it is made already."""
    served = _served[corpus_id]
    on_progress = shard_callback("prepare", f"part {part_index:05d}")

    def unless_stopped(progress: Progress) -> None:
        if served.stopping.is_set():
            raise StoppedError(f"part {part_index} of corpus {corpus_id} was stopped before it was done; nothing of it is kept")
        on_progress(progress)

    return served.making.make(part_index, unless_stopped)

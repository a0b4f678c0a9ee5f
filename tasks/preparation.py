"""Makes parts of a corpus that is being prepared: one open making in this process serves them all."""

from __future__ import annotations

from prefect import task

from miniplm.corpus.part_making import PartMaking
from miniplm.corpus.token_parts import TokenPart
from tasks.retries import TASK_OPTIONS
from tasks.served import Served

# By the corpus.
open_makings = Served[PartMaking]()


@task(name="prepare-part", task_run_name="prepare {corpus_id}: part {part_index:05d}", **TASK_OPTIONS)
def prepare_part(corpus_id: str, part_index: int) -> TokenPart:
    """Makes one part of a corpus that is served in this process, or returns its record where it is made already."""
    message = f"part {part_index} of corpus {corpus_id} was stopped before it was done; nothing of it is kept"
    on_progress = open_makings.callback(corpus_id, "prepare", f"part {part_index:05d}", message)
    return open_makings.find(corpus_id).make(part_index, on_progress)

"""Parts of a corpus that is being prepared, each a task: a batch of them on a worker of a pool."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import flow
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.work_pool.batches import describe_indices
from miniplm import __version__
from miniplm.config.run import CorpusConfig
from miniplm.corpus.part_making import open_part_making
from miniplm.storage.root import Storage
from tasks.parts import open_makings, prepare_part
from tasks.progress import stage_progress
from tasks.workers import name_worker, prepare_worker


def name_batch(corpus_id: str, part_indices: Sequence[int]) -> str:
    """The flow run's name, e.g. `prepare c-1a2b3c4d5e6f, parts 16 to 31`."""
    return f"prepare {corpus_id}, {describe_indices(part_indices, 'part')}"


def _name_run() -> str:
    given = flow_run.get_parameters()
    return name_batch(given["corpus_id"], given["part_indices"])


# Two parts at a time: the files of one are opened while the last documents of the other are tokenised.
@flow(
    name="prepare-parts",
    flow_run_name=_name_run,
    task_runner=ThreadPoolTaskRunner(max_workers=2),  # type: ignore[arg-type]
)
def prepare_parts(
    storage: str,
    corpus: CorpusConfig,
    corpus_id: str,
    plan_id: str,
    part_indices: Sequence[int],
    version: str = __version__,
) -> list[int]:
    """Reads and tokenises some source files of a corpus, but those that are done already; returns the numbers of the parts.

    Raises `SourceError` or `ConfigError` where this worker does not see what the run sees, and `VersionError` or `TokenizerError` where it
    would make other token ids.

    Args:
        storage: fsspec URL of the storage root
        corpus: how the corpus is made
        corpus_id: the corpus, as the run names it by its content
        plan_id: how the run has cut it into parts
        part_indices: the parts of this batch, from 0
        version: version of miniplm that gives the work; a worker of another one refuses
    """
    prepare_worker(version)
    root = Storage(storage)
    with (
        open_part_making(root, corpus_id, plan_id, corpus, part_indices, name_worker()) as making,
        open_makings.serve(corpus_id, making),
    ):
        total = sum(making.count_bytes(index) for index in part_indices)
        with stage_progress("prepare", total, "bytes", artifact=f"prepare {corpus_id}"):
            futures = [prepare_part.submit(corpus_id, index) for index in part_indices]
            wait(futures)
            return [future.result().part_index for future in futures]

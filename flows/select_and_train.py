"""Another selection, other students, from the scores of a run that are there: no sequence is scored again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from flows.parameters import RunName, StorageUrl, load_run_config
from flows.run_miniplm import run_miniplm
from flows.work_pool.cancellation import cancel_children
from flows.work_pool.subflows import crash_subflows, tagged_subflows
from miniplm.config.files import check_config
from miniplm.config.run import Name, RunConfig, StudentConfig, config_as_dict
from miniplm.corpus.reader import load_corpus
from miniplm.errors import CorpusError, ModelError
from miniplm.records.run import RunRecord, load_run
from miniplm.selection.join_faults import check_scores
from miniplm.storage.root import Storage
from tasks.workers import use_credentials


@flow(
    name="select-and-train",
    flow_run_name="select and train {name} from {run}",
    on_cancellation=[cancel_children],
    on_crashed=[crash_subflows],
)
def select_and_train(
    storage: StorageUrl,
    run: RunName,
    name: Name,
    ratio: Annotated[float | None, Field(gt=0, le=1)] = None,
    score: Literal["mean", "sum"] | None = None,
    students: Sequence[StudentConfig] | None = None,
) -> RunRecord:
    """Selects anew from a run's scores, trains and evaluates students, writes a report. Raises `ScoreJoinError` where scores are missing.

    Args:
        storage: fsspec URL of the storage root, e.g. s3://bucket/prefix or /mnt/miniplm
        run: name of a run that has its record at this storage root
        name: name of the new run, whose report compares its students
        ratio: kept share of the candidates, in (0, 1]; empty: as in the run
        score: rank by nats a token (mean) or a sequence (sum); empty: as in the run
        students: the models to train; empty: those of the run
    """
    use_credentials()
    config = _change(load_run_config(storage, run), name, ratio, score, students)
    _require_scores(Storage(storage), run)
    with tagged_subflows(name):
        return run_miniplm(config)


def _change(
    config: RunConfig, name: str, ratio: float | None, score: str | None, students: Sequence[StudentConfig] | None
) -> RunConfig:
    content: dict[str, Any] = config_as_dict(config) | {"name": name}
    if ratio is not None:
        content["selection"]["ratio"] = ratio
    if score is not None:
        content["selection"]["score"] = score
    if students is not None:
        content["students"] = [config_as_dict(student) for student in students]
    return check_config(content, f"run {name}")


def _require_scores(storage: Storage, run: str) -> None:
    record = load_run(storage, run)
    if record.corpus_id is None:
        raise CorpusError(f"run {run} has no corpus yet; let it end first")
    if record.scorer_ids is None:
        raise ModelError(f"run {run} is not scored by both models yet; let it end first, or repair it with rescore-shards")
    check_scores(storage, load_corpus(storage, record.corpus_id), *record.scorer_ids)

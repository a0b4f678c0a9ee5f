"""The tasks of derived sets: a set is open in one process for a while, and what is under way when that ends badly is given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from miniplm import layout
from miniplm.config.run import TrainingConfig
from miniplm.derived.sets import DerivedJob, require_sources
from miniplm.errors import StoppedError
from miniplm.storage.root import Storage
from miniplm.tokenizers.tokenizer import load_tokenizer
from miniplm.training.needs import list_derived_jobs
from miniplm.training.recipe import plan_training
from tasks import derived
from tests.miniplm.made_trainings import make_selection, make_training_corpus
from tests.tiny_runs import make_tokenizer


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def job(storage: Storage, tmp_path: Path) -> DerivedJob:
    corpus = make_training_corpus(storage)
    make_tokenizer(tmp_path / "own", [{"text": "w1 w2 w3"}], vocab_size=262)
    plan = plan_training(
        corpus,
        "miniplm",
        "qwen-tiny",
        TrainingConfig(steps=2, batch_size=4, learning_rate=1e-3),
        selection=make_selection(storage, corpus, ([0, 3, 6], [2], [8, 1])),
        device="cpu",
        own_tokenizer=load_tokenizer(str(tmp_path / "own")),
    )
    (job,) = list_derived_jobs(plan)
    return job


def test_a_shard_is_made_once_and_then_found(storage: Storage, job: DerivedJob) -> None:
    with derived.open_job(storage, job, require_sources(storage, job), "cpu"):
        derived.load_maker.fn(storage.root, job.derived_id)
        manifest = derived.derive_shard.fn(storage.root, job.derived_id, 1, job.name)
        time = Path(storage.path(layout.derived_shard(job.derived_id, 1))).stat().st_mtime_ns
        assert derived.derive_shard.fn(storage.root, job.derived_id, 1, job.name) == manifest
        assert Path(storage.path(layout.derived_shard(job.derived_id, 1))).stat().st_mtime_ns == time
    assert derived._open_jobs._open == {}


def test_a_shard_under_way_when_its_run_ends_publishes_nothing(
    storage: Storage, job: DerivedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = require_sources(storage, job)
    opened: list[Any] = []

    class CancelledError(BaseException):
        pass

    def cancel() -> None:
        with derived.open_job(storage, job, sources, "cpu"):
            opened.append(derived._open_jobs._open[storage.root, job.derived_id])
            raise CancelledError

    with pytest.raises(CancelledError):
        cancel()
    # The thread of a shard still holds what was open.
    monkeypatch.setitem(derived._open_jobs._open, (storage.root, job.derived_id), opened[0])
    with pytest.raises(StoppedError, match="shard-00000 was stopped before it was done; nothing of it is published"):
        derived.derive_shard.fn(storage.root, job.derived_id, 0, job.name)
    assert not storage.exists(layout.derived_shard(job.derived_id, 0))

"""One piece of work on a pool, such as a training: who asks for it while it lives waits for it, unless it is for another storage root."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from flows.work_pool import fleet, single


def test_work_of_another_storage_root_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[SimpleNamespace] = []

    def submit(deployment: str, name: str, parameters: dict[str, Any], tags: list[str]) -> SimpleNamespace:
        submitted.append(SimpleNamespace(name=name, tags=tags))
        return submitted[-1]

    monkeypatch.setattr(single, "submission_lock", nullcontext)
    monkeypatch.setattr(fleet, "find_live", lambda _, tags: [run for run in submitted if set(tags) <= set(run.tags)])
    monkeypatch.setattr(fleet, "count_workers", lambda _: (1, "a-pool"))
    monkeypatch.setattr(fleet, "submit", submit)

    def ask(storage: str) -> SimpleNamespace:
        plan: Any = SimpleNamespace(storage=storage, name="mine")
        return single._find_or_submit("train-student", "train", {}, plan, "training:t-1")  # type: ignore[return-value]

    assert ask("s3://here") is ask("s3://here")
    assert ask("s3://there") is not ask("s3://here")
    assert len(submitted) == 2

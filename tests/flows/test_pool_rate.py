"""The rate of a model over all workers of a pool is told where it is too low."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.work_pool import scoring


def test_a_rate_under_the_least_that_is_wanted_is_told_once_a_quarter_of_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    moments = iter((0.0, 0.0, 900.0, 1_000.0, 1_800.0))
    monkeypatch.setattr(scoring, "emit_event", lambda event, **content: told.append({"event": event} | content["payload"]))
    monkeypatch.setattr(scoring, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    plan = SimpleNamespace(execution=SimpleNamespace(min_tokens_per_second=50.0), name="ours")
    rate = scoring._Rate(plan, SimpleNamespace(corpus_id="made"), "teacher")  # type: ignore[arg-type]
    # Of 900 s each: 100 tokens a second, then 10, of which a first part is looked at too early.
    for num_tokens in (1_000, 91_000, 91_000, 100_000):
        rate.add(num_tokens)
    low = {"event": "miniplm.throughput-low", "role": "teacher", "tokens_per_second": 10, "min_tokens_per_second": 50.0}
    assert told == [low]

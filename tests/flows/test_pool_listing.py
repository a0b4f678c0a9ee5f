"""How often a parent looks at what the workers of a pool have published."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.client.schemas.objects import FlowRun, State

from flows.work_pool import listing, scoring
from flows.work_pool.listing import BoundedListing
from miniplm.storage.root import Storage
from tests.flows.played_fleet import Fleet, install, run_scoring
from tests.miniplm.made_corpora import make_corpus


def test_looking_at_what_is_published_takes_a_twentieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that takes 15 s, as that of 150,000 shards of a store may, while workers take 40 looks of 2 s."""
    storage = Storage(str(tmp_path))
    played = Fleet(storage, make_corpus(storage, {"candidate": [[[1, 2, 0]]] * 4}))
    install(played, monkeypatch)
    listings: list[float] = []

    def list_slowly(storage: Storage, relative: str) -> list[str]:
        listings.append(played.now)
        played.now += 15
        return real_listing(storage, relative)

    def finish_late(run: FlowRun, indices: list[int]) -> State | None:
        return played.score(run, indices) if played.now > 1_600 else None

    real_listing = Storage.list_names
    monkeypatch.setattr(Storage, "list_names", list_slowly)
    monkeypatch.setattr(scoring.Pulse, "is_dead", lambda pulse, run: False)
    played.work = finish_late
    assert len(run_scoring(played, 4)) == 4
    # One under the lock, one that people see after it, the next 300 s later, and the last.
    assert len(listings) <= 5
    assert listings[2] - listings[1] >= 300


def test_a_listing_is_given_again_until_its_share_of_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def list_slowly() -> list[int]:
        now[0] += 3
        return [int(now[0])]

    monkeypatch.setattr(listing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    made = BoundedListing(list_slowly)
    assert made.look() == [103]
    now[0] = 159.9  # 3 s are a twentieth of 60
    assert made.look() == [103]
    assert made.look(now=True) == [162]
    now[0] = 220.0
    assert made.look() == [223]

"""One process at a time looks for live flow runs and makes new ones, so that two runs never start the same work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial

from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.logging import get_logger

from flows.work_pool import fleet

NAME = "miniplm-submission"
# It is held for a second or a few. A holder of which nothing is heard for this long is gone, the server being there:
# while that is away, the holder waits for it as everybody does.
_STALE_SECONDS = 60.0
_SECONDS_BETWEEN_TRIES = 1.0
# A question that takes longer than this met a server that was away or was just starting. Holders are then given their time anew.
_AWAY_SECONDS = 5.0
_LOCKED = 423


@contextmanager
def submission_lock() -> Iterator[None]:
    """Holds the slot of a global concurrency limit, whose state is in the server's database and nowhere else.

    Prefect's own `concurrency` also makes a lease, which a server keeps in its memory: one that is killed meanwhile forgets
    it, and the slot then stays taken for ever. Here a slot that nobody took or gave back for `_STALE_SECONDS` is taken
    over. Should its holder live after all, two runs may give out the same shard: it is scored twice, with the same result.
    """
    fleet.with_patience(_make)
    _take()
    taken_at, began = fleet.with_patience(_read_last_change), time.monotonic()
    try:
        yield
    finally:
        held = max(time.monotonic() - began, 1e-3)
        fleet.with_patience(partial(_give_back, last_change=taken_at, held=held))


def _make(client: SyncPrefectClient) -> None:
    with suppress(ObjectAlreadyExists):  # another run makes it at this moment
        client.upsert_global_concurrency_limit_by_name(NAME, 1)


def _take() -> None:
    seen, seen_at = fleet.with_patience(_read_last_change), time.monotonic()
    while True:
        asked_at = time.monotonic()
        if fleet.with_patience(_try_to_take):
            return
        changed = fleet.with_patience(_read_last_change)
        now = time.monotonic()
        if changed != seen or now - asked_at > _AWAY_SECONDS:
            seen, seen_at = changed, now
        elif now - seen_at > _STALE_SECONDS:
            get_logger("miniplm").warning(
                "the lock %s was held for over %.0f s by a process that is gone; taken over", NAME, _STALE_SECONDS
            )
            fleet.with_patience(partial(_give_back, last_change=seen, held=_STALE_SECONDS))
            seen_at = now
        else:
            fleet.pause(_SECONDS_BETWEEN_TRIES)


def _give_back(client: SyncPrefectClient, last_change: datetime | None, held: float) -> None:
    """Frees the slot that was taken at `last_change`, and no other.

    The same try is made again where its answer was lost, and by then the slot may be another's.
    """
    if _read_last_change(client) == last_change:
        client.release_concurrency_slots([NAME], 1, held)


def _try_to_take(client: SyncPrefectClient) -> bool:
    try:
        client.increment_concurrency_slots([NAME], 1, "concurrency")
    except PrefectHTTPStatusError as error:
        if error.response.status_code != _LOCKED:
            raise
        return False
    return True


def _read_last_change(client: SyncPrefectClient) -> datetime | None:
    """When the slot was last taken or given back, by the server's clock; a try in vain is no change."""
    return client.read_global_concurrency_limit_by_name(NAME).updated

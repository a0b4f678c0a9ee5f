"""The lock under which work is given out, on a real server: one at a time, and never held by the dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.work_pool import submission_lock as module
from flows.work_pool.submission_lock import NAME, submission_lock


@pytest.fixture
def client(prefect_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_TRIES", 0.1)
    with temporary_settings({PREFECT_API_URL: prefect_server["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(NAME, 1)
        yield client


def count_taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name(NAME).active_slots


def test_one_at_a_time_holds_it_from_the_first_time_on(client: SyncPrefectClient, prefect_server: dict[str, str]) -> None:
    client.delete_global_concurrency_limit_by_name(NAME)
    inside, most, rounds = 0, 0, 0

    def take_turns() -> None:
        nonlocal inside, most, rounds
        with temporary_settings({PREFECT_API_URL: prefect_server["PREFECT_API_URL"]}):
            for _ in range(3):
                with submission_lock():
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0.1)
                    inside -= 1
                    rounds += 1

    threads = [threading.Thread(target=take_turns) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, rounds) == (1, 9)
    assert count_taken(client) == 0


def test_an_error_inside_gives_it_back(client: SyncPrefectClient) -> None:
    def fail() -> None:
        with submission_lock():
            assert count_taken(client) == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert count_taken(client) == 0


def test_a_slot_of_which_nothing_is_heard_is_taken_over(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a killed holder leaves it, and as a server that is killed while it is held: its row stays, whoever made it."""
    monkeypatch.setattr(module, "_STALE_SECONDS", 1.0)
    client.increment_concurrency_slots([NAME], 1, "concurrency")
    began = time.monotonic()
    with submission_lock():
        assert 1.0 < time.monotonic() - began < 20.0
        assert count_taken(client) == 1
    assert count_taken(client) == 0
    assert "by a process that is gone; taken over" in caplog.text


def test_while_the_server_is_away_no_holder_is_taken_for_dead(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STALE_SECONDS", 1.0)
    monkeypatch.setattr(module, "_AWAY_SECONDS", 0.5)
    client.increment_concurrency_slots([NAME], 1, "concurrency")
    began, tries = time.monotonic(), 0

    def try_to_take(client: SyncPrefectClient) -> bool:
        nonlocal tries
        tries += 1
        if tries == 2:
            time.sleep(1.5)  # as a question that is asked until the server is there again
        return module_try(client)

    module_try = module._try_to_take
    monkeypatch.setattr(module, "_try_to_take", try_to_take)
    with submission_lock():
        assert time.monotonic() - began > 2.5, "the time without a server was counted"
    assert count_taken(client) == 0


def test_a_slot_given_back_by_a_lost_answer_is_not_taken_from_the_next_holder(client: SyncPrefectClient) -> None:
    """The server frees the slot and dies before it says so; when it is asked again another process holds it."""
    with submission_lock():
        client.release_concurrency_slots([NAME], 1, 0.1)
        client.increment_concurrency_slots([NAME], 1, "concurrency")
    assert count_taken(client) == 1
    client.release_concurrency_slots([NAME], 1, 0.1)

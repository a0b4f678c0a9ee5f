"""Which flow runs are taken for dead: those that gave no new sign for long enough by this process' clock, and no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows.work_pool import pulse
from flows.work_pool.pulse import Pulse

STALE = 300.0


@dataclass
class Server:
    """The clock of this process, the last heartbeat of each flow run, and how often it was asked for."""

    now: float = 1000.0
    heartbeats: dict[UUID, str] = field(default_factory=dict)
    num_asked: int = 0

    def find_last_heartbeat(self, run: FlowRun) -> str | None:
        self.num_asked += 1
        return self.heartbeats.get(run.id)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(pulse.time, "monotonic", lambda: server.now)
    monkeypatch.setattr(pulse, "find_last_heartbeat", server.find_last_heartbeat)
    return server


def make_run(state: StateType = StateType.RUNNING, run_id: UUID | None = None, run_count: int = 1) -> FlowRun:
    return FlowRun(
        id=run_id or uuid4(), flow_id=uuid4(), name="batch", state=State(type=state), state_type=state, run_count=run_count
    )


def find_death(
    server: Server, run: FlowRun, seconds: float, beat: Callable[[float], None] = lambda now: None, watcher: Pulse | None = None
) -> float | None:
    """After how many seconds of a look every two seconds the flow run is dead; None where it lives all the time."""
    watcher = watcher or Pulse(STALE)
    began = server.now
    while server.now - began <= seconds:
        beat(server.now)
        if watcher.is_dead(run):
            return server.now - began
        server.now += 2.0
    return None


def test_a_run_that_beats_every_half_minute_is_never_dead(server: Server) -> None:
    run = make_run()

    def beat(now: float) -> None:
        server.heartbeats[run.id] = f"event-{now // 30}"

    assert find_death(server, run, 7200, beat) is None


def test_a_run_that_never_beats_is_dead_after_stale_seconds(server: Server) -> None:
    death = find_death(server, make_run(), 7200)
    # Heartbeats are asked for every tenth of that time.
    assert death is not None
    assert STALE < death <= STALE * 1.1 + 2


def test_a_run_that_stops_beating_is_dead_stale_seconds_after_its_last_beat(server: Server) -> None:
    run, began = make_run(), server.now

    def beat(now: float) -> None:
        server.heartbeats[run.id] = f"event-{min(now - began, 600) // 30}"

    death = find_death(server, run, 7200, beat)
    assert death is not None
    assert 600 + STALE < death <= 600 + STALE * 1.2 + 2


def test_a_run_of_a_process_that_is_yet_to_start_has_three_times_the_patience(server: Server) -> None:
    death = find_death(server, make_run(StateType.PENDING), 7200)
    assert death is not None
    assert 3 * STALE < death <= 3 * STALE + STALE / 10 + 2


@pytest.mark.parametrize("state", [StateType.SCHEDULED, StateType.PAUSED])
def test_a_run_that_waits_is_never_dead_and_nobody_asks_for_its_heartbeat(server: Server, state: StateType) -> None:
    assert find_death(server, make_run(state), 7200) is None
    assert server.num_asked == 0


def test_a_run_without_a_state_is_not_judged(server: Server) -> None:
    assert find_death(server, FlowRun(id=uuid4(), flow_id=uuid4(), name="batch"), 7200) is None


def test_a_cancelling_run_whose_worker_is_gone_is_dead_too(server: Server) -> None:
    death = find_death(server, make_run(StateType.CANCELLING), 7200)
    assert death is not None
    assert STALE < death <= STALE * 1.1 + 2


def test_a_change_of_state_is_a_sign_of_life(server: Server) -> None:
    watcher, run = Pulse(STALE), make_run(StateType.PENDING)
    assert find_death(server, run, 800, watcher=watcher) is None
    started = make_run(StateType.RUNNING, run.id)
    assert find_death(server, started, STALE, watcher=watcher) is None


def test_another_start_of_the_same_run_is_a_sign_of_life(server: Server) -> None:
    watcher, run = Pulse(STALE), make_run()
    assert find_death(server, run, 250, watcher=watcher) is None
    assert find_death(server, make_run(run_id=run.id, run_count=2), 280, watcher=watcher) is None


def test_the_time_that_a_run_waited_to_be_taken_does_not_count(server: Server) -> None:
    watcher, run = Pulse(STALE), make_run()
    assert find_death(server, run, 290, watcher=watcher) is None
    assert find_death(server, make_run(StateType.SCHEDULED, run.id), 290, watcher=watcher) is None
    assert find_death(server, run, 290, watcher=watcher) is None


def test_the_clock_of_another_machine_does_not_matter(server: Server) -> None:
    """Signs are told apart by what they are: ids that do not rise, of a machine that lives in 1970, are as good as any."""
    run = make_run()
    ids = ["7", "3", "5", "1"]

    def beat(now: float) -> None:
        server.heartbeats[run.id] = ids[int(now // 200) % 4]

    assert find_death(server, run, 7200, beat) is None


def test_an_old_heartbeat_that_is_seen_for_the_first_time_starts_the_wait(server: Server) -> None:
    run = make_run()
    server.heartbeats[run.id] = "of yesterday"
    death = find_death(server, run, 7200)
    assert death is not None
    assert death > STALE


@pytest.mark.parametrize("seconds_away", [200.0, 400.0, 900.0])
def test_silence_while_the_server_was_away_is_nobodys_death(server: Server, seconds_away: float) -> None:
    """No look and no heartbeat for so long; then the looks go on at once, and the heartbeat comes half a minute later."""
    run, watcher = make_run(), Pulse(STALE)
    server.heartbeats[run.id] = "before"
    assert find_death(server, run, 60, watcher=watcher) is None
    server.now += seconds_away
    back_at = server.now

    def beat(now: float) -> None:
        server.heartbeats[run.id] = f"event-{now // 30}" if now >= back_at + 30 else "before"

    assert find_death(server, run, 7200, beat, watcher) is None


def test_a_run_that_died_while_the_server_was_away_is_found_later(server: Server) -> None:
    run, watcher = make_run(), Pulse(STALE)
    assert find_death(server, run, 60, watcher=watcher) is None
    server.now += 900
    death = find_death(server, run, 7200, watcher=watcher)
    assert death is not None
    assert STALE < death <= STALE * 1.1 + 2


def test_runs_are_watched_each_for_itself(server: Server) -> None:
    watcher, silent, well = Pulse(STALE), make_run(), make_run()
    dead = []
    for _ in range(600):
        server.heartbeats[well.id] = f"event-{server.now // 30}"
        dead += [run for run in (silent, well) if watcher.is_dead(run) and run not in dead]
        server.now += 2.0
    assert dead == [silent]


def test_a_forgotten_run_is_watched_anew(server: Server) -> None:
    watcher, run = Pulse(STALE), make_run()
    assert find_death(server, run, 290, watcher=watcher) is None
    watcher.forget(run)
    assert find_death(server, run, 290, watcher=watcher) is None
    watcher.forget(make_run())


def test_the_server_is_asked_ten_times_in_stale_seconds(server: Server) -> None:
    watcher, run = Pulse(STALE), make_run()
    assert find_death(server, run, 298, watcher=watcher) is None
    assert server.num_asked == 10

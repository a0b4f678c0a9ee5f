"""What a run does with the shards of flow runs that end, die, are cancelled or belong to others; the fleet is played, the files are real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Failed, Scheduled

from flows.work_pool import scoring
from miniplm.errors import DeviceError, ScoreError, StorageUnavailableError
from miniplm.records.manifests import ModelEntry
from miniplm.scoring.failures import record_failure
from miniplm.scoring.shards import ShardScoreState, check_score_shards
from miniplm.storage.root import Storage
from tests.flows.played_fleet import ENTRY, Fleet, install, run_scoring
from tests.miniplm.made_corpora import make_corpus, write_scores

KILLED = "Flow run infrastructure exited with non-zero status code 137."
ENCOUNTERED = "Flow run encountered an exception: "


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fleet]:
    def start(num_shards: int, num_workers: int = 1) -> Fleet:
        storage = Storage(str(tmp_path))
        played = Fleet(storage, make_corpus(storage, {"candidate": [[[1, 2, 0]]] * num_shards}), num_workers)
        install(played, monkeypatch)
        return played

    return start


# --- flow runs that do what they are given ---


def test_shards_go_out_in_batches_and_their_manifests_come_back_in_order(start: Callable[..., Fleet]) -> None:
    played = start(6)
    write_scores(played.storage, played.shards[1], "m", [1.5], [2])
    assert [manifest.shard_index for manifest in run_scoring(played)] == [0, 1, 2, 3, 4, 5]
    assert played.submitted == [[0, 2, 3, 4], [5]]
    first = next(iter(played.runs.values()))
    assert first.name == "score teacher made shard-00000 to 00004"
    assert first.tags == ["model:m", "corpus:made", "role:teacher", "run:ours", "parent:root"]
    assert (first.parameters["storage"], first.parameters["corpus_id"], first.parameters["role"]) == (
        played.storage.root,
        "made",
        "teacher",
    )
    assert ModelEntry.model_validate(first.parameters["model"]) == ENTRY


def test_where_all_is_scored_nothing_is_submitted(start: Callable[..., Fleet]) -> None:
    played = start(2)
    played.score(played.add([]), [0, 1])
    played.runs.clear()
    assert len(run_scoring(played)) == 2
    assert played.submitted == []


def test_two_thousand_shards_make_few_flow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start takes 60 s and a shard 30 s, so 200 of them hide the start; the first of each worker measures."""
    storage = Storage(str(tmp_path))
    small = make_corpus(storage, {"candidate": [[[1, 2, 0]]]})
    shards = tuple(small.shards[0].model_copy(update={"shard_index": index}) for index in range(2000))
    played = Fleet(storage, small.model_copy(update={"shards": shards}), num_workers=4)
    write_scores(storage, shards[0], "m", [1.5], [2])
    (made,) = check_score_shards(storage, small, "m")
    assert made.manifest is not None
    manifest = made.manifest.model_copy(update={"seconds": 30.0, "start_seconds": 59.9})
    scored: set[int] = set()

    def work(run: FlowRun, indices: list[int]) -> State:
        scored.update(indices)
        return Completed()

    def check(storage: Storage, shard: Any, model_id: str) -> ShardScoreState:
        index = shard.shard_index
        found = manifest.model_copy(update={"shard_index": index}) if index in scored else None
        return ShardScoreState(index, "done" if found else "missing", found)

    played.work = work
    install(played, monkeypatch)
    monkeypatch.setattr(scoring, "check_score_shard", check)
    done = run_scoring(played, "auto", [ShardScoreState(index, "missing") for index in range(2000)])
    assert [manifest.shard_index for manifest in done] == list(range(2000))
    assert [len(batch) for batch in played.submitted[:12]] == [1] * 4 + [200] * 8
    assert len(played.submitted) <= 20
    assert sorted(index for batch in played.submitted for index in batch) == list(range(2000))


def test_a_pool_without_workers_is_told_every_five_minutes_and_its_work_waits(start: Callable[..., Fleet]) -> None:
    played = start(8, num_workers=0)
    played.work = lambda run, indices: played.score(run, indices) if played.now > 1700 else Scheduled()
    assert len(run_scoring(played)) == 8
    assert played.submitted == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert played.warnings[0].startswith("no worker of pool gpu is online; 8 shards of teacher wait. Start one: `deployments/gpu")
    assert len(played.warnings) == 3


# --- flow runs that die ---


def test_what_a_crashed_flow_run_has_not_finished_is_submitted_again(start: Callable[..., Fleet]) -> None:
    played = start(4)

    def work(run: FlowRun, indices: list[int]) -> State:
        if len(played.submitted) > 1:
            return played.score(run, indices)
        played.score(run, indices[:1])
        return Crashed(message=KILLED)

    played.work = work
    assert len(run_scoring(played)) == 4
    assert played.submitted == [[0, 1, 2, 3], [1, 2, 3]]
    # The two that it was at work on, and no more.
    name = "score teacher made shard-00000 to 00003"
    assert played.warnings == [
        f"shard-0000{index} of teacher is given to another worker: {name} crashed: {KILLED}" for index in (1, 2)
    ]


def test_the_two_first_unfinished_shards_of_three_crashes_fail_as_poison_and_the_others_are_scored(
    start: Callable[..., Fleet],
) -> None:
    played = start(6)

    def work(run: FlowRun, indices: list[int]) -> State:
        if 1 not in indices:
            return played.score(run, indices)
        played.score(run, indices[: indices.index(1)])
        return Crashed(message=KILLED)

    played.work = work
    with pytest.raises(
        ScoreError,
        match=r"2 of 6 shards could not be scored by the teacher: shard-00001: tried 3 times; the last time: score teacher made "
        r"shard-00001 to 00004 crashed: Flow run .* code 137., shard-00002: tried 3 times.*`miniplm rescore ours --failed",
    ):
        run_scoring(played)
    assert played.submitted == [[0, 1, 2, 3], [1, 2, 3, 4], [5], [1, 2, 3, 4], [3, 4]]
    assert [state.shard_index for state in check_score_shards(played.storage, played.corpus, "m") if state.state == "done"] == [
        0,
        3,
        4,
        5,
    ]


def test_a_silent_flow_run_is_marked_crashed_and_its_shards_go_to_others(start: Callable[..., Fleet]) -> None:
    played = start(4)
    played.work = lambda run, indices: played.score(run, indices) if len(played.submitted) > 1 else None
    assert len(run_scoring(played)) == 4
    assert played.crashed == ["no sign of life for 60 s: its worker or the way to it is gone"]
    assert played.submitted == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert 60 < played.now - 1000 < 90


# --- shards that fail ---


def test_a_lasting_failure_is_told_once_and_never_submitted_again(start: Callable[..., Fleet]) -> None:
    played = start(6)

    def work(run: FlowRun, indices: list[int]) -> State:
        played.score(run, [index for index in indices if index != 2])
        if 2 not in indices:
            return Completed()
        played.record(run, 2, ScoreError("3 of 9 sequences have a non-finite NLL"))
        return Failed(message=f"{ENCOUNTERED}ScoreError: 1 of 4 shards could not be scored by the teacher")

    played.work = work
    reason = r"ScoreError: 3 of 9 sequences have a non-finite NLL \(worker gpu-1\)"
    with pytest.raises(ScoreError, match=rf"1 of 6 shards could not be scored by the teacher: shard-00002: {reason}. The others"):
        run_scoring(played)
    assert played.submitted == [[0, 1, 2, 3], [4, 5]]
    assert len(played.errors) == 1


@pytest.mark.parametrize("num_faults", [2, 3])
def test_a_passing_failure_is_tried_three_times_in_all(start: Callable[..., Fleet], num_faults: int) -> None:
    played = start(3)

    def work(run: FlowRun, indices: list[int]) -> State:
        if len(played.submitted) > num_faults:
            return played.score(run, indices)
        played.score(run, [index for index in indices if index != 1])
        played.record(run, 1, DeviceError("cuda failed"))
        return Failed(message=f"{ENCOUNTERED}ScoreError: 1 of 3 shards could not be scored by the teacher")

    played.work = work
    if num_faults == 2:
        assert len(run_scoring(played)) == 3
    else:
        with pytest.raises(
            ScoreError, match=r"shard-00001: tried 3 times; the last time: DeviceError: cuda failed \(worker gpu-1\)"
        ):
            run_scoring(played)
    assert played.submitted == [[0, 1, 2], [1], [1]]


def test_a_failure_of_an_earlier_flow_run_says_nothing_of_this_one(start: Callable[..., Fleet]) -> None:
    played = start(2)
    record_failure(played.storage, played.shards[0], ENTRY, ScoreError("of yesterday"), "gpu-9", str(uuid4()))
    played.work = lambda run, indices: played.score(run, indices) if len(played.submitted) > 1 else Crashed(message=KILLED)
    assert len(run_scoring(played)) == 2
    assert played.errors == []


def test_a_worker_of_another_version_fails_its_batch_at_once(start: Callable[..., Fleet]) -> None:
    played = start(4)
    message = "VersionError: worker gpu-1 has miniplm 1, the run was started by miniplm 2"
    played.work = lambda run, indices: Failed(message=ENCOUNTERED + message)
    with pytest.raises(ScoreError, match=rf"4 of 4 shards .*: shard-00000: {message}, shard-00001: {message}"):
        run_scoring(played)
    assert played.submitted == [[0, 1, 2, 3]]


@pytest.mark.parametrize("state", [Failed(message="ConnectError: the server"), Completed()])
def test_shards_that_a_flow_run_left_without_a_reason_are_tried_three_times(start: Callable[..., Fleet], state: State) -> None:
    played = start(2)
    played.work = lambda run, indices: state
    with pytest.raises(ScoreError, match=r"shard-00000: tried 3 times; the last time: score teacher made .* (failed|completed): "):
        run_scoring(played)
    assert played.submitted == [[0, 1]] * 3


def test_a_failure_that_could_not_be_noted_as_the_storage_was_away_is_passing(start: Callable[..., Fleet]) -> None:
    played = start(2)
    away = StorageUnavailableError("s3://bucket does not answer")
    message = (
        f"{ENCOUNTERED}ScoreError: 2 of 2 shards could not be scored by the teacher: shard-00000: {type(away).__name__}: {away}"
    )
    played.work = lambda run, indices: played.score(run, indices) if len(played.submitted) > 1 else Failed(message=message)
    assert len(run_scoring(played)) == 2


# --- people who cancel, and other runs ---


def test_a_batch_of_this_run_that_a_person_cancels_fails_its_shards(start: Callable[..., Fleet]) -> None:
    played = start(4)

    def work(run: FlowRun, indices: list[int]) -> State:
        return Cancelled() if 0 in indices else played.score(run, indices)

    played.work = work
    with pytest.raises(
        ScoreError, match=r"2 of 4 shards .*: shard-00000: score teacher made shard-00000 to 00001 was cancelled, sh"
    ):
        run_scoring(played, 2)
    assert played.submitted == [[0, 1], [2, 3]]


@pytest.mark.parametrize("num_batches", [1, 8])
def test_batches_that_are_cancelled_with_another_run_free_their_shards(start: Callable[..., Fleet], num_batches: int) -> None:
    played = start(10)
    theirs = [played.add([index], name=f"theirs {index}") for index in range(num_batches)]
    played.work = lambda run, indices: Cancelled() if run.name.startswith("theirs") else played.score(run, indices)
    assert len(run_scoring(played, 5)) == 10
    assert len(theirs) == num_batches
    assert sorted(index for batch in played.submitted for index in batch) == list(range(10))
    assert played.errors == []


def test_shards_that_another_run_has_on_the_pool_are_waited_for(start: Callable[..., Fleet]) -> None:
    played = start(5)
    played.add([1, 3])
    assert len(run_scoring(played)) == 5
    assert played.submitted == [[0, 2, 4]]


def test_flow_runs_of_another_storage_or_corpus_take_no_shards(start: Callable[..., Fleet]) -> None:
    played = start(2)
    make_corpus(played.storage, {"candidate": [[[5, 6, 0]]] * 2}, corpus_id="strange")
    played.add([0, 1], storage="s3://elsewhere")
    played.add([0, 1], corpus_id="strange")
    played.work = lambda run, indices: None if run.name == "theirs" else played.score(run, indices)
    played.num_workers = 3
    assert len(run_scoring(played)) == 2
    assert played.submitted == [[0, 1]]


def test_shards_that_a_run_over_the_corpus_it_extends_has_on_the_pool_are_waited_for(start: Callable[..., Fleet]) -> None:
    played = start(2)
    own = make_corpus(played.storage, {"candidate": [[[5, 6, 0]]] * 3}, corpus_id="child").shards[2]
    played.add([0, 1])
    played.corpus = played.corpus.model_copy(update={"corpus_id": "child", "shards": (*played.corpus.shards, own)})
    played.shards[2] = own
    assert len(run_scoring(played)) == 3
    assert played.submitted == [[2]]


@pytest.mark.parametrize("is_done", [False, True])
def test_what_another_run_took_while_this_one_waited_for_the_lock_is_its(start: Callable[..., Fleet], is_done: bool) -> None:
    """Its flow run came, and may have ended, between two looks: then only the storage root tells of it."""
    played = start(4)

    def take() -> None:
        if is_done:
            for index in (0, 1):
                write_scores(played.storage, played.shards[index], "m", [1.5], [2])
        elif len(played.runs) == 0:
            played.add([0, 1])

    played.on_lock = take
    played.num_workers = 2
    assert len(run_scoring(played)) == 4
    assert played.submitted == [[2, 3]]


# --- where nothing works ---


def test_six_flow_runs_in_a_row_that_score_nothing_end_it(start: Callable[..., Fleet]) -> None:
    played = start(20)
    played.work = lambda run, indices: Crashed(message=KILLED)
    with pytest.raises(ScoreError, match=r"20 of 20 shards .*6 flow runs in a row scored nothing; the last, score teacher made"):
        run_scoring(played, 1)
    assert len(played.submitted) == 6


def test_flow_runs_that_score_something_before_they_die_are_not_barren(start: Callable[..., Fleet]) -> None:
    """Ten machines are taken away in a row, each after one shard of its batch, which the table has shown as done by then."""
    played = start(22)
    played.table_is_due = True

    def work(run: FlowRun, indices: list[int]) -> State | None:
        if len(played.submitted) > 10:
            return played.score(run, indices)
        if (played.storage.root, indices[0]) in dead_next:
            return Crashed(message=KILLED)
        dead_next.add((played.storage.root, indices[0]))
        played.score(run, indices[:1])
        return None

    dead_next: set[tuple[str, int]] = set()
    played.work = work
    assert len(run_scoring(played, 2)) == 22


def test_shards_that_fail_for_reasons_of_their_own_do_not_end_it(start: Callable[..., Fleet]) -> None:
    played = start(10)

    def work(run: FlowRun, indices: list[int]) -> State:
        if indices[0] > 7:
            return played.score(run, indices)
        played.record(run, indices[0], ScoreError("NaN"))
        return Failed(message=f"{ENCOUNTERED}ScoreError: 1 of 1 shards could not be scored by the teacher")

    played.work = work
    with pytest.raises(ScoreError, match="8 of 10 shards could not be scored"):
        run_scoring(played, 1)
    assert [index for (index,) in played.submitted] == list(range(10))


# --- what the server shows ---


def test_a_flow_run_that_lives_but_was_not_listed_is_not_repeated(start: Callable[..., Fleet]) -> None:
    played = start(2)

    def work(run: FlowRun, indices: list[int]) -> State | None:
        played.hidden = [run.id] if played.now < 1006 else []
        return played.score(run, indices) if played.now > 1010 else None

    played.work = work
    assert len(run_scoring(played)) == 2
    assert played.submitted == [[0, 1]]


def test_a_flow_run_that_a_person_deletes_frees_its_shards(start: Callable[..., Fleet]) -> None:
    played = start(2)
    theirs = played.add([0])

    def work(run: FlowRun, indices: list[int]) -> State:
        del played.runs[theirs.id]
        played.work = played.score
        return Completed()

    played.work = work
    assert len(run_scoring(played)) == 2

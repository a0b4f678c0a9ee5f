"""The shipped automations, on a real server: they apply twice without a change, and they act as their comments say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
import yaml
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.events.schemas.automations import AutomationCore, Posture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Crashed, Failed, Pending, Running, Scheduled

from tests.conftest import ROOT
from tests.prefect_server import share_prefect_server

SCRIPT = ROOT / "deployments" / "apply_automations.py"
FILES = sorted((ROOT / "deployments" / "automations").glob("*.yaml"))
NAMES = {"miniplm: crashed run", "miniplm: failed run", "miniplm: low throughput", "miniplm: stale run", "miniplm: stale worker"}
BLOCK = "custom-webhook/miniplm-test"


@flow(name="run-miniplm")
def parent() -> None:
    """A run of this name; its body never runs here."""


@flow(name="score-shards")
def child() -> None:
    """A run of another name."""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("apply_automations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quiet_server(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A server of its own: automations act on the runs of all, and under the events of other tests a pool's may be taken in another order."""
    return share_prefect_server(tmp_path_factory.mktemp("automations"))


@pytest.fixture(scope="module")
def client(quiet_server) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: quiet_server["PREFECT_API_URL"]}),
        get_client(sync_client=True) as client,
    ):
        yield client
        for automation in client.read_automations():
            client.delete_automation(automation.id)


@pytest.fixture(scope="module")
def notifications(client) -> Iterator[list[str]]:
    """What the notification block has sent."""
    received: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        block = CustomWebhookNotificationBlock(
            name="test", url=f"http://127.0.0.1:{server.server_port}/", json_data={"text": "{{subject}} | {{body}}"}
        )
        CustomWebhookNotificationBlock.register_type_and_schema()
        block.save(BLOCK.partition("/")[2], overwrite=True)
        yield received
        server.shutdown()


@pytest.fixture(scope="module")
def applied(client, script, notifications):
    """The shipped automations, with those that wait one minute or five waiting ten seconds, the least that Prefect allows."""
    outcomes = script.apply_folder(client, script.FOLDER, BLOCK)
    for automation in client.read_automations():
        if automation.trigger.posture == Posture.Proactive:
            automation.trigger.within = timedelta(seconds=10)
            client.update_automation(
                automation.id, AutomationCore.model_validate(automation.model_dump(exclude={"id", "owner_resource"}))
            )
    time.sleep(1)  # the server's trigger service takes notice of new automations between two events
    return outcomes


def emit(client: SyncPrefectClient, event: str, resource: dict, related: list[dict] | None = None, payload: dict | None = None):
    body = {
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": resource,
        "related": related or [],
        "payload": payload or {},
        "id": str(uuid4()),
    }
    client.request("POST", "/events", json=[body]).raise_for_status()


def beat(client: SyncPrefectClient, run: FlowRun) -> None:
    """The event that Prefect's flow engine emits, with its labels and related resources."""
    emit(
        client,
        "prefect.flow-run.heartbeat",
        {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
        [
            {"prefect.resource.id": f"prefect.flow.{run.flow_id}", "prefect.resource.role": "flow"},
            *({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in run.tags),
        ],
    )


def wait_for(what, timeout_seconds: float):
    """The first true value of `what()`; fails after the timeout with the last one."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s"
        time.sleep(0.2)
    return value


def state_of(client: SyncPrefectClient, run_id: UUID) -> str:
    return client.read_flow_run(run_id).state.type.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_says_what_it_does_and_is_all_known_to_prefect(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    loaded = yaml.safe_load(text)
    automation = AutomationCore.model_validate(loaded)
    assert set(loaded) <= set(AutomationCore.model_fields)
    assert set(loaded["trigger"]) <= set(type(automation.trigger).model_fields)
    for given, action in zip(loaded["actions"], automation.actions, strict=True):
        assert set(given) <= set(type(action).model_fields)
    assert automation.name in NAMES
    assert automation.enabled


def test_the_patience_with_a_silent_run_is_ten_beats():
    """With `within` below a few beats Prefect's own documented automation ended healthy runs."""
    stale = AutomationCore.model_validate(yaml.safe_load((ROOT / "deployments" / "automations" / "stale-run.yaml").read_text()))
    assert stale.trigger.within == 10 * timedelta(seconds=30)
    assert not stale.actions[0].force


def test_applied_twice_changes_nothing_and_without_a_block_skips_what_notifies(client, script, notifications):
    first = dict(script.apply_folder(client, script.FOLDER, None))
    assert {name for name, outcome in first.items() if outcome == "created"} == {"miniplm: crashed run", "miniplm: stale run"}
    assert sum("skipped" in outcome for outcome in first.values()) == 3
    assert set(dict(script.apply_folder(client, script.FOLDER, BLOCK))) == NAMES
    before = {automation.name: automation for automation in client.read_automations()}
    assert dict(script.apply_folder(client, script.FOLDER, BLOCK)) == dict.fromkeys(NAMES, "unchanged")
    assert {automation.name: automation for automation in client.read_automations()} == before
    assert set(before) == NAMES


def test_what_was_edited_is_put_right_and_what_was_paused_stays_paused(client, script, notifications):
    script.apply_folder(client, script.FOLDER, BLOCK)
    edited = client.read_automations_by_name("miniplm: crashed run")[0]
    wrong = AutomationCore.model_validate({**edited.model_dump(exclude={"id", "owner_resource"}), "description": "another"})
    client.update_automation(edited.id, wrong)
    client.pause_automation(edited.id)
    assert dict(script.apply_folder(client, script.FOLDER, BLOCK))[edited.name] == "updated"
    now = client.read_automation(edited.id)
    assert (now.description, now.enabled) == (edited.description, False)
    client.resume_automation(edited.id)


@pytest.fixture(scope="module")
def world(client, applied, notifications):
    """Runs and a worker in all the ways to go silent, all at once, since each takes its seconds."""
    pool = client.create_work_pool(WorkPoolCreate(name="miniplm-test", type="process"))
    deployment_id = client.create_deployment(
        flow_id=client.create_flow_from_name("run-miniplm"),
        name="automations-test",
        work_pool_name=pool.name,
        tags=["miniplm"],
        entrypoint="flows.run_miniplm.run_miniplm",
    )
    client.send_worker_heartbeat("miniplm-test", "only-worker", heartbeat_interval_seconds=1)
    runs = {
        "silent": client.create_flow_run(child, tags=["miniplm"]),
        "beating": client.create_flow_run(child, tags=["miniplm"]),
        "completed": client.create_flow_run(child, tags=["miniplm"]),
        "of others": client.create_flow_run(child, tags=["something-else"]),
    }
    for run in runs.values():
        beat(client, run)
        client.set_flow_run_state(run.id, Running())
    client.set_flow_run_state(runs["completed"].id, Completed())
    stop = threading.Event()

    def go_on_beating() -> None:
        with SyncPrefectClient(str(client.api_url)) as another:
            while not stop.wait(2):
                beat(another, runs["beating"])

    thread = threading.Thread(target=go_on_beating)
    thread.start()
    yield SimpleNamespace(pool=pool, deployment_id=deployment_id, runs=runs)
    stop.set()
    thread.join()


def test_a_crashed_parent_is_scheduled_again_twice_and_then_left(client, world, script, tmp_path):
    def set_state(run: FlowRun, state: State) -> None:
        client.set_flow_run_state(run.id, state, force=True)
        time.sleep(0.4)  # as no process is faster; events that come at once are taken in any order

    def crash(run: FlowRun) -> None:
        for state in (Pending(), Running(), Crashed(message="killed")):
            set_state(run, state)

    once, twice, thrice, repaired, never_started = (client.create_flow_run_from_deployment(world.deployment_id) for _ in range(5))
    crash(repaired)
    set_state(repaired, Scheduled())
    set_state(repaired, Running())
    for _ in range(3):
        crash(thrice)
    crash(twice)
    crash(twice)
    crash(once)
    client.set_flow_run_state(never_started.id, Crashed(message="no such image"), force=True)
    without_deployment = client.create_flow_run(parent, tags=["miniplm"])
    child_run = client.create_flow_run(child, tags=["miniplm"])
    crash(without_deployment)
    crash(child_run)
    # A new version of the automation, as an update of the fleet brings it, forgets none of them.
    content = yaml.safe_load((script.FOLDER / "crashed-run.yaml").read_text()) | {"description": "A new version."}
    content["trigger"]["within"] = 10
    (tmp_path / "crashed-run.yaml").write_text(yaml.safe_dump(content))
    ((name, outcome),) = script.apply_folder(client, tmp_path, BLOCK)
    assert name == "miniplm: crashed run"
    assert re.fullmatch(r"updated; \d of its waits begin anew", outcome)
    # As each `up` of a fleet does: a server that was stopped may have forgotten that it waits.
    ((_, again),) = script.apply_folder(client, tmp_path, BLOCK)
    assert re.fullmatch(r"unchanged; \d of its waits begin anew", again)
    for run, count in ((once, 1), (twice, 2)):
        wait_for(lambda run=run: state_of(client, run.id) == "SCHEDULED", 40)
        assert client.read_flow_run(run.id).run_count == count
        states = sorted(client.read_flow_run_states(run.id), key=lambda state: state.timestamp)
        last = max(index for index, state in enumerate(states) if state.name == "Crashed")
        crashed, scheduled = states[last : last + 2]
        # Twice where the events of two crashes in one second were taken in another order; the run waits then as before.
        assert {state.name for state in states[last + 1 :]} <= {"Scheduled", "Late"}
        # Not at once: a worker's second report of the same death must find the run Crashed.
        assert scheduled.timestamp - crashed.timestamp > timedelta(seconds=9)
    time.sleep(3)  # the others have waited as long
    left = (thrice, never_started, without_deployment, child_run)
    assert {state_of(client, run.id) for run in left} == {"CRASHED"}
    assert client.read_flow_run(thrice.id).run_count == 3
    assert state_of(client, repaired.id) == "RUNNING"


def test_all_runs_are_looked_at_and_only_what_begins_a_wait_is_told(script):
    """Of a fleet with more runs than the server gives at once, whose parent is the oldest of them."""
    crashed = {"name": "Crashed", "type": "CRASHED"}
    common = {"name": "a run", "state": crashed, "tags": ["miniplm"], "run_count": 1, "deployment_id": "1", "flow_id": "child"}
    runs = [
        common | {"id": "parent", "flow_id": "parent"},
        common | {"id": "given up", "flow_id": "parent", "run_count": 3},
        common | {"id": "at work", "flow_id": "parent", "state": {"name": "Running", "type": "RUNNING"}},
        common | {"id": "of a terminal", "flow_id": "parent", "deployment_id": None},
        *(common | {"id": str(index)} for index in range(300)),
    ]
    stored = {
        "/flow_runs/filter": runs,
        "/flows/filter": [{"id": "parent", "name": "run-miniplm"}, {"id": "child", "name": "score"}],
    }
    told: list[str] = []

    def answer(method: str, path: str, json) -> SimpleNamespace:
        if path == "/events":
            told.extend(event["resource"]["prefect.resource.id"] for event in json)
        return SimpleNamespace(json=lambda: stored[path][json["offset"] :][:200])

    wanted = script.read_automation(script.FOLDER / "crashed-run.yaml")
    assert script.renew_waits(SimpleNamespace(request=answer), wanted) == 1
    assert told == ["prefect.flow-run.parent"]


def test_a_failed_parent_is_told_and_another_flow_is_not(client, world, notifications):
    failed, other = client.create_flow_run(parent, tags=["miniplm"]), client.create_flow_run(child, tags=["miniplm"])
    for run in (other, failed):
        client.set_flow_run_state(run.id, Running())
        client.set_flow_run_state(run.id, Failed(message="the tokenizer is damaged"))
    told = wait_for(lambda: [text for text in notifications if failed.name in text], 40)
    assert "is Failed after 1 starts" in told[0]
    assert "the tokenizer is damaged" in told[0]
    assert str(failed.id) in told[0]
    assert not [text for text in notifications if other.name in text]


def test_low_throughput_is_told_once_an_hour_and_corpus(client, world, notifications):
    run = world.runs["beating"]
    for corpus in ("aaa", "aaa", "bbb"):
        emit(
            client,
            "miniplm.throughput-low",
            {"prefect.resource.id": f"miniplm.corpus.{corpus}"},
            [{"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.role": "flow-run"}],
            {"tokens_per_second": 12.5},
        )
    wait_for(lambda: [text for text in notifications if "miniplm.corpus.bbb" in text], 40)
    told = [text for text in notifications if "miniplm.corpus.aaa" in text]
    assert len(told) == 1
    assert "12.5" in told[0]
    assert run.name in told[0]


def test_a_silent_run_crashes_and_those_that_beat_or_ended_do_not(client, world):
    runs = world.runs
    wait_for(lambda: state_of(client, runs["silent"].id) == "CRASHED", 40)
    assert "No heartbeat for 300 seconds" in client.read_flow_run(runs["silent"].id).state.message
    time.sleep(3)  # the others went silent in the same second, or never
    states = {name: state_of(client, run.id) for name, run in runs.items()}
    assert states == {"silent": "CRASHED", "beating": "RUNNING", "completed": "COMPLETED", "of others": "RUNNING"}


def list_pool_events(client: SyncPrefectClient, pool) -> list[str]:
    """The events of a pool, oldest first."""
    resource = f"prefect.work-pool.{pool.id}"
    found = client.request("POST", "/events/filter", json={"filter": {"any_resource": {"id": [resource]}, "order": "ASC"}}).json()
    return [event["event"] for event in found["events"] if event["resource"]["prefect.resource.id"] == resource]


def test_a_pool_whose_last_worker_is_gone_is_told(client, world, notifications):
    """The worker beat once, with an interval of one second; the server itself finds that it is gone."""
    wait_for(lambda: list_pool_events(client, world.pool).count("prefect.work-pool.not-ready") == 2, 60)
    assert list_pool_events(client, world.pool) == [
        "prefect.work-pool.created",
        "prefect.work-pool.not-ready",
        "prefect.work-pool.ready",
        "prefect.work-pool.not-ready",
    ]
    told = wait_for(lambda: [text for text in notifications if "no worker for miniplm-test" in text], 60)
    assert f"/work-pools/work-pool/{world.pool.name}" in told[0]


@pytest.mark.parametrize(
    ("url", "arguments", "message"),
    [
        (None, [], "PREFECT_API_URL is not set"),
        ("http://127.0.0.1:9/api", [], "no answer from the Prefect server at http://127.0.0.1:9/api"),
        (None, ["--folder", "/nonexistent"], "PREFECT_API_URL is not set"),
    ],
)
def test_without_a_server_it_says_so(script, capsys, url, arguments, message):
    with temporary_settings({PREFECT_API_URL: url} if url else {}, restore_defaults=None if url else {PREFECT_API_URL}):
        assert script.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("notify", "message"),
    [("slack-webhook", "needs BLOCK_TYPE_SLUG/BLOCK_NAME"), ("slack-webhook/nobody", "the server has no such block")],
)
def test_a_block_that_is_not_there_is_said_before_anything_is_written(client, script, notify, message):
    before = client.read_automations()
    with pytest.raises(script.ApplyError, match=message):
        script.apply_folder(client, script.FOLDER, notify)
    assert client.read_automations() == before


def test_a_file_that_is_no_automation_is_named(client, script, tmp_path):
    (tmp_path / "broken.yaml").write_text("name: x\nactions: []\n")
    with pytest.raises(script.ApplyError, match=r"broken\.yaml.*trigger"):
        script.apply_folder(client, tmp_path, None)
    with pytest.raises(script.ApplyError, match=r"no \*\.yaml there"):
        script.apply_folder(client, tmp_path / "empty", None)


def test_help_teaches():
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "--notify slack-webhook/miniplm" in done.stdout

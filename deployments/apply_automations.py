"""Makes the Prefect server's automations those of a folder of YAML files: creates what is missing, updates what differs.

An automation is found by its name, so a second call changes none. One that somebody paused stays paused, and automations
that no file names are left alone. Waits for runs that are not over begin anew each time, as the server may have lost them (`renew_waits`).
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import Event, ResourceSpecification
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

FOLDER = Path(__file__).resolve().parent / "automations"
# Stands in a file for the notification block, whose id only a server knows.
NO_BLOCK = UUID(int=0)
# How long ago a run may have started whose waits are begun anew.
REMEMBERED = timedelta(days=7)
# The server takes notice of a new trigger between two events.
SECONDS_UNTIL_KNOWN = 1

EPILOG = """\
A notification goes through a block, which is made once, on the server's Blocks page or in Python:

    from prefect.blocks.notifications import SlackWebhook
    SlackWebhook(url="https://hooks.slack.com/...").save("miniplm")

    PREFECT_API_URL=http://127.0.0.1:4200/api python deployments/apply_automations.py --notify slack-webhook/miniplm

Exit codes: 0 done, 2 bad input or no answer from the server (nothing is half written: the same command goes on).
"""


class ApplyError(Exception):
    """What failed, and what to do; for a person."""


def read_automation(path: Path) -> AutomationCore:
    """The automation of a file. Raises `ApplyError` with the fields that Prefect does not take."""
    try:
        return AutomationCore.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ApplyError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
        raise ApplyError(f"{path}: not an automation that Prefect takes: {wrong}") from error


def notifies(automation: AutomationCore) -> bool:
    return any(isinstance(action, SendNotification) for action in automation.actions)


def find_block(client: SyncPrefectClient, name: str) -> UUID:
    """The id of the block SLUG/NAME. Raises `ApplyError` when there is none."""
    slug, _, block = name.partition("/")
    if not slug or not block:
        raise ApplyError(
            f"--notify {name}: needs BLOCK_TYPE_SLUG/BLOCK_NAME, such as slack-webhook/miniplm (`prefect block ls` lists them)"
        )
    try:
        return client.read_block_document_by_name(name=block, block_type_slug=slug, include_secrets=False).id
    except ObjectNotFound as error:
        raise ApplyError(f"--notify {name}: the server has no such block; `prefect block ls` lists those it has") from error


def set_block(automation: AutomationCore, block_id: UUID) -> None:
    for action in automation.actions:
        if isinstance(action, SendNotification) and action.block_document_id == NO_BLOCK:
            action.block_document_id = block_id


def apply_automation(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Creates or updates one automation by its name, and says which: created, updated or unchanged; and how many runs it waits for anew."""
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return "created"
    if len(found) > 1:
        ids = ", ".join(str(automation.id) for automation in found)
        raise ApplyError(
            f"{len(found)} automations are named {wanted.name!r} ({ids}); delete all but one: prefect automation delete --id ID"
        )
    current = found[0]
    wanted.enabled = current.enabled
    outcome = "unchanged" if is_same(current, wanted) else "updated"
    if outcome == "updated":
        client.update_automation(current.id, wanted)
        time.sleep(SECONDS_UNTIL_KNOWN)
    num_waits = renew_waits(client, wanted)
    return f"{outcome}; {num_waits} of its waits begin anew" if num_waits else outcome


def renew_waits(client: SyncPrefectClient, wanted: AutomationCore) -> int:
    """Begins the waits of an automation anew for flow runs that are not over; gives their number.

    The server loses a wait in two ways, and a run that has crashed just before would never be scheduled again: where the server is stopped
    before it has taken notice of the event, and where the automation is updated, as it keeps waits under the id of the trigger. So what a
    run's state says is told once more, where that begins a wait; who is notified of crashes hears of the run twice.
    """
    trigger = wanted.trigger
    if not isinstance(trigger, EventTrigger) or trigger.posture != Posture.Proactive:
        return 0
    since = (datetime.now(UTC) - REMEMBERED).isoformat()
    runs = {"state": {"type": {"any_": ["RUNNING", "CRASHED"]}}, "tags": {"all_": ["miniplm"]}, "start_time": {"after_": since}}
    found = list_all(client, "/flow_runs/filter", {"flow_runs": runs, "sort": "START_TIME_ASC"})
    flows = {flow["id"]: flow["name"] for flow in list_all(client, "/flows/filter", {})}
    begun = [event for run in found for event in describe_state(run, flows, trigger.after) if is_of(trigger, event)]
    for event in begun:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])
    return len(begun)


def list_all(
    client: SyncPrefectClient, path: Literal["/flows/filter", "/flow_runs/filter"], asked: dict[str, Any]
) -> list[dict[str, Any]]:
    """All that a filter finds, of which the server gives 200 at a time."""
    found: list[dict[str, Any]] = []
    while page := client.request("POST", path, json=asked | {"offset": len(found)}).json():
        found += page
    return found


def describe_state(run: dict[str, Any], flows: dict[str, str], names: set[str]) -> list[Event]:
    """The event among some by which a run came to its state, or by which it would say that it is at work; none where it is neither."""
    state = run["state"]
    told = [f"prefect.flow-run.{state['name']}", *(["prefect.flow-run.heartbeat"] if state["type"] == "RUNNING" else [])]
    labels = {
        "prefect.resource.id": f"prefect.flow-run.{run['id']}",
        "prefect.resource.name": run["name"],
        "prefect.run-count": str(run["run_count"]),
        "prefect.state-name": state["name"],
        "prefect.state-type": state["type"],
    }
    beside = [("flow", run["flow_id"], flows[run["flow_id"]]), *(("tag", tag, tag) for tag in run["tags"])]
    if run["deployment_id"]:
        beside.append(("deployment", run["deployment_id"], ""))
    related = [
        {"prefect.resource.id": f"prefect.{role}.{one}", "prefect.resource.role": role, "prefect.resource.name": name}
        for role, one, name in beside
    ]
    content = {"occurred": datetime.now(UTC), "resource": labels, "related": related}
    return [Event.model_validate(content | {"event": name, "id": uuid4()}) for name in told if name in names]


def is_of(trigger: EventTrigger, event: Event) -> bool:
    """Whether a trigger looks at an event, by the resources that it is about."""
    match = ResourceSpecification.model_validate(trigger.match)
    wanted = trigger.match_related if isinstance(trigger.match_related, list) else [trigger.match_related]
    beside = [ResourceSpecification.model_validate(one) for one in wanted]
    return match.includes([event.resource]) and all(one.includes(event.related) for one in beside)


def is_same(current: Automation, wanted: AutomationCore) -> bool:
    """Whether an update would change anything; `owner_resource` is the server's own."""
    fields = set(AutomationCore.model_fields) - {"owner_resource"}
    return current.model_dump(include=fields) == wanted.model_dump(include=fields)


def apply_folder(client: SyncPrefectClient, folder: Path, notify: str | None) -> list[tuple[str, str]]:
    """Applies every file of a folder; gives (name, outcome) in the order of the files."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ApplyError(f"{folder}: no *.yaml there; --folder names the folder with the automations")
    # Read all, and find the block, before the first is written.
    automations = [read_automation(path) for path in paths]
    block_id = find_block(client, notify) if notify else None
    outcomes = []
    for automation in automations:
        if notifies(automation):
            if block_id is None:
                outcomes.append((automation.name, "skipped: it notifies, and there is no --notify"))
                continue
            set_block(automation, block_id)
        outcomes.append((automation.name, apply_automation(client, automation)))
    return outcomes


def check_server(client: SyncPrefectClient, url: str) -> None:
    if (error := client.api_healthcheck()) is not None:
        raise ApplyError(f"no answer from the Prefect server at {url} ({type(error).__name__}); start it: prefect server start")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--notify",
        metavar="SLUG/NAME",
        help="the block that sends notifications, as block type slug and block name; without it automations that notify are skipped",
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder with one automation a *.yaml (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    url = PREFECT_API_URL.value()
    try:
        if not url:
            raise ApplyError(
                "PREFECT_API_URL is not set, so there is no server that would keep automations; "
                "set it, such as PREFECT_API_URL=http://127.0.0.1:4200/api"
            )
        with get_client(sync_client=True) as client:
            check_server(client, url)
            for name, outcome in apply_folder(client, options.folder, options.notify):
                print(f"{name}: {outcome}")
    except ApplyError as error:
        print(f"apply_automations: {error}", file=sys.stderr)
        return 2
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        advice = (
            "; set PREFECT_API_AUTH_STRING to what the server was started with" if status == 401 else f": {error.response.text}"
        )
        print(f"apply_automations: {url} answered {status}{advice}", file=sys.stderr)
        return 2
    except httpx.HTTPError as error:
        print(f"apply_automations: {url} stopped answering ({type(error).__name__}); run the same command again", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

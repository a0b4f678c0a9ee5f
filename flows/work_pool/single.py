"""Has one piece of work, such as a training, done by a worker of a pool, once, however many ask for it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run as this_run

from flows.work_pool import fleet
from flows.work_pool.failures import is_lasting_message, strip_message
from flows.work_pool.pulse import Pulse
from flows.work_pool.submission_lock import submission_lock
from miniplm import __version__
from miniplm.errors import PoolWorkError
from miniplm.run.plan import RunPlan
from miniplm.storage.root import digest_content

_POLL_SECONDS = 2.0
_MOST_TRIES = 3


def run_on_pool(deployment: str, name: str, parameters: dict[str, Any], plan: RunPlan, work_tag: str) -> None:
    """Waits until a flow run of the deployment, with these parameters and this version, has done the work that `work_tag` names.

    One that lives already, of this run or another, is waited for; where its worker dies another is started, which goes
    on from what the storage root has. Raises `PoolWorkError` with the reason where the work itself failed.
    """
    log = get_run_logger()
    pulse = Pulse(plan.execution.stale_seconds)
    for number in range(1, _MOST_TRIES + 1):
        run = _wait(_find_or_submit(deployment, name, parameters, plan, work_tag), pulse, plan)
        state = run.state
        if state is not None and state.is_completed():
            return
        message = strip_message(state.message if state else "")
        foreign = f"run:{plan.name}" not in run.tags
        if state is None or (state.is_cancelled() and not foreign) or is_lasting_message(state.message) or number == _MOST_TRIES:
            raise PoolWorkError(
                f"{name}: flow run {run.name} {(run.state_name or 'ended').lower()}"
                f"{f' for the {number}th time' if number > 1 else ''}: {message}. "
                "When the reason is gone retry this run; what is finished is kept"
            )
        log.warning("%s %s (%s); started again, from its last checkpoint", run.name, (run.state_name or "ended").lower(), message)


def _find_or_submit(deployment: str, name: str, parameters: dict[str, Any], plan: RunPlan, work_tag: str) -> FlowRun:
    with submission_lock():
        # At another storage root the same work has the same name, and is not there when it is done here.
        work = [work_tag, f"root:{digest_content(plan.storage, length=12)}"]
        live = fleet.find_live(deployment, work)
        if live:
            return live[0]
        tags = [*work, f"run:{plan.name}", f"parent:{this_run.get_root_flow_run_id()}"]
        num_workers, pool = fleet.count_workers(deployment)
        if num_workers == 0:
            get_run_logger().warning(
                "no worker of pool %s is online; %s waits. Start one: `deployments/gpu-workers.sh --pool %s`", pool, name, pool
            )
        return fleet.submit(deployment, name, parameters | {"version": __version__}, tags)


def _wait(run: FlowRun, pulse: Pulse, plan: RunPlan) -> FlowRun:
    run_id: UUID = run.id
    while True:
        run = fleet.read_run(run_id)
        if run.state is not None and run.state.is_final():
            return run
        if pulse.is_dead(run):
            seconds = plan.execution.stale_seconds
            fleet.crash(run, f"no sign of life for {seconds} s: its worker or the way to it is gone")
        fleet.pause(_POLL_SECONDS)

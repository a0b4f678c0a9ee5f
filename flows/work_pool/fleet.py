"""What a run asks of the Prefect server: which flow runs live, to make one, to end one, how many workers there are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventOrder, EventResourceFilter
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_logger
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, Crashed

from miniplm.errors import ConfigError, PrefectApiError, StoppedError

# All flow runs of this project have it, so that automations and people find them.
TAG = "miniplm"

_LIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
_PAGE = 200
# A server that is started again is away for a minute; one that is away longer needs a person.
_PATIENCE_SECONDS = 900.0
_DAYS = timedelta(days=2)

T = TypeVar("T")

_stopping = threading.Event()


def start_waiting() -> None:
    """Allows `pause` again, in a process that was told to stop before."""
    _stopping.clear()


def stop_waiting() -> None:
    """Ends every `pause` of this process: threads that wait for flow runs would otherwise keep it alive."""
    _stopping.set()


def pause(seconds: float) -> None:
    """Sleeps between two looks at the server. Raises `StoppedError` where this process is to end."""
    if _stopping.wait(seconds):
        raise StoppedError("stopped while waiting for the work pool")


def with_patience(call: Callable[[SyncPrefectClient], T]) -> T:
    """What `call` gives; while the server is away it is tried again, for up to a quarter of an hour.

    Raises `PrefectApiError` when that is over, or at once where the server refuses the credentials.
    """

    def with_client() -> T:
        with get_client(sync_client=True) as client:
            return call(client)

    return _patiently(with_client)


def _patiently(call: Callable[[], T]) -> T:
    began, wait = time.monotonic(), 1.0
    while True:
        try:
            return call()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            status = error.response.status_code if isinstance(error, PrefectHTTPStatusError) else None
            if status in (401, 403):
                raise PrefectApiError(
                    f"the Prefect server at {PREFECT_API_URL.value()} refuses the credentials; set PREFECT_API_AUTH_STRING to its user:password"
                ) from error
            if status is not None and status < 500:
                raise
            if time.monotonic() - began > _PATIENCE_SECONDS:
                raise PrefectApiError(
                    f"the Prefect server at {PREFECT_API_URL.value()} has not answered for {_PATIENCE_SECONDS / 60:.0f} minutes "
                    f"({type(error).__name__}); start it again and retry this run: what is scored is kept"
                ) from error
            get_logger("miniplm").warning("the Prefect server does not answer (%s); trying again", type(error).__name__)
            pause(wait)
            wait = min(wait * 2, 5.0)


def find_deployment(name: str) -> DeploymentResponse:
    """The deployment of this project's flow `name`. Raises `PrefectApiError` where there is none."""
    if not PREFECT_API_URL.value():
        raise ConfigError(
            "execution.fan_out is work-pool, which needs a Prefect server: set PREFECT_API_URL (docs/fleet.md), or use fan_out: local"
        )
    try:
        return with_patience(lambda client: client.read_deployment_by_name(f"{name}/{name}"))
    except ObjectNotFound:
        raise PrefectApiError(
            f"the Prefect server at {PREFECT_API_URL.value()} has no deployment {name}; "
            "make it with `prefect --no-prompt deploy --prefect-file deployments/prefect.yaml --all` in a checkout"
        ) from None


def find_live(deployment: str, tags: Sequence[str]) -> list[FlowRun]:
    """The flow runs of a deployment with all these tags that are not at their end."""
    found: list[FlowRun] = []
    for page in _pages(deployment, tags):
        found += page
    return found


def find_subflows(tags: Sequence[str]) -> list[FlowRun]:
    """The flow runs with all these tags that are of no deployment, so in the process of another one, and not at their end."""
    found: list[FlowRun] = []
    for page in _pages(None, tags):
        found += page
    return found


def _pages(deployment: str | None, tags: Sequence[str]) -> Iterator[list[FlowRun]]:
    offset = 0
    while True:
        # Bound now, as the call may be made again.
        def read(client: SyncPrefectClient, offset: int = offset) -> list[FlowRun]:
            return client.read_flow_runs(
                deployment_filter=None if deployment is None else DeploymentFilter(name=DeploymentFilterName(any_=[deployment])),
                flow_run_filter=FlowRunFilter(
                    tags=FlowRunFilterTags(all_=list(tags)),
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_LIVE)),
                    deployment_id=FlowRunFilterDeploymentId(is_null_=True) if deployment is None else None,
                ),
                limit=_PAGE,
                offset=offset,
            )

        page = with_patience(read)
        yield page
        if len(page) < _PAGE:
            return
        offset += _PAGE


def read_run(flow_run_id: UUID) -> FlowRun:
    """A flow run as the server knows it now."""
    return with_patience(lambda client: client.read_flow_run(flow_run_id))


def find_run(flow_run_id: UUID) -> FlowRun | None:
    """As `read_run`; None where the flow run was deleted."""
    try:
        return read_run(flow_run_id)
    except ObjectNotFound:
        return None


def submit(deployment: str, name: str, parameters: dict[str, Any], tags: Sequence[str]) -> FlowRun:
    """Makes a flow run of a deployment, seen in the UI below the flow run that calls; a worker of its pool takes it."""
    # Asked again with the same key, the server gives the flow run that it has made already.
    key = str(uuid4())
    run = _patiently(
        lambda: run_deployment(
            f"{deployment}/{deployment}",
            parameters=parameters,
            flow_run_name=name,
            tags=[TAG, *tags],
            timeout=0,
            as_subflow=True,
            idempotency_key=key,
        )
    )
    assert isinstance(run, FlowRun)
    return run


def crash(run: FlowRun, message: str) -> None:
    """Marks a flow run as crashed, whatever it was: its process is not there to do it."""
    end(run, Crashed(message=message))


def end(run: FlowRun, state: State[Any]) -> None:
    """Brings a flow run to its end, whatever it was."""
    with_patience(lambda client: client.set_flow_run_state(run.id, state, force=True))


def cancel(run: FlowRun) -> None:
    """Cancels a flow run; its worker ends the process within half a minute."""
    with_patience(lambda client: client.set_flow_run_state(run.id, Cancelling()))


def count_workers(deployment: str) -> tuple[int, str]:
    """How many flow runs the deployment's pool can have at work, and the pool's name.

    Workers that are online; one of a pool that starts containers (`kubernetes`) has as many as the pool's limit says.
    """
    pool = find_deployment(deployment).work_pool_name or ""
    try:
        workers = with_patience(lambda client: client.read_workers_for_work_pool(pool))
        found = with_patience(lambda client: client.read_work_pool(pool))
    except ObjectNotFound:
        return 0, pool
    num_online = sum(str(getattr(worker.status, "value", worker.status)) == "ONLINE" for worker in workers)
    if num_online and found.type != "process" and found.concurrency_limit:
        return found.concurrency_limit, pool
    return num_online, pool


def find_last_heartbeat(run: FlowRun) -> str | None:
    """The id of the last sign of life that the flow run's process sent; its clock may be wrong by two days."""
    now = datetime.now(UTC)
    filter = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        occurred=EventOccurredFilter(since=now - 30 * _DAYS, until=now + _DAYS),
        order=EventOrder.DESC,
    )
    page = with_patience(lambda client: client.read_events(filter, limit=1))
    return str(page.events[0].id) if page.events else None

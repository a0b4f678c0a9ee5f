"""Whether the Prefect API can be reached."""

from __future__ import annotations

from miniplm.doctor import Finding
from miniplm.errors import PrefectApiError


def require_prefect_api() -> None:
    """Raises `PrefectApiError` where PREFECT_API_URL names a server that does not answer, or refuses these credentials."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        return
    try:
        with get_client(sync_client=True) as client:
            client.read_work_pools(limit=1)
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        advice = "set PREFECT_API_AUTH_STRING to its user:password" if status in (401, 403) else "look at the server's log"
        raise PrefectApiError(f"the Prefect server at {url} answers {status} {error.response.reason_phrase}; {advice}") from error
    except (httpx.HTTPError, RuntimeError) as error:
        raise PrefectApiError(
            f"no answer from the Prefect server at {url} ({type(error).__name__}). Start it (`prefect server start`, or "
            "`deployments/local-fleet.sh start`), correct PREFECT_API_URL, or unset it to run without a server"
        ) from error


def check_prefect_api() -> Finding:
    """Asks the server that PREFECT_API_URL names for its version; without one a run starts a temporary server itself."""
    import prefect
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        return Finding(
            name="Prefect API",
            state="ok",
            value=f"Prefect {prefect.__version__}, embedded: a run starts a temporary server itself",
            advice="",
        )
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        if error is None:
            return Finding(
                name="Prefect API",
                state="ok",
                value=f"Prefect {prefect.__version__}, server {client.api_version()} at {url}",
                advice="",
            )
    return Finding(
        name="Prefect API",
        state="problem",
        value=f"no answer from {url} ({type(error).__name__})",
        advice="start the server (`prefect server start`), or unset PREFECT_API_URL to run embedded",
    )

"""The Prefect API that a command works with: the server that PREFECT_API_URL names, or a temporary one."""

from __future__ import annotations

import os

from flows.cli.prefect_home import PROXIES, check_proxies, prepare_prefect
from miniplm.errors import MiniplmError, PrefectApiError, first_line
from miniplm.run.doctor import Finding


def provide_prefect_api() -> None:
    """Starts a temporary server where PREFECT_API_URL names none, else sees that the one it names answers.

    Raises `PrefectApiError` where that does not answer, is no Prefect server, or refuses these credentials, and
    `MachineError` where Prefect cannot be started here.
    """
    prepare_prefect()
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, get_current_settings

    if PREFECT_API_URL.value():
        _require_prefect_api()
        return
    if not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        raise PrefectApiError(
            f"the settings of Prefect (`prefect config view`; {get_current_settings().profiles_path}) name no server and allow no "
            "temporary one; set PREFECT_API_URL, or PREFECT_SERVER_EPHEMERAL_ENABLED=true"
        )
    from flows.cli.embedded_server import EmbeddedServer

    EmbeddedServer().start()


def _require_prefect_api() -> None:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    try:
        with get_client(sync_client=True) as client:
            client.read_work_pools(limit=1)
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        advice = (
            "set PREFECT_API_AUTH_STRING to its user:password"
            if status in (401, 403)
            else "PREFECT_API_URL has to end with /api, as in http://HOST:4200/api"
            if status < 500 and not url.rstrip("/").endswith("/api")
            else "look at the server's log, and whether PREFECT_API_URL names a Prefect server at all"
        )
        raise PrefectApiError(f"the Prefect server at {url} answers {status} {error.response.reason_phrase}; {advice}") from error
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
        raise PrefectApiError(
            f"no answer from the Prefect server at {url} ({type(error).__name__}){_name_proxy(url)}. Start it (`prefect server start`, or "
            "`deployments/local-fleet.sh start`), correct PREFECT_API_URL, or unset it to run without a server"
        ) from error
    except ValueError as error:  # an answer that is not the API's
        raise PrefectApiError(
            f"what answers at {url} is no Prefect API ({first_line(error)}); PREFECT_API_URL has to be as in http://HOST:4200/api; "
            "correct it, or unset it to run without a server"
        ) from error


def _name_proxy(url: str) -> str:
    """Where the way to a server leads by a proxy: that it does, as that may be what gives no answer."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    address = urlsplit(url)
    proxies = getproxies()
    if not ({address.scheme, "all"} & set(proxies)) or proxy_bypass(address.netloc):
        return ""
    return f" by way of the proxy of {address.scheme.upper()}_PROXY or ALL_PROXY; NO_PROXY={address.hostname} goes without it"


def check_proxy() -> Finding:
    """Which variables lead requests by a proxy, and which hosts are asked without."""
    try:
        check_proxies()
    except MiniplmError as error:
        return Finding(name="proxy", state="problem", value=str(error), advice="see the error")
    names = [name for name in PROXIES if os.environ.get(name)]
    value = f"{', '.join(names)}; asked without: {os.environ.get('NO_PROXY', 'none')}" if names else "none"
    return Finding(name="proxy", state="ok", value=value)


def check_prefect_api() -> Finding:
    """Asks the server that PREFECT_API_URL names for its version; without one a run starts a temporary server itself."""
    try:
        prepare_prefect()
    except MiniplmError as error:
        return Finding(name="Prefect API", state="problem", value=str(error), advice="see the error")
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
        fault = client.api_healthcheck()
        if fault is None:
            return Finding(
                name="Prefect API",
                state="ok",
                value=f"Prefect {prefect.__version__}, server {client.api_version()} at {url}",
                advice="",
            )
    return Finding(
        name="Prefect API",
        state="problem",
        value=f"no answer from {url} ({type(fault).__name__})",
        advice="start the server (`prefect server start`), or unset PREFECT_API_URL to run embedded",
    )

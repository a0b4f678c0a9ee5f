"""Whether the Prefect API can be reached."""

from __future__ import annotations

from miniplm.doctor import Finding


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

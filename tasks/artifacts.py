"""Artifacts on the page of the flow run that a person looks at: the one that was started, not the subflow that makes them."""

from __future__ import annotations

import json
import os
import re
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger
from prefect.runtime import flow_run


def find_owner() -> str:
    """The id of the flow run whose page shows this process' artifacts: the worker's own, or the outermost one here."""
    return os.environ.get("PREFECT__FLOW_RUN_ID") or flow_run.get_root_flow_run_id()


def make_key(*parts: str) -> str:
    """An artifact's key, of lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class LiveArtifact:
    """An artifact that is made once and then kept up to date in place.

    `kind` is progress (data: percent), table (rows), image (URL), or markdown (text; a link is one). Work costs more
    than its display: a server that is away for a moment is logged, and the next update shows it.
    """

    def __init__(self, kind: str, key: str) -> None:
        self._kind, self._key = kind, key
        self._id: UUID | None = None

    def publish(self, data: Any, description: str) -> None:
        content = json.dumps(data) if self._kind == "table" else data
        try:
            with get_client(sync_client=True) as client:
                if self._id is None:
                    created = client.create_artifact(
                        ArtifactCreate(
                            key=self._key, type=self._kind, data=content, description=description, flow_run_id=UUID(find_owner())
                        )
                    )
                    self._id = created.id
                else:
                    client.update_artifact(self._id, ArtifactUpdate(data=content, description=description))
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            get_logger("miniplm").warning("the artifact %s could not be shown: %s", self._key, error)

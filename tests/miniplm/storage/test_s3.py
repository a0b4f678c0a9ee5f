"""The S3 file system by itself; with a server and its faults it is tested in tests/faults/test_s3.py."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from fsspec.asyn import get_loop

from miniplm.storage.s3 import PatientS3FileSystem


class _Client:
    """What s3fs closes: it notes the loop on which it is asked to."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closed = threading.Event()

    async def __aexit__(self, *_: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed.set()


def test_a_client_is_closed_on_its_own_loop_wherever_it_is_collected():
    async def collect_in_another_loop(client: _Client) -> None:
        PatientS3FileSystem.close_session(get_loop(), client)

    within, without = _Client(), _Client()
    asyncio.run(collect_in_another_loop(within))
    PatientS3FileSystem.close_session(get_loop(), without)
    for client in (within, without):
        assert client.closed.wait(10)
        assert client.loop is get_loop()

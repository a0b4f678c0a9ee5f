"""An HTTP proxy that harms a share of the requests that pass it, by a seed: what a network and a busy store do to a client.

Requests go on unchanged, `Host` included, which a signature covers; each has a connection of its own.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

KINDS = ("503", "500", "cut before answer", "cut in request", "cut in answer", "delay")
_BLOCK_BYTES = 1 << 16
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}, says the proxy.</Message></Error>'
_ANSWERS = {
    "503": ("503 Service Unavailable", "SlowDown"),
    "500": ("500 Internal Server Error", "InternalError"),
    "403": ("403 Forbidden", "AccessDenied"),
    "404": ("404 Not Found", "NoSuchUpload"),
}


@dataclass
class FaultProxy:
    """`share` of the requests get one of `kinds`; with `choose` it says the kind for a request line, or None. All may be changed
    while it runs, and `counts` tells what was done, `passed` included."""

    upstream_port: int
    share: float = 0.0
    seed: int = 0
    kinds: tuple[str, ...] = KINDS
    choose: Callable[[str], str | None] | None = None
    delay_seconds: float = 0.3
    port: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._tasks: set[asyncio.Task[None] | None] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def num_faults(self) -> int:
        return sum(self.counts[kind] for kind in KINDS)

    @contextmanager
    def run(self) -> Iterator[FaultProxy]:
        """Serves in a thread of its own until the block ends."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        async def start() -> asyncio.Server:
            return await asyncio.start_server(self._serve, "127.0.0.1", self.port)

        server = asyncio.run_coroutine_threadsafe(start(), loop).result()
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(_close(server), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _choose(self, request_line: str) -> str | None:
        if self.choose is not None:
            return self.choose(request_line)
        return self._random.choice(self.kinds) if self._random.random() < self.share else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The loop itself holds its tasks weakly, and one that only waits for a socket may be collected.
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            await self._serve_request(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            request_line, *lines = head.decode("latin-1").strip().split("\r\n")
            names = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
            num_body = int(names.get("content-length", 0))
            assert "transfer-encoding" not in names, "the proxy knows bodies by their length only"
            kept = [line for line in lines if not line.lower().startswith(("connection:", "expect:"))]
            # Not covered by a signature, both; the client need not wait for the server's leave to send.
            head = "\r\n".join([request_line, *kept, "Connection: close", "", ""]).encode("latin-1")
            kind = self._choose(request_line)
            self.counts[kind or "passed"] += 1
            if "expect" in names:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._answer(kind, head, num_body, reader, writer)

    async def _answer(
        self, kind: str | None, head: bytes, num_body: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if kind == "cut in request":
            await _relay(reader, None, num_body // 2)
            writer.transport.abort()
        elif kind in _ANSWERS:
            await _relay(reader, None, num_body)
            status, code = _ANSWERS[kind]
            content = b"" if head.startswith(b"HEAD") else _ERROR.format(code=code).encode()
            fields = f"Content-Type: application/xml\r\nContent-Length: {len(content)}\r\nConnection: close"
            writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + content)
            await writer.drain()
        else:
            if kind == "delay":
                await asyncio.sleep(self.delay_seconds)
            await self._pass_on(kind, head, num_body, reader, writer)

    async def _pass_on(
        self, kind: str | None, head: bytes, num_body: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        upstream, sender = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            sender.write(head)
            await _relay(reader, sender, num_body)
            answer = await upstream.readuntil(b"\r\n\r\n")
            # The store has done what it was asked; the client does not learn of it.
            if kind == "cut before answer":
                writer.transport.abort()
                return
            writer.write(answer)
            if kind == "cut in answer":
                lengths = [line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await _relay(upstream, writer, int(lengths[0].split(b":")[1]) // 2 if lengths and head[:4] != b"HEAD" else 0)
                writer.transport.abort()
                return
            await _relay(upstream, writer, None)
        finally:
            sender.close()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None, num_bytes: int | None) -> None:
    """So many bytes, or all until the end, to nowhere where there is no writer."""
    while num_bytes is None or num_bytes > 0:
        block = await reader.read(_BLOCK_BYTES if num_bytes is None else min(_BLOCK_BYTES, num_bytes))
        if not block:
            return
        num_bytes = None if num_bytes is None else num_bytes - len(block)
        if writer is not None:
            writer.write(block)
            await writer.drain()


async def _close(server: asyncio.Server) -> None:
    server.close()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""A light HTTP caller for load: the same bytes over and over on kept connections, and what of an answer matters."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

__all__ = ["Answer", "Callers", "request_bytes"]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: *\d", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        status: its HTTP status.
        retry_after: whether it says when to come again.
        body: its body.
    """

    status: int
    retry_after: bool
    body: bytes


def request_bytes(url: str, path: str, body: bytes, **headers: str) -> bytes:
    """A POST of a body of JSON."""
    fields = {"Host": urlsplit(url).netloc, "Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


class Callers:
    """At most so many connections to a server, kept and used in turn; who finds none waits for one.

    Attributes:
        opened: connections opened so far.
    """

    def __init__(self, url: str, most: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._idle: deque[_Caller] = deque()
        self._room = asyncio.Semaphore(most)
        self._all: set[_Caller] = set()
        self.opened = 0

    async def ask(self, request: bytes, seconds: float) -> Answer:
        """Send a request and wait for its answer.

        Raises:
            OSError: the connection was refused or broke.
            asyncio.TimeoutError: there was no answer in time.
        """
        async with self._room:
            caller = await self._take()
            try:
                answer = await caller.ask(request, seconds)
            except BaseException:
                caller.close()
                raise
            if caller.closed:
                self._all.discard(caller)
            else:
                self._idle.append(caller)
            return answer

    async def _take(self) -> _Caller:
        while self._idle:
            caller = self._idle.pop()
            if not caller.closed:
                return caller
            self._all.discard(caller)
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(_Caller, self._host, self._port)
        self.opened += 1
        self._all.add(caller)
        return caller

    def close(self) -> None:
        """Close all connections."""
        for caller in self._all:
            caller.close()


class _Caller(asyncio.Protocol):
    def __init__(self) -> None:
        self.closed = False
        self._got = b""
        self._answer: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, seconds: float) -> asyncio.Future[Answer]:
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._timer = loop.call_later(seconds, self._fail, asyncio.TimeoutError())
        self._got = b""
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        got = self._got = self._got + data if self._got else data
        end = got.find(b"\r\n\r\n")
        if end < 0:
            return
        head = got[:end]
        length = _LENGTH.search(head)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(got) < whole:
            return
        if _CLOSE.search(head):
            self.close()
        self._end()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(int(head[9:12]), _RETRY.search(head) is not None, got[end + 4 : whole]))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._fail(error or ConnectionResetError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        self._end()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.close()

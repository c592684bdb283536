"""Unary gRPC from an event loop: kept connections, each with one call on its way.

What gRPC's own library takes for a call, mostly in handing it from thread to thread, is more than all else that a
client or the gateway does (benchmarks/gateway.py).
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import cast

from tristage.client._http2 import ConnectionClosed, ConnectionLost, Unary
from tristage.client._late import PATIENCE, Late
from tristage.client._wire import Address

__all__ = ["Calls"]

_CONNECTING = 5.0  # seconds
_Answer = tuple[int, str, bytes]


class Calls:
    """Connections to one server, for one event loop; as many as there are calls at once.

    A call that is not answered by its deadline is left to end by itself: see `_late`.

    Args:
        address: the server's.
        most_late: calls that nobody waits for any more; with so many no other is begun.
        patience: seconds after which such a call is given up for good.

    Attributes:
        late: calls that nobody waits for any more.
    """

    def __init__(self, address: Address, most_late: int, patience: float = PATIENCE) -> None:
        self._address = address
        self._most_late = most_late
        self.patience = patience
        self.late = 0
        self._idle: list[_Line] = []
        self._busy: set[_Line] = set()
        self._waiting: list[asyncio.Future[None]] = []  # for a late call to end
        self._closed = False

    async def call(self, block: bytes, message: bytes, seconds: float) -> _Answer:
        """Make a call; what `Unary.answer` gives.

        Args:
            block: the headers, as `header_block` made them.
            message: a serialised message.
            seconds: how long to wait.

        Raises:
            asyncio.TimeoutError: there was no answer in time.
            ConnectionClosed: `close` was called.
            OSError: the connection broke, or there is none.
            ValueError, LookupError: what came cannot be read.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        if self.late >= self._most_late:
            await self._room(deadline)
        while self._idle:
            line = self._idle.pop()
            if not line.usable:
                line.close()
                continue
            try:
                return await self._wait(line, line.call(block, message, deadline))
            except ConnectionClosed:
                raise
            except ConnectionLost:  # a kept connection whose server was restarted; asking twice does no harm
                break
        self._check_open()
        connecting = loop.create_connection(lambda: _Line(self), self._address.host, self._address.port)
        _, line = await asyncio.wait_for(connecting, min(_CONNECTING, deadline - loop.time()))
        try:
            self._check_open()
        except ConnectionClosed:
            line.close()
            raise
        return await self._wait(line, line.call(block, message, deadline))

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionClosed("the connection was closed")

    async def _wait(self, line: _Line, answer: asyncio.Future[_Answer]) -> _Answer:
        try:
            return await answer
        except asyncio.CancelledError:  # whoever asked was cancelled; the call is not
            line.leave()
            raise

    async def _room(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while self.late >= self._most_late:
            waiting = loop.create_future()
            self._waiting.append(waiting)
            await asyncio.wait_for(waiting, deadline - loop.time())

    def taken(self, line: _Line) -> None:
        """A connection has a call on its way."""
        self._busy.add(line)

    def free(self, line: _Line) -> None:
        """A connection's call has ended."""
        self._busy.discard(line)
        if line.usable and not self._closed:
            self._idle.append(line)
        else:
            line.close()

    def fewer_late(self) -> None:
        """A late call has ended."""
        self.late -= 1
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    def close(self) -> None:
        """Close all connections; whoever waits is told so, and calls on their way are read to their end in threads."""
        self._closed = True
        for line in (*self._idle, *self._busy):
            line.close()
        self._idle.clear()


class _Line(asyncio.Protocol):
    """One connection."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._unary = Unary()
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[_Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._late = False
        self._lost = False

    @property
    def usable(self) -> bool:
        """Whether another call may be made."""
        return not self._lost and not self._unary.over

    def call(self, block: bytes, message: bytes, deadline: float) -> asyncio.Future[_Answer]:
        """Make a call; the future holds what `Unary.answer` gives, or a TimeoutError from the deadline on."""
        loop = asyncio.get_running_loop()
        answer = self._answer = loop.create_future()
        if self._transport is None or self._lost:
            self._fail(ConnectionLost("the server closed the connection"))
            return answer
        self._timer = loop.call_at(deadline, self.leave)
        self._calls.taken(self)
        self._transport.write(self._unary.begin(block, message))
        return answer

    def leave(self) -> None:
        """Whoever waits for the call that is on its way is told that it is late, and the call goes on."""
        if self._answer is None or self._late:
            return
        self._late = True
        self._calls.late += 1
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._calls.patience, self._fail, asyncio.TimeoutError())
        if not self._answer.done():
            self._answer.set_exception(asyncio.TimeoutError())

    def close(self) -> None:
        """Close it. A call on its way fails for whoever waits, and is read to its end."""
        transport = self._transport
        if self._answer is not None and transport is not None and not self._lost:
            sent = self._unary.sent and not transport.get_write_buffer_size()
            if sent:  # else the server has not got the whole request, and has not begun
                # the copy keeps the connection when the loop lets go of its own
                Late().add(socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())), self._unary)
        self._fail(ConnectionClosed("the connection was closed"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._unary.opening())

    def data_received(self, data: bytes) -> None:
        if self._lost:
            return
        assert self._transport is not None
        try:
            answer = self._unary.take(data)
            if answer:
                self._transport.write(answer)
            if not self._unary.done or self._answer is None:
                return
            found = self._unary.answer()
        except (OSError, ValueError, LookupError) as error:
            self._fail(error)
            return
        waiting = self._end()
        if not waiting.done():
            waiting.set_result(found)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(ConnectionLost(str(error) if error else "the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        self._lost = True
        if self._transport is not None:
            self._transport.abort()
        if self._answer is not None:
            waiting = self._end()
            if not waiting.done():
                waiting.set_exception(error)

    def _end(self) -> asyncio.Future[_Answer]:
        waiting, self._answer = self._answer, None
        assert waiting is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._late:
            self._late = False
            self._calls.fewer_late()
        self._calls.free(self)
        return waiting

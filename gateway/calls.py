"""Inference over gRPC from an event loop: kept connections, each with one call on its way.

What gRPC's own library takes for a call, mostly in handing it from thread to thread, is more than all else that the
gateway does (benchmarks/gateway.py). Everything but inference still goes by that library.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

from tristage.client import _wire
from tristage.client._http2 import INFER, ConnectionLost, Unary, header_block, opening_headers
from tristage.client._wire import Address, Tensors

__all__ = ["Calls"]

_CONNECTING = 5.0  # seconds
_Answer = tuple[int, str, bytes]


class Calls:
    """Connections to one server, for one event loop; as many as there are calls at once.

    A call that is not answered by its deadline is left to end by itself: an ensemble's request that is cancelled midway
    is never forgotten by Triton 2.51, which then waits for it when it ends.

    Args:
        address: the server's.
        patience: seconds after which a call that nobody waits for any more is given up for good.

    Attributes:
        late: calls that nobody waits for any more.
    """

    def __init__(self, address: Address, patience: float) -> None:
        self._address = address
        self.patience = patience
        self.late = 0
        self._opening = opening_headers(INFER, address.target, patience)
        self._idle: list[_Line] = []
        self._busy: set[_Line] = set()
        self._closed = False

    async def infer(
        self, model: str, inputs: Tensors, outputs: Sequence[str], seconds: float, headers: Mapping[str, str]
    ) -> Tensors:
        """As `AsyncTransport.infer`."""
        from google.protobuf.message import DecodeError
        from tritonclient.grpc import service_pb2

        url, what = self._address.url, _wire.asked("infer", model)
        message = _wire.grpc_request(model, inputs, outputs).SerializeToString()
        block = self._opening + header_block(headers.items())
        try:
            status, words, body = await self._call(block, message, seconds)
            if not status:
                answer = service_pb2.ModelInferResponse.FromString(body)
        except asyncio.TimeoutError as error:  # before Python 3.11 no TimeoutError
            raise _wire.too_late(url, seconds) from error
        except OSError as error:
            raise _wire.closed(url) if self._closed else _wire.unavailable(url, error) from error
        except (ValueError, LookupError, DecodeError) as error:
            raise _wire.malformed(url, what, error) from error
        if status:
            raise _wire.grpc_refusal(url, what, status, words, self.patience)
        return _wire.grpc_answer(url, model, answer, outputs)

    async def _call(self, block: bytes, message: bytes, seconds: float) -> _Answer:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._idle:
            line = self._idle.pop()
            if not line.usable:
                line.close()
                continue
            try:
                return await line.call(block, message, deadline)
            except ConnectionLost:  # a kept connection whose server was restarted; asking twice does no harm
                break
        if self._closed:
            raise ConnectionLost("the connection was closed")
        connecting = loop.create_connection(lambda: _Line(self), self._address.host, self._address.port)
        _, line = await asyncio.wait_for(connecting, min(_CONNECTING, deadline - loop.time()))
        return await line.call(block, message, deadline)

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

    def close(self) -> None:
        """Close all connections; calls on their way fail."""
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
        self._timer = loop.call_at(deadline, self._leave)
        self._calls.taken(self)
        self._transport.write(self._unary.begin(block, message))
        return answer

    def close(self) -> None:
        """Close it; its call fails."""
        self._fail(ConnectionLost("the connection was closed"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._unary.opening())

    def data_received(self, data: bytes) -> None:
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

    def _leave(self) -> None:
        """The deadline is there: whoever waits is told so, and the call goes on."""
        assert self._answer is not None
        self._late = True
        self._calls.late += 1
        self._timer = asyncio.get_running_loop().call_later(self._calls.patience, self._fail, asyncio.TimeoutError())
        if not self._answer.done():
            self._answer.set_exception(asyncio.TimeoutError())

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
            self._calls.late -= 1
        self._calls.free(self)
        return waiting

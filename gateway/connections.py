"""How many connections the gateway keeps, and how it writes to them.

What comes beyond is answered 503 without being read, and let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

__all__ = ["LINGERING", "Connections"]

LINGERING = 1024  # connections that are being told so at once; those beyond are reset
_LINGER = 2.0  # seconds that such a connection is kept, so that its caller can read the answer
_WATCHED = tuple(f"GET {path}".encode() for path in ("/livez", "/readyz", "/metrics"))
_BODY = (
    b'{"error":"connections","reason":"too many connections; try again in a second","column":null,"row":null,'
    b'"request_id":""}'
)
_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: 1\r\n"
    b"Cache-Control: no-store\r\nConnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)
_HEAD, _CONTINUE = b"HTTP/1.1 ", b"HTTP/1.1 100"
_Http: Any = AutoHTTPProtocol


class Connections:
    """Makes uvicorn's protocols, one for each connection; for one event loop.

    Args:
        most: connections that are kept.
        refuse: counts one that is refused, by a code.

    Attributes:
        open: connections that are kept now.
        lingering: connections that are being refused now.
    """

    def __init__(self, most: int, refuse: Callable[[str], None]) -> None:
        self._most = most
        self._refuse = refuse
        self.open = 0
        self.lingering = 0

    def __call__(self, **uvicorn: Any) -> asyncio.Protocol:
        """The protocol for a connection that was accepted."""
        if self.open < self._most:
            return self.keep(uvicorn)
        self._refuse("connections")
        return _Refused(self, uvicorn)

    def keep(self, uvicorn: dict[str, Any]) -> asyncio.Protocol:
        """uvicorn's own protocol, counted."""
        self.open += 1
        return cast(asyncio.Protocol, _Kept(self, **uvicorn))


class _Kept(_Http):  # type: ignore[misc]  # uvicorn says at run time which it is
    def __init__(self, connections: Connections, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._counted_in = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(_Whole(cast(asyncio.Transport, transport)))
        # uvicorn lets a connection wait for its second request for so long, and for its first one for ever
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.scope["state"]["whole"] = True  # `asked.read_body` need not mind the time

    def on_response_complete(self) -> None:
        self.transport.flush()  # an answer without a body
        super().on_response_complete()

    def connection_lost(self, error: Exception | None) -> None:
        self._counted_in.open -= 1
        self._unset_keepalive_if_required()
        super().connection_lost(error)


class _Whole:
    """A transport that writes the head of an answer together with its body.

    uvicorn hands them out one by one, and uvloop sends what it gets at once: a caller would be woken twice.
    """

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._head and data.startswith(_HEAD) and not data.startswith(_CONTINUE):
            self._head = data
        else:
            head, self._head = self._head, b""
            self._transport.write(head + data)

    def flush(self) -> None:
        if self._head and not self._transport.is_closing():
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()


class _Refused(asyncio.Protocol):
    """Answers whatever comes first, throws away the rest, and closes when its caller does, or after a while."""

    __slots__ = ("_connections", "_said", "_timer", "_transport", "_uvicorn")

    def __init__(self, connections: Connections, uvicorn: dict[str, Any]) -> None:
        self._connections = connections
        self._uvicorn = uvicorn
        self._said = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.lingering += 1
        if self._connections.lingering > LINGERING:
            self._transport.abort()
        else:
            self._timer = asyncio.get_running_loop().call_later(_LINGER, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._said:
            return
        if data.startswith(_WATCHED):  # whoever watches over the gateway is to see that it lives
            self._leave()
            kept = self._connections.keep(self._uvicorn)
            self._transport.set_protocol(kept)
            kept.connection_made(self._transport)
            kept.data_received(data)
            return
        self._said = True
        self._transport.write(_ANSWER)
        if self._transport.can_write_eof():  # to close it now would reset it, before its caller has read the answer
            self._transport.write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self._connections.lingering -= 1
        if self._timer is not None:
            self._timer.cancel()

"""A request that is refused before its body is read: the answer goes out at once, whatever its caller still sends."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from pydantic_core import to_json

from tristage.gateway.admission import Refusal, problem
from tristage.gateway.asked import Headers, seconds
from tristage.gateway.envelope import request_id

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["content_length", "turn_away"]

_SMALL = 64 << 10  # bytes of a body that the server throws away by itself while the connection goes on
_LINGER = 2.0  # seconds that a larger body is thrown away, so that its caller can read the answer


def content_length(headers: Headers) -> int | None:
    """The bytes of a request's body; None where that is not said."""
    text = headers.get(b"content-length")
    if text is None:
        return None if b"transfer-encoding" in headers else 0
    return int(text) if text.isdigit() else None


async def turn_away(refusal: Refusal, headers: Headers, most: int, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request whose body nobody has read.

    The connection goes on where the body is small: its bytes are thrown away as they come. Else it is closed after the
    body, or after a while, or after `most` bytes: to close it at once would reset it before its caller has read why.

    Args:
        refusal: what to say.
        headers: the request's.
        most: bytes that are thrown away before the connection is closed.
        scope: as ASGI has it, like the other two.
        receive: hands out the body.
        send: takes the answer.
    """
    size = content_length(headers)
    # a caller that waits for "100 Continue" need not send its body after a refusal, and its next request looks like it
    small = size is not None and size <= _SMALL and b"expect" not in headers
    body = to_json(problem(refusal, request_id(scope)))
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    fields += [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    if not small:
        fields.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": not small})
    if small:
        return
    left = most
    with contextlib.suppress(asyncio.TimeoutError):
        async with seconds(_LINGER):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
    await send({"type": "http.response.body", "body": b"", "more_body": False})

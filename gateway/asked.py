"""What a caller sends besides its rows' words: headers, how long it waits, and the body's bytes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tristage.gateway.admission import Place, Refusal
from tristage.gateway.settings import Settings

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ["Headers", "deadline_of", "headers_of", "read_body", "seconds", "text_of"]

if sys.version_info >= (3, 11):
    from asyncio import timeout as seconds
else:  # aiohttp brings it; unlike wait_for, neither makes a task of what it waits for
    from async_timeout import timeout as seconds

Headers = Mapping[bytes, bytes]  # names in lower case


def headers_of(scope: Any) -> Headers:
    """The headers of the request that a scope belongs to."""
    headers: Headers = scope["state"]["headers"]
    return headers


def text_of(headers: Headers, name: bytes) -> str:
    """A header's value, "" where it is missing."""
    return headers.get(name, b"").decode("latin-1")


def deadline_of(headers: Headers, settings: Settings) -> float:
    """Until when a request is to be answered, of time.monotonic().

    Raises:
        Refusal: 400, the caller's own limit cannot be read.
    """
    text, most = headers.get(b"x-request-timeout-ms"), settings.timeout
    if text is not None:
        if not (text.isdigit() and len(text) <= 9 and int(text) > 0):
            raise Refusal(400, "timeout", "X-Request-Timeout-Ms must be a whole number of milliseconds above 0")
        most = min(most, int(text) / 1000)
    return time.monotonic() + most


async def read_body(scope: Scope, receive: Receive, deadline: float, place: Place, most: int) -> bytes:
    """A request's body.

    Args:
        scope: the request's; its state says "whole" where the body came with the headers.
        receive: hands it out, as ASGI has it.
        deadline: until when to wait, of time.monotonic().
        place: holds its bytes.
        most: bytes that it may hold.

    Raises:
        asyncio.TimeoutError: it did not come in time.
        Refusal: 413, it is too large; 503, all bodies together are; 400, the caller went away.
    """
    length = headers_of(scope).get(b"content-length", b"0")
    if length.isdigit():
        if int(length) > 4 * most:
            raise _too_large(most)
        place.hold(min(int(length), most))
    if scope["state"].get("whole"):
        return await _read(receive, place, most)
    async with seconds(max(deadline - time.monotonic(), 0)):
        return await _read(receive, place, most)


async def _read(receive: Receive, place: Place, most: int) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "gone", "the caller went away")
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > 4 * most:
            raise _too_large(most)
        if size <= most:
            place.hold(size)
            parts.append(part)
    if size > most:  # read to its end, since a caller that is still sending would see a broken connection only
        raise _too_large(most)
    return b"".join(parts)


def _too_large(most: int) -> Refusal:
    return Refusal(413, "size", f"the body holds more than {most} bytes; send the rows in several requests")

"""The Python client of a served stack: rows or frames in, the same shape of thing out.

::

    from tristage.client import Client

    with Client("http://127.0.0.1:8000") as client:
        client.predict([{"age": 31, "language": "en"}])  # [{"reply": 0.02, ...}]

The server says which columns it wants, so a URL is all a client needs: "http://host:8000" or "grpc://host:8001".
`AsyncClient` is the same with `await`. `verify` replays the golden rows of a repository; `connect` gives the bare
connection below `Client`, for tools that measure. Errors are tristage.errors'.
"""

from __future__ import annotations

from tristage.client._async_transport import AsyncTransport, connect_async
from tristage.client._client import AsyncClient, Client
from tristage.client._transport import Transport, connect
from tristage.client.codec import ListTruncated, decode, encode
from tristage.client.golden import Verification, verify

__all__ = [
    "AsyncClient",
    "AsyncTransport",
    "Client",
    "ListTruncated",
    "Transport",
    "Verification",
    "connect",
    "connect_async",
    "decode",
    "encode",
    "verify",
]

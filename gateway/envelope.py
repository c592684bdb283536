"""What every answer carries: its request's id, safe headers, a place in the metrics; and never a traceback."""

from __future__ import annotations

import logging
import os
import re
import time
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from tristage.gateway.admission import Refusal, problem
from tristage.gateway.metrics import PREDICT, STEPS, Metrics
from tristage.gateway.traces import Tracing, Untraced

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Envelope", "request_id"]

_LOG = logging.getLogger("tristage.gateway")
_ID = re.compile(r"[!-~]{1,128}")
_PAGE = b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# Swagger's page starts itself with a script of its own, and colours itself
_DOCS = b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
_POLICY = b"content-security-policy"
_SAFE = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_ON_PAGE, _ON_DOCS = ([*_SAFE, (_POLICY, policy)] for policy in (_PAGE, _DOCS))
_UNKEPT = (b"cache-control", b"no-store")
_TRACED = frozenset({PREDICT, STEPS})


class Envelope:
    """ASGI middleware around the application.

    Attributes:
        metrics: what counts the application's requests.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None) -> None:
        self._app = app
        self.metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        given_headers = dict(scope["headers"])
        given = given_headers.get(b"x-request-id", b"").decode("latin-1")
        name = given if _ID.fullmatch(given) else os.urandom(8).hex()
        path = scope["path"]
        if self._tracing is not None and path in _TRACED and scope["method"] == "POST":
            trace = self._tracing.begin(scope, given_headers, name)
        else:
            trace = Untraced(given_headers)
        scope.setdefault("state", {}).update(request_id=name, trace=trace, headers=given_headers)

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *(_ON_DOCS if path.startswith("/docs") else _ON_PAGE)]
                headers.append((b"x-request-id", name.encode("latin-1")))
                if not any(each[0] == b"cache-control" for each in headers):
                    headers.append(_UNKEPT)
                message["headers"] = headers
            await send(message)

        try:
            await self._app(scope, receive, wrapped)
        except Exception:
            _LOG.exception("request %s to %s failed", name, path)
            if status:
                raise
            fault = Refusal(
                500, "fault", "the gateway failed at this request; its log says why, under the request's id"
            )
            await JSONResponse(problem(fault, name), 500)(scope, receive, wrapped)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.count(route, status or 499, time.perf_counter() - began)
            trace.end(route, status or 499)


def request_id(scope: Any) -> str:
    """The id of the request that a scope belongs to."""
    return str(scope["state"]["request_id"])

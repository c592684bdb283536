"""What every answer carries: its request's id, safe headers, a place in the metrics; and never a traceback."""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse

from tristage.gateway.admission import Refusal, problem
from tristage.gateway.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Envelope", "request_id"]

_LOG = logging.getLogger("tristage.gateway")
_ID = re.compile(r"[!-~]{1,128}")
_PAGE = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# Swagger's page starts itself with a script of its own, and colours itself
_DOCS = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Envelope:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        name = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = name

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = name
                headers["Content-Security-Policy"] = _DOCS if scope["path"].startswith("/docs") else _PAGE
                headers.update(_SAFE)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, wrapped)
        except Exception:
            _LOG.exception("request %s to %s failed", name, scope["path"])
            if status:
                raise
            fault = Refusal(
                500, "fault", "the gateway failed at this request; its log says why, under the request's id"
            )
            await JSONResponse(problem(fault, name), 500)(scope, receive, wrapped)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.count(route, status or 499, time.perf_counter() - began)


def request_id(scope: Any) -> str:
    """The id of the request that a scope belongs to."""
    return str(scope["state"]["request_id"])

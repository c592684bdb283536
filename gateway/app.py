"""The ASGI application: which path answers what."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from tristage import __version__
from tristage.errors import ServerError
from tristage.gateway.admission import Admission, Refusal, problem
from tristage.gateway.asked import headers_of
from tristage.gateway.drift import Drift
from tristage.gateway.envelope import Envelope, request_id
from tristage.gateway.live import describe, models_now
from tristage.gateway.metrics import PREDICT, STEPS, Metrics
from tristage.gateway.openapi import fill_in
from tristage.gateway.predict import Predictor
from tristage.gateway.settings import Settings
from tristage.gateway.traces import TRACE_CONTEXT, Tracing, trace_of
from tristage.gateway.triton import Triton
from tristage.gateway.turning_away import content_length, turn_away
from tristage.traces import collector

__all__ = ["create_app"]

_PAGE = Path(__file__).parent / "page"


class Problem(BaseModel):
    """Why a request got no answer."""

    error: str
    reason: str
    column: str | None
    row: int | None
    request_id: str


class StepAnswer(BaseModel):
    """What one step answered."""

    step: str
    model: str
    ms: float
    outputs: list[dict[str, Any]]


class Steps(BaseModel):
    """A row, answered step by step."""

    steps: list[StepAnswer]
    prediction: dict[str, float | None]


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


def create_app(settings: Settings) -> Envelope:
    """The gateway as an ASGI application.

    Args:
        settings: where Triton is, whom to let in, and how much to take.

    Raises:
        InputError: Triton's URL or the collector's cannot be read, or OpenTelemetry is not installed.
    """
    tracing = None if settings.traces is None else Tracing(collector(settings.traces))
    drift = Drift()
    metrics, admission = Metrics(drift), Admission(settings)
    triton = Triton(settings.url, settings.stack, settings.repository, settings.max_in_flight)
    predictor = Predictor(settings, triton, admission, metrics, drift)
    metrics.in_flight.set_function(lambda: admission.in_flight + triton.late)
    metrics.up.set_function(lambda: float(triton.away is None))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = [asyncio.create_task(triton.watch()), asyncio.create_task(drift.watch())]
        await triton.first_look(2.0)
        yield
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await triton.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPIOffline(
        title="tristage gateway",
        version=__version__,
        description="Predictions of a served stack.",
        lifespan=lifespan,
        redoc_url=None,
    )
    guarded = _problems(401, 429, 503)

    @app.post(PREDICT, responses=_problems(400, 413, 415, 502, 504) | guarded, response_class=Response)
    async def predict(request: Request) -> Response:
        """Predict rows: JSON, an Arrow stream or file, or Parquet; answers come in the same kind."""
        made = await predictor.predict(request.scope, request.receive)
        response = Response(made.body)
        response.raw_headers = made.headers()
        return response

    @app.post(STEPS, responses=_problems(400, 413, 415, 502, 504) | guarded, response_model=Steps)
    async def steps(request: Request) -> Response:
        """Answer one row a step at a time, and show what each step made of it."""
        return _json(await predictor.steps(request.scope, request.receive))

    @app.get("/v1/stack", responses=guarded)
    async def stack(request: Request) -> dict[str, Any]:
        """The stack: columns, graph, versions, checksums."""
        admission.identify(request.headers.get("authorization", ""))
        return describe(predictor.served())

    @app.get("/v1/live", responses=_problems(401))
    async def live(request: Request) -> dict[str, Any]:
        """Running totals: each step's calls, errors and time from Triton's statistics, and the gateway's own."""
        admission.identify(request.headers.get("authorization", ""))
        answer: dict[str, Any] = {"at": time.monotonic(), "models": {}, "away": triton.away}
        if triton.served is not None and triton.away is None:
            drift.follow(triton.served.signature, triton.served.reference)
            try:
                answer |= models_now(triton.served, await triton.statistics())
            except ServerError as error:
                answer["away"] = str(error)
        return {
            **answer,
            "gateway": metrics.totals(),
            "drift": drift.now(),
            "in_flight": admission.in_flight + triton.late,
            "max_in_flight": settings.max_in_flight,
        }

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Whether the gateway itself runs."""
        return {"status": "alive"}

    @app.get("/readyz", responses=_problems(503))
    async def readyz() -> dict[str, str]:
        """Whether a prediction can be had: Triton answers, and the stack is ready."""
        return {"status": "ready", "stack": predictor.served().signature.stack}

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """The gateway's counters, for Prometheus. Triton has its own."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        metrics.refuse(refusal.code)
        trace_of(request.scope).note(refusal=refusal.code)
        return JSONResponse(problem(refusal, request_id(request.scope)), refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> JSONResponse:
        fault = Refusal(error.status_code, "path", f"{request.method} {request.url.path}: {error.detail}; see /docs")
        return JSONResponse(problem(fault, request_id(request.scope)), error.status_code, error.headers)

    documented = app.openapi

    def openapi() -> dict[str, Any]:
        app.openapi_schema = None
        return fill_in(documented(), triton.served, settings)

    app.openapi = openapi  # type: ignore[method-assign]
    app.mount("/page", StaticFiles(directory=_PAGE), name="page")
    routes = {path: each for each in app.routes if (path := getattr(each, "path", "")) in (PREDICT, STEPS)}

    async def straight(scope: Scope, receive: Receive, send: Send) -> None:
        """Predictions go past FastAPI, whose layers cost one row more than what the gateway itself does for it.

        What there is no place for goes back from here, unread.
        """
        route = routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await app(scope, receive, send)
            return
        headers = headers_of(scope)
        full = admission.full(triton.late, content_length(headers) or 0)
        if full is not None:
            scope["route"] = route
            metrics.refuse(full.code)
            trace_of(scope).note(refusal=full.code)
            await turn_away(full, headers, 4 * settings.max_body, scope, receive, send)
            return
        if scope["path"] != PREDICT:
            await app(scope, receive, send)
            return
        scope["route"] = route
        try:
            made = await predictor.predict(scope, receive)
        except Refusal as refusal:
            response = await refused(Request(scope, receive), refusal)
            await response(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": made.headers()})
        await send({"type": "http.response.body", "body": made.body})

    inner: ASGIApp = straight
    if settings.origins:
        inner = CORSMiddleware(
            straight,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID", "X-Request-Timeout-Ms", *TRACE_CONTEXT],
            expose_headers=["X-Request-ID", "X-Lists-Cut", "Retry-After"],
        )
    return Envelope(inner, metrics, tracing)


def _json(content: Any) -> Response:
    from pydantic_core import to_json

    return Response(to_json(content, inf_nan_mode="null"), media_type="application/json")

"""How a request becomes an answer: its rows, Triton's predictions, and every way that this may fail."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tristage.client.codec import decode, encode_and_count
from tristage.errors import AnswerTooLate, InferenceFailed, InputError, ServerError
from tristage.gateway.admission import RETRY_AFTER, Admission, Place, Refusal
from tristage.gateway.bodies import JSON, KINDS, Limits, TooLarge, find_kind, parse_json
from tristage.gateway.drift import Drift
from tristage.gateway.envelope import request_id
from tristage.gateway.metrics import Metrics
from tristage.gateway.settings import Settings
from tristage.gateway.steps import answer_by_steps
from tristage.gateway.traces import trace_of
from tristage.gateway.triton import Served, Triton

__all__ = ["Predictor"]

if sys.version_info >= (3, 11):
    from asyncio import timeout as seconds
else:  # aiohttp brings it; unlike wait_for, neither makes a task of what it waits for
    from async_timeout import timeout as seconds

_T = TypeVar("_T")
_SMALL = 64 << 10  # bytes of a body that is worked on at once; a larger one would keep the others waiting


class Predictor:
    """Answers /v1/predict and /v1/steps."""

    def __init__(
        self, settings: Settings, triton: Triton, admission: Admission, metrics: Metrics, drift: Drift
    ) -> None:
        self._settings = settings
        self._triton = triton
        self._admission = admission
        self._metrics = metrics
        self._drift = drift
        self._limits = Limits(settings.max_rows, 4 * settings.max_body)

    async def predict(self, request: Request) -> Response:
        """A prediction for each row, in the kind that was sent."""
        content_type = request.headers.get("content-type", "")
        kind = find_kind(content_type)
        deadline = self._deadline(request)
        with self._admitted(request) as place, _refusals():
            if kind is None:
                raise Refusal(415, "kind", f"{content_type} is not taken; send one of {', '.join(KINDS)}")
            served = self.served()
            body = await self._body(request, deadline, place)

            def read() -> tuple[Any, Any]:
                rows = kind.read(body, self._limits)
                return rows, encode_and_count(rows, served.signature)

            trace = trace_of(request.scope)
            with trace.step("decode"):
                rows, (tensors, cut) = await _work(read, len(body))
            trace.note(stack=served.signature.stack, rows=len(rows))
            with trace.asking(self._triton.url, served.signature.stack) as headers:
                headers["x-request-id"] = request_id(request.scope)
                answers = await self._triton.infer(served.signature, tensors, deadline, headers)
            self._drift.follow(served.signature, served.reference)
            self._drift.observe(tensors, answers)
            size = len(body) if len(rows) > 256 else 0
            with trace.step("encode"):
                answer = await _work(lambda: kind.write(decode(answers, served.signature, rows)), size)
            self._metrics.rows.inc(len(rows))
        response = Response(answer, media_type=kind.media_type)
        if cut:
            response.headers["X-Lists-Cut"] = ", ".join(f"{quote(name)}={rows}" for name, rows in cut.items())
        return response

    async def steps(self, request: Request) -> dict[str, Any]:
        """One row, answered step by step."""
        deadline = self._deadline(request)
        with self._admitted(request) as place, _refusals():
            if find_kind(request.headers.get("content-type", "")) is not JSON:
                raise Refusal(415, "kind", f"this takes {JSON.media_type} only")
            served = self.served()
            document = parse_json(await self._body(request, deadline, place))
            if not isinstance(document, dict) or set(document) != {"row"} or not isinstance(document["row"], dict):
                raise InputError('the body must be one JSON object, {"row": {...}}, and nothing else')
            tensors, _ = encode_and_count([document["row"]], served.signature)
            trace = trace_of(request.scope)
            trace.note(stack=served.signature.stack, rows=1)
            with trace.asking(self._triton.url, served.signature.stack) as headers:
                headers["x-request-id"] = request_id(request.scope)
                return await answer_by_steps(self._triton, served, tensors, deadline, headers)

    def served(self) -> Served:
        """What Triton serves.

        Raises:
            Refusal: 503, it is away.
        """
        if self._triton.away is not None or self._triton.served is None:
            raise Refusal(503, "away", str(self._triton.away), headers=RETRY_AFTER)
        return self._triton.served

    @contextmanager
    def _admitted(self, request: Request) -> Iterator[Place]:
        self._admission.spend(self._admission.identify(request.headers))
        with self._admission.slot(self._triton.late) as place:
            yield place

    def _deadline(self, request: Request) -> float:
        text = request.headers.get("x-request-timeout-ms")
        asked = self._settings.timeout
        if text is not None:
            if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
                raise Refusal(400, "timeout", "X-Request-Timeout-Ms must be a whole number of milliseconds above 0")
            asked = min(asked, int(text) / 1000)
        return time.monotonic() + asked

    async def _body(self, request: Request, deadline: float, place: Place) -> bytes:
        async with seconds(max(deadline - time.monotonic(), 0)):
            return await self._stream(request, place)

    async def _stream(self, request: Request, place: Place) -> bytes:
        most = self._settings.max_body
        refusal = Refusal(413, "size", f"the body holds more than {most} bytes; send the rows in several requests")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > 4 * most:
            raise refusal
        if length.isdigit():
            place.hold(min(int(length), most))
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > 4 * most:
                raise refusal
            if size <= most:
                place.hold(size)
                parts.append(part)
        if size > most:  # read to its end, since a caller that is still sending would see a broken connection only
            raise refusal
        return b"".join(parts)


@contextmanager
def _refusals() -> Iterator[None]:
    """What goes wrong inside, as the refusal that the caller gets."""
    try:
        yield
    except TooLarge as error:
        raise Refusal(413, "size", str(error)) from error
    except InputError as error:
        raise Refusal(400, "input", str(error), column=error.column, row=error.row) from error
    except (asyncio.TimeoutError, AnswerTooLate) as error:
        raise Refusal(504, "late", "not answered in time; send fewer rows, or allow more time") from error
    except InferenceFailed as error:
        raise Refusal(502, "failed", str(error)) from error
    except ServerError as error:
        raise Refusal(503, "away", str(error), headers=RETRY_AFTER) from error
    except ClientDisconnect as error:
        raise Refusal(400, "gone", "the caller went away") from error


async def _work(task: Callable[[], _T], size: int) -> _T:
    return task() if size <= _SMALL else await asyncio.to_thread(task)

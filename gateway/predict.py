"""How a request becomes an answer: its rows, Triton's predictions, and every way that this may fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote

from tristage.client._wire import Tensors
from tristage.client.codec import decode, encode_and_count
from tristage.errors import AnswerTooLate, InferenceFailed, InputError, ServerError
from tristage.gateway.admission import RETRY_AFTER, Admission, Refusal
from tristage.gateway.asked import deadline_of, headers_of, read_body, text_of
from tristage.gateway.bodies import JSON, KINDS, Kind, Limits, TooLarge, find_kind, parse_json
from tristage.gateway.drift import Drift
from tristage.gateway.envelope import request_id
from tristage.gateway.metrics import Metrics
from tristage.gateway.settings import Settings
from tristage.gateway.steps import answer_by_steps
from tristage.gateway.traces import trace_of
from tristage.gateway.triton import Served, Triton

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ["Prediction", "Predictor"]

_T = TypeVar("_T")
_SMALL = 64 << 10  # bytes of a body that is worked on at once; a larger one would keep the others waiting
_FAULTS = (InputError, ServerError, asyncio.TimeoutError)  # that are told to the caller


class Prediction(NamedTuple):
    """What a request is answered.

    Attributes:
        body: the predictions.
        kind: what kind of body that is.
        cut: column -> rows whose list was cut.
    """

    body: bytes
    kind: Kind
    cut: Mapping[str, int]

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The answer's own headers, as ASGI has them."""
        fields = [(b"content-type", self.kind.media_type.encode()), (b"content-length", b"%d" % len(self.body))]
        if self.cut:
            said = ", ".join(f"{quote(name)}={rows}" for name, rows in self.cut.items())
            fields.append((b"x-lists-cut", said.encode()))
        return fields


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

    async def predict(self, scope: Scope, receive: Receive) -> Prediction:
        """A prediction for each row, in the kind that was sent.

        Raises:
            Refusal: there is none, and why.
        """
        headers = headers_of(scope)
        content_type = text_of(headers, b"content-type")
        kind = find_kind(content_type)
        deadline = deadline_of(headers, self._settings)
        self._admission.spend(self._admission.identify(text_of(headers, b"authorization")))
        with self._admission.slot(self._triton.late) as place:
            if kind is None:
                raise Refusal(415, "kind", f"{content_type} is not taken; send one of {', '.join(KINDS)}")
            served = self.served()
            try:
                body = await read_body(scope, receive, deadline, place, self._settings.max_body)
                return await self._answer(kind, body, served, deadline, scope)
            except _FAULTS as error:
                raise _refusal(error) from error

    async def steps(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """One row, answered step by step.

        Raises:
            Refusal: there is no answer, and why.
        """
        headers = headers_of(scope)
        deadline = deadline_of(headers, self._settings)
        self._admission.spend(self._admission.identify(text_of(headers, b"authorization")))
        with self._admission.slot(self._triton.late) as place:
            if find_kind(text_of(headers, b"content-type")) is not JSON:
                raise Refusal(415, "kind", f"this takes {JSON.media_type} only")
            served = self.served()
            try:
                document = parse_json(await read_body(scope, receive, deadline, place, self._settings.max_body))
                if not isinstance(document, dict) or set(document) != {"row"} or not isinstance(document["row"], dict):
                    raise InputError('the body must be one JSON object, {"row": {...}}, and nothing else')
                tensors, _ = encode_and_count([document["row"]], served.signature)
                trace = trace_of(scope)
                trace.note(stack=served.signature.stack, rows=1)
                with trace.asking(self._triton.url, served.signature.stack) as told:
                    told["x-request-id"] = request_id(scope)
                    return await answer_by_steps(self._triton, served, tensors, deadline, told)
            except _FAULTS as error:
                raise _refusal(error) from error

    def served(self) -> Served:
        """What Triton serves.

        Raises:
            Refusal: 503, it is away.
        """
        if self._triton.away is not None or self._triton.served is None:
            raise Refusal(503, "away", str(self._triton.away), headers=RETRY_AFTER)
        return self._triton.served

    async def _answer(self, kind: Kind, body: bytes, served: Served, deadline: float, scope: Scope) -> Prediction:
        def read() -> tuple[Any, bytes | None, Tensors, Mapping[str, int]]:
            rows = kind.read(body, self._limits)
            one = served.one_row if kind is JSON and len(rows) == 1 else None
            message = None if one is None else one.request(rows[0])
            return (rows, message, {}, {}) if message else (rows, None, *encode_and_count(rows, served.signature))

        trace = trace_of(scope)
        with trace.step("decode"):
            rows, message, tensors, cut = await _work(read, len(body))
        trace.note(stack=served.signature.stack, rows=len(rows))
        with trace.asking(self._triton.url, served.signature.stack) as told:
            told["x-request-id"] = request_id(scope)
            if message is not None and served.one_row is not None:
                row = await self._triton.infer_row(served.one_row, message, deadline, told)
            else:
                row, answers = None, await self._triton.infer(served.signature, tensors, deadline, told)
        self._drift.follow(served.signature, served.reference)
        with trace.step("encode"):
            if row is not None:
                self._drift.observe_row(rows[0], row)
                answer = kind.write([row])
            else:
                self._drift.observe(tensors, answers)
                size = len(body) if len(rows) > 256 else 0
                answer = await _work(lambda: kind.write(decode(answers, served.signature, rows)), size)
        self._metrics.rows.inc(len(rows))
        return Prediction(answer, kind, cut)


def _refusal(error: Exception) -> Refusal:
    """What went wrong, as the refusal that the caller gets."""
    if isinstance(error, TooLarge):
        return Refusal(413, "size", str(error))
    if isinstance(error, InputError):
        return Refusal(400, "input", str(error), column=error.column, row=error.row)
    if isinstance(error, (asyncio.TimeoutError, AnswerTooLate)):
        return Refusal(504, "late", "not answered in time; send fewer rows, or allow more time")
    if isinstance(error, InferenceFailed):
        return Refusal(502, "failed", str(error))
    return Refusal(503, "away", str(error), headers=RETRY_AFTER)


async def _work(task: Callable[[], _T], size: int) -> _T:
    return task() if size <= _SMALL else await asyncio.to_thread(task)

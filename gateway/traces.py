"""Spans of what the gateway does, for an OpenTelemetry collector; Triton's own join them.

A request belongs to the trace that its caller's `traceparent` names (W3C Trace Context), else to one of its own. Its
span holds one for reading the rows, one for Triton's answer and one for writing the answer; Triton is told the second,
so that its spans hang below it. No value of a row gets into a span.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from tristage import __version__
from tristage.client._wire import parse_url
from tristage.errors import InputError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["TRACE_CONTEXT", "Trace", "Tracing", "Untraced", "trace_of"]

_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")
_STATE = re.compile(r"[ -~]{1,2048}")
_ENDING = 3.0  # seconds that the last spans may take to the collector when the gateway ends
_NOTHING = nullcontext()
TRACE_CONTEXT = ("traceparent", "tracestate")


class Untraced:
    """A request without spans of its own; Triton is told of the caller's trace."""

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        self._headers = headers

    def step(self, name: str) -> AbstractContextManager[None]:
        """Part of the work, in the `with` block."""
        return _NOTHING

    def asking(self, url: str, model: str) -> AbstractContextManager[dict[str, str]]:
        """Triton is asked in the `with` block, with these headers."""
        return nullcontext(_parent(self._headers))

    def note(self, **known: str | int) -> None:
        """Add to what is known of the request."""

    def end(self, route: str, status: int) -> None:
        """The request was answered."""


def _parent(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """The caller's trace as headers; none where it is malformed, or not recorded, as Triton 2.51 would record it."""
    if b"traceparent" not in headers:
        return {}
    parent = headers[b"traceparent"].decode("latin-1")
    if not _PARENT.fullmatch(parent) or not int(parent[53:55], 16) & 1:
        return {}
    state = headers.get(b"tracestate", b"").decode("latin-1")
    return {"traceparent": parent, **({"tracestate": state} if _STATE.fullmatch(state) else {})}


class Tracing:
    """Makes spans and sends them to a collector, a few at a time, beside the requests.

    Args:
        url: what spans are posted to, by OTLP over HTTP.

    Raises:
        InputError: OpenTelemetry's SDK is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InputError(
                f'traces need OpenTelemetry ({error}): pip install "tristage[telemetry]", or leave the collector out'
            ) from error
        named = {"service.version": __version__}
        detected = Resource.create(named)  # with OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        if str(detected.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
            detected = Resource.create({**named, "service.name": "tristage-gateway"})
        self._exporter = OTLPSpanExporter(endpoint=url)
        self._provider = TracerProvider(resource=detected, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self.tracer = self._provider.get_tracer("tristage.gateway", __version__)

    def begin(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], request_id: str) -> Untraced:
        """A request has come."""
        return Trace(self.tracer, scope, headers, request_id)

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_ENDING)
        if last.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # which gives up waiting for a collector that is away


class Trace(Untraced):
    """A request with a span."""

    def __init__(self, tracer: Any, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], request_id: str) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()
        given = {name: headers[name.encode()].decode("latin-1") for name in TRACE_CONTEXT if name.encode() in headers}
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "tristage.request_id": request_id,
            "tristage.version": __version__,
        }
        if b"user-agent" in headers:
            attributes["user_agent.original"] = headers[b"user-agent"].decode("latin-1")
        self._span: Span = tracer.start_span(
            f"{scope['method']} {scope['path']}",
            context=self._propagator.extract(given),
            kind=SpanKind.SERVER,
            attributes=attributes,
        )
        self._context = set_span_in_context(self._span)

    def step(self, name: str) -> AbstractContextManager[None]:
        return self._step(name)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        with _failing(self._tracer.start_span(name, context=self._context)):
            yield

    def asking(self, url: str, model: str) -> AbstractContextManager[dict[str, str]]:
        return self._asking(url, model)

    @contextmanager
    def _asking(self, url: str, model: str) -> Iterator[dict[str, str]]:
        from opentelemetry.trace import SpanKind, set_span_in_context

        address = parse_url(url)
        attributes = {"server.address": address.host, "server.port": address.port, "tristage.model": model}
        if address.protocol == "grpc":
            attributes |= {"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": "ModelInfer"}
        span = self._tracer.start_span("infer", context=self._context, kind=SpanKind.CLIENT, attributes=attributes)
        headers: dict[str, str] = {}
        if span.get_span_context().trace_flags.sampled:  # Triton 2.51 would record what is not recorded here
            self._propagator.inject(headers, set_span_in_context(span))
        with _failing(span):
            yield headers

    def note(self, **known: str | int) -> None:
        self._span.set_attributes({f"tristage.{name}": value for name, value in known.items()})

    def end(self, route: str, status: int) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


_SERVICE = "inference.GRPCInferenceService"


@contextmanager
def _failing(span: Span) -> Iterator[None]:
    """End a span with its block; of what failed the kind is kept, and not the words, which may hold a row's value."""
    from opentelemetry.trace import StatusCode

    try:
        yield
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(StatusCode.ERROR)
        raise
    finally:
        span.end()


def trace_of(scope: Any) -> Untraced:
    """The trace of the request that a scope belongs to."""
    trace: Untraced = scope["state"]["trace"]
    return trace

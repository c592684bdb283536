"""A collector of spans: OTLP over HTTP, in protobuf as the gateway sends it and in JSON as Triton does."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

_IDS = {"traceId", "spanId", "parentSpanId"}


@dataclass(frozen=True)
class Span:
    """A span that came, of which service; identifiers in hexadecimal digits, "" for no parent."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: str
    began: int
    ended: int
    failed: bool
    attributes: dict[str, Any]


class Collector:
    """What came so far."""

    def __init__(self) -> None:
        self.url = ""
        self.paths: set[str] = set()
        self.spans: list[Span] = []

    def of(self, trace: str, wanted: Callable[[list[Span]], bool], seconds: float = 20.0) -> list[Span]:
        """The spans of a trace, as soon as they are what is wanted; an AssertionError names them if they never are."""
        end = time.monotonic() + seconds
        while True:
            found = [span for span in list(self.spans) if span.trace == trace]
            if wanted(found):
                return found
            assert time.monotonic() < end, found
            time.sleep(0.05)


def _base64(document: Any) -> Any:
    """OTLP's JSON writes identifiers in hexadecimal digits, where protobuf's own JSON has base64."""
    if isinstance(document, list):
        return [_base64(each) for each in document]
    if not isinstance(document, dict):
        return document
    return {
        key: base64.b64encode(bytes.fromhex(value)).decode() if key in _IDS else _base64(value)
        for key, value in document.items()
    }


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)


def _read(request: Any) -> Iterator[Span]:
    for group in request.resource_spans:
        service = {each.key: _value(each.value) for each in group.resource.attributes}["service.name"]
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Span(
                    service,
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    Message.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == 2,
                    {each.key: _value(each.value) for each in span.attributes},
                )


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port until the block ends."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = ExportTraceServiceRequest()
            if self.headers["Content-Type"].startswith("application/json"):
                json_format.ParseDict(_base64(json.loads(body)), request)
            else:
                request.ParseFromString(body)
            collector.paths.add(self.path)
            collector.spans.extend(_read(request))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *words: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)

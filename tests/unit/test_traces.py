"""Where traces go, and what Triton is told of a caller's trace."""

from __future__ import annotations

import sys

import pytest

from tristage.errors import InputError
from tristage.gateway.traces import Tracing, Untraced
from tristage.traces import collector, collector_of_environment

TRACES, BASE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.mark.parametrize(
    ("url", "posted"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("http://[::1]:4318/otlp/v1/traces", "http://[::1]:4318/otlp/v1/traces"),
    ],
)
def test_a_collector_is_an_address_or_a_whole_url(url: str, posted: str) -> None:
    assert collector(url) == posted


@pytest.mark.parametrize(
    "url", ["", "collector:4318", "grpc://x:4317", "http://", "http://x:port", "http://x?a=b", "http://x/ ,rate=1"]
)
def test_what_is_no_collector(url: str) -> None:
    with pytest.raises(InputError, match="write the address of its OTLP over HTTP"):
        collector(url)


@pytest.mark.parametrize(
    ("environment", "posted"),
    [
        ({}, None),
        ({BASE: ""}, None),
        ({BASE: "http://x:4318"}, "http://x:4318/v1/traces"),
        ({BASE: "http://x:4318/prefix/"}, "http://x:4318/prefix/v1/traces"),
        ({BASE: "http://x:4318", TRACES: "http://y:4318/spans"}, "http://y:4318/spans"),
        ({BASE: "http://x:4318", PROTOCOL: "http/protobuf"}, "http://x:4318/v1/traces"),
        ({BASE: "http://x:4318", "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({BASE: "http://x:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({BASE: "http://x:4317", PROTOCOL: "grpc", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_opentelemetry_s_own_variables(environment: dict[str, str], posted: str | None) -> None:
    assert collector_of_environment(environment) == posted


def test_another_protocol_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match="TRISTAGE_TRACES_URL=.* OTEL_TRACES_EXPORTER=none"):
        collector_of_environment({BASE: "http://x:4317", PROTOCOL: "grpc"})


PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {}),
        ({b"traceparent": PARENT}, {"traceparent": PARENT.decode()}),
        (
            {b"traceparent": PARENT, b"tracestate": b"a=1,b=2"},
            {"traceparent": PARENT.decode(), "tracestate": "a=1,b=2"},
        ),
        ({b"traceparent": PARENT, b"tracestate": b"a=\xff"}, {"traceparent": PARENT.decode()}),
        ({b"traceparent": PARENT[:-1] + b"0"}, {}),  # its caller does not record it, and Triton would
        ({b"traceparent": PARENT.upper()}, {}),
        ({b"traceparent": PARENT + b"\r\nx: y"}, {}),
        ({b"tracestate": b"a=1"}, {}),
    ],
)
def test_without_spans_of_its_own_the_caller_s_trace_goes_on(given: dict[bytes, bytes], told: dict[str, str]) -> None:
    with Untraced(given).asking("grpc://x:8001", "m") as headers:
        assert headers == told


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InputError, match=r"tristage\[telemetry\]"):
        Tracing("http://127.0.0.1:4318/v1/traces")

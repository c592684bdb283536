"""Spans of the gateway and of a real Triton, at one collector."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector import Collector, Span, collecting
from gateway_stack import run_gateway, some_rows, write_repository

from tristage import __version__
from tristage.serving import Server, serve

GATEWAY, TRITON = "tristage-gateway", "triton-inference-server"
STEPS = ("features", "trees", "net", "score")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("traces") / "repository")


@pytest.fixture(scope="module", autouse=True)
def _soon() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # both export so often, in milliseconds
        yield


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def served(repository: Path, collector: Collector) -> Iterator[Server]:
    with serve(repository, http_port=0, grpc_port=0, metrics_port=0, traces=collector.url) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(served: Server, collector: Collector) -> Iterator[str]:
    with run_gateway("--url", served.grpc_url, "--traces", collector.url) as url:
        yield url


def ask(url: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
    given = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, json.dumps(body).encode(), given)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read()), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers


def caller(sampled: bool = True) -> tuple[str, str, str]:
    """A new trace, the caller's span in it, and both as a traceparent."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, f"00-{trace}-{span}-0{int(sampled)}"


def by_name(spans: list[Span], service: str) -> dict[str, Span]:
    return {span.name: span for span in spans if span.service == service}


def whole(count: int) -> Any:
    """All of the gateway's spans are there, and Triton's of so many requests to the ensemble."""
    models = (1 + len(STEPS)) * count  # each a span, and all but the ensemble one of computing

    def wanted(spans: list[Span]) -> bool:
        found = Counter(span.service for span in spans)
        return found[GATEWAY] >= 4 and found[TRITON] >= count + models + len(STEPS) * count

    return wanted


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_triton_s_spans_hang_below_the_gateway_s(protocol: str, served: Server, collector: Collector) -> None:
    trace, span, parent = caller()
    with run_gateway("--url", getattr(served, f"{protocol}_url"), "--traces", collector.url) as url:
        status, _, _ = ask(f"{url}/v1/predict", {"rows": some_rows(3)}, traceparent=parent, **{"X-Request-ID": "mine"})
    assert status == 200
    spans = collector.of(trace, whole(1))
    own, theirs = by_name(spans, GATEWAY), by_name(spans, TRITON)
    assert set(own) == {"POST /v1/predict", "decode", "infer", "encode"}
    root = own["POST /v1/predict"]
    assert (root.parent, root.kind, root.failed) == (span, "SERVER", False)
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/predict",
        "http.response.status_code": 200,
        "url.path": "/v1/predict",
        "url.scheme": "http",
        "tristage.request_id": "mine",
        "tristage.rows": 3,
        "tristage.stack": "shop",
        "tristage.version": __version__,
    }
    assert {name: root.attributes[name] for name in expected} == expected
    steps = [own[name] for name in ("decode", "infer", "encode")]
    assert [step.parent for step in steps] == [root.id] * 3
    times = [root.began, *(time for step in steps for time in (step.began, step.ended)), root.ended]
    assert times == sorted(times)
    assert own["infer"].kind == "CLIENT"
    assert own["infer"].attributes["server.port"] == int(getattr(served, f"{protocol}_url").rpartition(":")[2])
    assert own["infer"].attributes.get("rpc.method") == ("ModelInfer" if protocol == "grpc" else None)

    assert theirs["InferRequest"].parent == own["infer"].id
    assert theirs["shop"].parent == theirs["InferRequest"].id
    assert {theirs[f"shop_{step}"].parent for step in STEPS} == {theirs["shop"].id}
    assert own["infer"].began <= theirs["InferRequest"].ended <= own["infer"].ended + 50_000_000
    assert collector.paths == {"/v1/traces"}


def test_a_request_without_a_trace_gets_one(gateway: str, collector: Collector) -> None:
    name = secrets.token_hex(8)
    assert ask(f"{gateway}/v1/predict", {"rows": some_rows(1)}, **{"X-Request-ID": name})[0] == 200
    end = time.monotonic() + 20
    while not (roots := [each for each in collector.spans if each.attributes.get("tristage.request_id") == name]):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert [root.parent for root in roots] == [""]
    spans = collector.of(roots[0].trace, whole(1))
    assert by_name(spans, TRITON)["InferRequest"].parent == by_name(spans, GATEWAY)["infer"].id


def test_a_request_that_triton_gets_in_parts_is_one_trace(gateway: str, collector: Collector) -> None:
    trace, _, parent = caller()
    assert ask(f"{gateway}/v1/predict", {"rows": some_rows(150)}, traceparent=parent)[0] == 200
    spans = collector.of(trace, whole(3))  # the stack takes 64 rows at once
    requests = [span for span in spans if span.name == "InferRequest"]
    assert [span.parent for span in requests] == [by_name(spans, GATEWAY)["infer"].id] * 3


def test_a_row_step_by_step(gateway: str, collector: Collector) -> None:
    trace, _, parent = caller()
    assert ask(f"{gateway}/v1/steps", {"row": some_rows(1)[0]}, traceparent=parent)[0] == 200

    def wanted(spans: list[Span]) -> bool:
        return Counter(span.name for span in spans)["InferRequest"] == len(STEPS) and len(spans) >= 14

    spans = collector.of(trace, wanted)
    own = by_name(spans, GATEWAY)
    assert own["POST /v1/steps"].attributes["http.route"] == "/v1/steps"
    assert {span.parent for span in spans if span.name == "InferRequest"} == {own["infer"].id}


def test_what_its_caller_does_not_record_is_not_recorded(gateway: str, collector: Collector) -> None:
    (unwanted, _, unsampled), (wanted, _, sampled) = caller(sampled=False), caller()
    for parent in (unsampled, sampled):  # the second shows that what came before it has been exported
        assert ask(f"{gateway}/v1/predict", {"rows": some_rows(1)}, traceparent=parent)[0] == 200
    collector.of(wanted, whole(1))
    assert not [span for span in collector.spans if span.trace == unwanted]


def test_a_refusal_is_seen_and_no_value_of_a_row_is(gateway: str, collector: Collector) -> None:
    trace, _, parent = caller()
    row = {**some_rows(1)[0], "user.age": "a-secret-of-mine"}
    status, body, _ = ask(f"{gateway}/v1/predict", {"rows": [row]}, traceparent=parent)
    assert (status, "a-secret-of-mine" in body["reason"]) == (400, True)
    spans = by_name(collector.of(trace, lambda spans: len(spans) == 2), GATEWAY)
    assert set(spans) == {"POST /v1/predict", "decode"}
    root = spans["POST /v1/predict"]
    assert (root.attributes["http.response.status_code"], root.attributes["tristage.refusal"]) == (400, "input")
    assert (root.failed, spans["decode"].failed) == (False, True)
    assert spans["decode"].attributes["error.type"] == "InputError"
    assert "a-secret-of-mine" not in repr(spans)


def test_a_model_that_fails_is_seen(gateway: str, collector: Collector) -> None:
    trace, _, parent = caller()
    row = {**some_rows(1)[0], "class": "fail"}
    assert ask(f"{gateway}/v1/predict", {"rows": [row]}, traceparent=parent)[0] == 502
    spans = by_name(collector.of(trace, lambda spans: len(by_name(spans, GATEWAY)) == 3), GATEWAY)
    root, asked = spans["POST /v1/predict"], spans["infer"]
    assert root.failed
    assert (root.attributes["error.type"], root.attributes["tristage.refusal"]) == ("502", "failed")
    assert asked.failed
    assert asked.attributes["error.type"] == "InferenceFailed"


def test_opentelemetry_s_own_variables_name_the_collector(repository: Path, collector: Collector) -> None:
    trace, _, parent = caller()
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "door"}
    command = [str(Path(sys.executable).with_name("tristage")), "serve", str(repository)]
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    server = subprocess.Popen([*command, *ports], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stderr is not None
        said: dict[str, str] = {}
        for line in server.stderr:
            if line.startswith(("gRPC ", "traces ")):
                said.update([line.split()])
            if "Ctrl-C" in line:
                break
        assert said["traces"] == f"{collector.url}/v1/traces"
        with run_gateway("--url", said["gRPC"], **variables) as url:
            assert ask(f"{url}/v1/predict", {"rows": some_rows(1)}, traceparent=parent)[0] == 200
        spans = collector.of(trace, lambda spans: {"door", TRITON} <= {span.service for span in spans})
        assert by_name(spans, "door")["POST /v1/predict"].trace == trace
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_a_collector_that_is_away_holds_nothing_up(served: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        gone = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with run_gateway("--url", served.grpc_url, "--traces", gone) as url:
            for _ in range(20):
                began = time.monotonic()
                assert ask(f"{url}/v1/predict", {"rows": some_rows(1)})[0] == 200
                assert time.monotonic() - began < 5
            ending = time.monotonic()
        assert time.monotonic() - ending < 15


def test_off_nothing_of_opentelemetry_s_sdk_is_loaded(served: Server, cli: Any) -> None:
    program = (
        "import sys; from tristage.gateway.app import create_app; from tristage.gateway.settings import Settings; "
    )
    program += "create_app(Settings()); print([name for name in sys.modules if 'opentelemetry.sdk' in name "
    program += "or 'opentelemetry.exporter' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
    wrong = cli("gateway", "--port", "0", "--traces", "collector:4318")
    assert wrong.code == 2
    assert "write the address of its OTLP over HTTP" in wrong.err

"""The gateway as a user runs it, before a real Triton."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from environments import python_with
from gateway_stack import SIGNATURE, answer, run_gateway, some_rows, write_repository

from tristage.manifest import read_manifest
from tristage.serving import Server, serve

STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
PARQUET = "application/vnd.apache.parquet"


def start(root: Path, **ports: int) -> Server:
    return serve(root, **{"http_port": 0, "grpc_port": 0, "metrics_port": 0, **ports})


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("gateway") / "repository")


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Server]:
    with start(repository) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(served: Server, repository: Path) -> Iterator[str]:
    with run_gateway(
        "--url", served.grpc_url, "--repository", repository, "--max-rows", 1000, "--max-body-mib", 1
    ) as url:
        yield url


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(url: str, body: Any = None, **headers: str) -> Answer:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **given})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


# --------------------------------------------------------------------------------------------------------- answers


def test_json(gateway: str) -> None:
    rows = some_rows(150)
    got = ask(f"{gateway}/v1/predict", {"rows": rows})
    assert got.status == 200
    assert got.json == {"predictions": [answer(row) for row in rows]}
    assert got.headers["X-Lists-Cut"] is None


def test_what_json_cannot_say(gateway: str) -> None:
    row = {**some_rows(5)[4], "amount": math.nan, "user.age": None}
    got = ask(f"{gateway}/v1/predict", {"rows": [row]})
    assert got.json == {"predictions": [{"click": None, "buy": answer(row)["buy"]}]}


def _arrow(rows: list[dict[str, Any]], kind: str) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = BytesIO()
    if kind == PARQUET:
        pq.write_table(table, sink)
    else:
        with (pa.ipc.new_stream if kind == STREAM else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


def _read(body: bytes, kind: str) -> Any:
    if kind == PARQUET:
        return pq.read_table(BytesIO(body))
    return (pa.ipc.open_stream if kind == STREAM else pa.ipc.open_file)(body).read_all()


@pytest.mark.parametrize("kind", [STREAM, FILE, PARQUET])
@pytest.mark.parametrize("count", [1, 150])
def test_arrow_and_parquet(gateway: str, kind: str, count: int) -> None:
    rows = some_rows(count + 1)[-count:]
    got = ask(f"{gateway}/v1/predict", _arrow(rows, kind), Content_Type=kind)
    assert (got.status, got.headers["Content-Type"]) == (200, kind)
    table = _read(got.body, kind)
    assert table.to_pylist() == [answer(row) for row in rows]
    assert list(map(str, table.schema.types)) == ["float", "double"]


def test_lists_that_are_cut_are_said(gateway: str) -> None:
    rows = [{**row, "tokens": [1] * 6} for row in some_rows(3)]
    got = ask(f"{gateway}/v1/predict", {"rows": rows})
    assert got.json["predictions"] == [answer(row) for row in rows]
    assert got.headers["X-Lists-Cut"] == "tokens=3"


def test_steps(gateway: str) -> None:
    row = some_rows(5)[4]
    got = ask(f"{gateway}/v1/steps", {"row": row}).json
    assert got["prediction"] == answer(row)
    assert sorted(step["step"] for step in got["steps"][1:3]) == ["net", "trees"]
    values = {output["name"]: output["values"] for step in got["steps"] for output in step["outputs"]}
    assert values["trees__float32"] == [row["amount"] / 2, row["user.age"] / 2]
    assert values["features__float32"] == [row["amount"], row["user.age"], 0.0, 1.0, 6.0]
    assert ask(f"{gateway}/v1/steps", {"row": [row]}).status == 400
    assert ask(f"{gateway}/v1/steps", {"row": {**row, "user.age": "x"}}).json["column"] == "user.age"


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "column", "reason"),
    [
        ({"user.age": "old"}, "user.age", "expected a whole number"),
        ({"class": None}, "class", "a null, and the column is not nullable"),
        ({"tokens": 5}, "tokens", "expected a list"),
        ({"colour": "red"}, "colour", "unknown to the stack"),
        ({"amount": 1e39}, "amount", "too large"),
    ],
)
def test_a_bad_row_is_named(gateway: str, change: Any, column: str, reason: str) -> None:
    rows = some_rows(3)
    got = ask(f"{gateway}/v1/predict", {"rows": [*rows[:2], {**rows[2], **change}]}, X_Request_ID="my-request")
    assert (got.status, got.json["error"]) == (400, "input")
    assert (got.json["column"], got.json["row"], got.json["request_id"]) == (column, 2, "my-request")
    assert reason in got.json["reason"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"{", "application/json", 400, "not JSON"),
        (b"[]", "application/json", 400, "one JSON object"),
        (b'{"rows": []}', "application/json", 400, "no rows"),
        (b'{"rows": [1]}', "application/json", 400, "row 0 is a int"),
        (b"[" * 5000, "application/json", 400, "not JSON"),
        (b"\xff" * 50, STREAM, 400, "cannot be read as an Arrow stream"),
        (b"", FILE, 400, "cannot be read as an Arrow file"),
        (b"PAR1" * 5, PARQUET, 400, "cannot be read as a Parquet file"),
        (b"a,b", "text/csv", 415, "send one of application/json"),
        (json.dumps({"rows": [{}] * 1001}).encode(), "application/json", 413, "more than 1000 rows"),
        (b" " * (1 << 20) + b"{}", "application/json", 413, "more than 1048576 bytes"),
    ],
)
def test_a_bad_body(gateway: str, body: bytes, kind: str, status: int, reason: str) -> None:
    got = ask(f"{gateway}/v1/predict", body, Content_Type=kind)
    assert got.status == status
    assert reason in got.json["reason"]


def test_a_body_without_a_length_is_counted(gateway: str) -> None:
    async def main() -> int:
        async def parts() -> Any:
            for _ in range(40):
                yield b" " * 65536

        headers = {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{gateway}/v1/predict", data=parts()) as response,
        ):
            return response.status

    assert asyncio.run(main()) == 413


@pytest.mark.parametrize("kind", [STREAM, FILE, PARQUET])
def test_forged_bytes_do_no_harm(gateway: str, kind: str) -> None:
    whole = _arrow(some_rows(30), kind)
    for at in range(8, len(whole), max(1, len(whole) // 150)):
        forged = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        assert ask(f"{gateway}/v1/predict", forged, Content_Type=kind).status in (200, 400, 413)
    assert ask(f"{gateway}/readyz").status == 200


def test_a_small_file_that_unpacks_to_much(gateway: str) -> None:
    row = some_rows(1)[0]
    table = pa.Table.from_pylist([{**row, "class": "a" * 400_000}] * 900)
    sink = BytesIO()
    pq.write_table(table, sink, compression="zstd")
    assert len(sink.getvalue()) < 100_000
    got = ask(f"{gateway}/v1/predict", sink.getvalue(), Content_Type=PARQUET)
    assert got.status == 413
    assert "in memory" in got.json["reason"]


def test_a_model_that_fails(gateway: str) -> None:
    got = ask(f"{gateway}/v1/predict", {"rows": [{**some_rows(1)[0], "class": "fail"}]})
    assert (got.status, got.json["error"]) == (502, "failed")
    assert "unwell" in got.json["reason"]


def test_the_deadline_is_kept(gateway: str) -> None:
    slow = {"rows": [{**some_rows(1)[0], "class": "sleep"}]}
    began = time.monotonic()
    got = ask(f"{gateway}/v1/predict", slow, X_Request_Timeout_Ms="300")
    assert (got.status, got.json["error"]) == (504, "late")
    assert time.monotonic() - began < 1.2
    for wrong in ("0", "-5", "soon", "1.5"):
        assert ask(f"{gateway}/v1/predict", slow, X_Request_Timeout_Ms=wrong).status == 400
    assert ask(f"{gateway}/v1/live").json["in_flight"] == 1  # Triton is still at it
    time.sleep(1.5)
    assert ask(f"{gateway}/v1/live").json["in_flight"] == 0


def test_request_ids(gateway: str) -> None:
    assert ask(f"{gateway}/livez", X_Request_ID="a b").headers["X-Request-ID"] != "a b"
    first, second = (ask(f"{gateway}/livez").headers["X-Request-ID"] for _ in range(2))
    assert len(first) == 16
    assert first != second
    assert ask(f"{gateway}/v1/nothing", X_Request_ID="it").json["request_id"] == "it"
    assert ask(f"{gateway}/v1/predict").status == 405


def test_browsers_of_other_origins_are_kept_out(gateway: str, served: Server) -> None:
    assert ask(f"{gateway}/livez", Origin="https://shop.example").headers["Access-Control-Allow-Origin"] is None
    with run_gateway("--url", served.grpc_url, TRISTAGE_CORS_ORIGINS="https://shop.example") as url:
        got = ask(f"{url}/livez", Origin="https://shop.example")
        assert got.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        assert ask(f"{url}/livez", Origin="https://other.example").headers["Access-Control-Allow-Origin"] is None


def test_keys_and_rates(served: Server, tmp_path: Path) -> None:
    body = {"rows": some_rows(1)}
    ours, theirs = "0123456789abcdef-ours", "0123456789abcdef-theirs"
    (tmp_path / "keys").write_text(f"# callers\nours:{ours}\n")
    arguments = ("--url", served.grpc_url, "--api-keys-file", tmp_path / "keys", "--rate", 0.5)
    with run_gateway(*arguments, TRISTAGE_API_KEYS=f"theirs:{theirs}") as url:
        for wrong in (
            {},
            {"Authorization": "Bearer nope"},
            {"Authorization": f"Basic {ours}"},
            {"Authorization": "Bearer"},
        ):
            got = ask(f"{url}/v1/predict", body, **wrong)
            assert (got.status, got.json["error"]) == (401, "unauthorized")
            assert got.headers["WWW-Authenticate"] == "Bearer"
        for path in ("v1/stack", "v1/live"):
            assert ask(f"{url}/{path}").status == 401
            assert ask(f"{url}/{path}", Authorization=f"Bearer {ours}").status == 200
        assert ask(f"{url}/readyz").status == 200
        assert ask(f"{url}/v1/predict", body, Authorization=f"Bearer {ours}").status == 200
        got = ask(f"{url}/v1/predict", body, Authorization=f"Bearer {ours}")
        assert (got.status, got.json["error"], got.headers["Retry-After"]) == (429, "rate", "2")
        assert ask(f"{url}/v1/predict", body, Authorization=f"bearer {theirs}").status == 200


# ------------------------------------------------------------------------------------------------------- the stack


def test_the_stack_is_described(gateway: str, repository: Path) -> None:
    got = ask(f"{gateway}/v1/stack").json
    manifest = read_manifest(repository)
    assert got["stack"] == "shop"
    assert got["export"]["files"] == manifest.files
    assert got["export"]["versions"] == manifest.versions
    assert [column["name"] for column in got["inputs"]] == [column.name for column in SIGNATURE.inputs]
    assert {tuple(edge) for edge in got["graph"]["edges"]} == {
        ("inputs", "shop_features"),
        ("inputs", "shop_net"),
        ("shop_features", "shop_trees"),
        ("shop_features", "shop_net"),
        ("shop_features", "shop_score"),
        ("shop_trees", "shop_score"),
        ("shop_net", "shop_score"),
        ("shop_score", "outputs"),
    }
    assert ask(f"{gateway}/v1/predict", {"rows": [got["example"]]}).json == {"predictions": [answer(got["example"])]}
    assert got["example"] == some_rows(8)[7]


def test_without_a_repository_the_columns_are_known_all_the_same(served: Server) -> None:
    with run_gateway(TRISTAGE_TRITON_URL=served.http_url) as url:
        got = ask(f"{url}/v1/stack").json
        assert (got["stack"], got["export"]) == ("shop", None)
        assert [step["step"] for step in got["graph"]["steps"]][0] == "shop_features"
        assert ask(f"{url}/v1/predict", {"rows": [got["example"]]}).json == {"predictions": [answer(got["example"])]}


def test_the_openapi_document_knows_the_columns(gateway: str) -> None:
    document = ask(f"{gateway}/openapi.json").json
    row = document["components"]["schemas"]["Row"]
    assert row["required"] == [column.name for column in SIGNATURE.inputs]
    assert row["properties"]["user.age"]["type"] == ["integer", "null"]
    assert row["properties"]["user.age"]["maximum"] == 2**31 - 1
    assert row["properties"]["tokens"]["items"]["type"] == "integer"
    assert row["properties"]["class"]["examples"] == [some_rows(8)[7]["class"]]
    assert set(document["components"]["schemas"]["Prediction"]["properties"]) == {"click", "buy"}
    docs = ask(f"{gateway}/docs").body.decode()
    assert "http://" not in docs
    assert "https://" not in docs


def test_live_totals_and_metrics(gateway: str) -> None:
    before = ask(f"{gateway}/v1/live").json
    while time.sleep(1) or (now := ask(f"{gateway}/v1/live").json)["models"] != before["models"]:
        before = now  # until what was asked before is counted
    for _ in range(5):
        assert ask(f"{gateway}/v1/predict", {"rows": some_rows(2)}).status == 200
    assert ask(f"{gateway}/v1/predict", {"rows": [{**some_rows(1)[0], "class": "crash"}]}).status == 502
    expected = {"shop": 5, "shop_features": 5, "shop_trees": 5, "shop_net": 5, "shop_score": 5}
    deadline = time.monotonic() + 20
    while True:  # Triton counts a request a moment after it has answered it, and the gateway asks once in a while
        after = ask(f"{gateway}/v1/live").json
        grown = {name: after["models"][name]["calls"] - before["models"][name]["calls"] for name in after["models"]}
        errors = after["models"]["shop_features"]["errors"] - before["models"]["shop_features"]["errors"]
        if (grown, errors) == (expected, 1):
            break
        assert time.monotonic() < deadline, (grown, errors)
        time.sleep(0.3)
    assert after["gateway"]["rows"] == before["gateway"]["rows"] + 10
    assert after["gateway"]["seconds"][-1][1] == before["gateway"]["seconds"][-1][1] + 5
    text = ask(f"{gateway}/metrics").body.decode()
    assert "tristage_gateway_triton_up 1.0" in text
    assert 'tristage_gateway_requests_total{route="/v1/predict",status="502"}' in text
    assert 'tristage_gateway_refused_total{code="failed"}' in text


# ------------------------------------------------------------------------------------------------------ hard times


def test_schemathesis_finds_no_fault(gateway: str) -> None:
    schemathesis = python_with("schemathesis==4.32.5").with_name("st")
    command = [
        schemathesis,
        "run",
        f"{gateway}/openapi.json",
        "--max-examples",
        "40",
        "--seed",
        "1",
        "--phases",
        "examples,coverage,fuzzing",
    ]
    command += [
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,positive_data_acceptance",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd="/tmp")
    assert done.returncode == 0, done.stdout[-5000:]


async def _load(url: str, body: bytes, seconds: float, workers: int) -> list[tuple[float, int, float, str | None]]:
    """When each request began, how it ended, how long it took and what Retry-After it got, of so many workers."""
    found: list[tuple[float, int, float, str | None]] = []
    end = time.monotonic() + seconds

    async def worker(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            async with session.post(
                f"{url}/v1/predict", data=body, headers={"Content-Type": "application/json"}
            ) as got:
                await got.read()
                found.append((began, got.status, time.monotonic() - began, got.headers.get("Retry-After")))
            await asyncio.sleep(0.01 if got.status == 200 else 0.05)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(20)) as session:
        await asyncio.gather(*(worker(session) for _ in range(workers)))
    return found


def test_load_above_capacity_is_refused(served: Server) -> None:
    body = json.dumps({"rows": [{**some_rows(1)[0], "class": "nap"}]}).encode()  # 50 a second at most
    with run_gateway("--url", served.grpc_url, "--max-in-flight", 8) as url:
        found = asyncio.run(_load(url, body, 4.0, 100))
        statuses = Counter(status for _, status, _, _ in found)
        assert set(statuses) == {200, 503}
        assert statuses[200] > 50
        assert statuses[503] > statuses[200]
        assert {retry for _, status, _, retry in found if status == 503} == {"1"}
        assert max(took for _, _, took, _ in found) < 5
        assert ask(f"{url}/v1/predict", body).status == 200
        assert ask(f"{url}/v1/live").json["in_flight"] == 0


def test_hundreds_wait_in_one_process(served: Server) -> None:
    body = json.dumps({"rows": [{**some_rows(1)[0], "class": "nap"}]}).encode()

    async def main(url: str) -> tuple[list[int], int]:
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one() -> int:
                async with session.post(f"{url}/v1/predict", data=body) as got:
                    return got.status

            waiting = [asyncio.ensure_future(one()) for _ in range(250)]
            inside = 0
            while inside <= 100 and not all(task.done() for task in waiting):
                async with session.get(f"{url}/v1/live") as got:
                    inside = max(inside, (await got.json())["in_flight"])
            return await asyncio.gather(*waiting), inside

    with run_gateway("--url", served.grpc_url, "--timeout", 30) as url:
        statuses, inside = asyncio.run(main(url))
    assert statuses == [200] * 250
    assert inside > 100


@pytest.mark.slow
def test_triton_is_killed_under_load_and_comes_back(repository: Path) -> None:
    body = json.dumps({"rows": some_rows(3)}).encode()
    with start(repository) as server:
        ports = {f"{name}_port": int(getattr(server, f"{name}_url").rpartition(":")[2]) for name in ("http", "grpc")}
        with run_gateway("--url", server.grpc_url) as url, ThreadPoolExecutor(1) as pool:
            load = pool.submit(lambda: asyncio.run(_load(url, body, 20.0, 16)))
            time.sleep(2)
            killed = time.monotonic()
            os.kill(server.pid, signal.SIGKILL)
            server.stop()
            time.sleep(1)
            got = ask(f"{url}/v1/predict", body)
            assert (got.status, got.json["error"], got.headers["Retry-After"]) == (503, "away", "1")
            assert (ask(f"{url}/readyz").status, ask(f"{url}/livez").status) == (503, 200)
            with start(repository, **ports):
                back = time.monotonic()
                while ask(f"{url}/readyz").status != 200:
                    assert time.monotonic() - back < 5
                    time.sleep(0.1)
                found = load.result(60)
                assert ask(f"{url}/v1/predict", body).status == 200
    assert {status for _, status, _, _ in found} == {200, 503}
    assert max(took for _, status, took, _ in found if status == 503) < 3.0
    # none where Triton is back within a moment: then the answer asked for above stands alone
    during = [status for began, status, took, _ in found if killed + 1 < began and began + took < back - 0.5]
    assert set(during) <= {503}
    after = [status for began, status, _, _ in found if began > back + 3]
    assert after
    assert set(after) == {200}


def test_the_gateway_may_start_first_and_another_stack_may_follow(repository: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with run_gateway("--url", f"grpc://127.0.0.1:{port}", "--repository", repository) as url:
        assert (ask(f"{url}/readyz").status, ask(f"{url}/livez").status) == (503, 200)
        assert ask(f"{url}/v1/predict", {"rows": []}).status == 503
        assert ask(f"{url}/openapi.json").status == 200
        with start(repository, grpc_port=port):
            _eventually_ready(url)
            assert ask(f"{url}/v1/stack").json["max_batch"] == 64
        other = shutil.copytree(repository, tmp_path / "other")
        config = other / "shop" / "config.pbtxt"
        config.write_text(config.read_text().replace('\\"max_batch\\":64', '\\"max_batch\\":32'))
        _write_manifest_again(other)
        with start(other, grpc_port=port):
            _eventually_ready(url)
            got = ask(f"{url}/v1/stack").json
            assert (got["max_batch"], got["export"]) == (32, None)
            assert "another export" in got["note"]
            assert ask(f"{url}/v1/predict", {"rows": some_rows(40)}).status == 200


def _eventually_ready(url: str) -> None:
    end = time.monotonic() + 10
    while ask(f"{url}/readyz").status != 200:
        assert time.monotonic() < end
        time.sleep(0.1)


def _write_manifest_again(root: Path) -> None:
    from dataclasses import replace

    from tristage.manifest import checksums, write_manifest

    manifest = read_manifest(root)
    signature = replace(manifest.signature, max_batch=32)
    write_manifest(root, replace(manifest, signature=signature, files=checksums(root)))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--url", "ftp://x"], 2, "is not a server's"),
        (["--rate", "0"], 2, "lets nobody in"),
        (["--api-keys-file", "/nowhere"], 2, "cannot be read"),
        (["--api-keys-file", "/dev/null"], 2, "hold no key"),
        (["--host", "203.0.113.1"], 3, "cannot listen"),
    ],
)
def test_wrong_settings_end_at_once(cli: Any, arguments: list[str], code: int, says: str) -> None:
    done = cli("gateway", "--port", "0", *arguments)
    assert done.code == code
    assert says in done.err


def test_a_taken_port_is_said(cli: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli("gateway", "--port", taken.getsockname()[1])
    assert done.code == 3
    assert "is taken" in done.err

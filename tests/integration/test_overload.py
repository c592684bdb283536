"""More requests than can be answered: refusals come at once, nothing hangs, and afterwards all is as before."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from gateway_stack import SIGNATURE, run_gateway, some_rows, write_repository

from benchmarks.callers import Callers, request_bytes
from benchmarks.overload import (
    ANSWERED,
    DEADLINE,
    LATE,
    REFUSED,
    Door,
    Watch,
    due_at,
    grpc_door,
    http_door,
    one_after_the_other,
    resident,
    with_children,
)
from tristage.client import encode
from tristage.client._wire import grpc_request
from tristage.serving import serve

GROWTH = 10.0  # MB that a second flood may add to what the first one took
FAST = json.dumps({"rows": some_rows(1)}).encode()
NAP = {**some_rows(1)[0], "class": "nap"}  # the stack sleeps 20 ms over such a row, so that it answers 50 a second
RATE, SECONDS = 150.0, 8.0
Outcomes = Mapping[str, Sequence[float]]
HANGS = 3 * DEADLINE  # seconds after which a request is said to hang; the machine may be busy


def live(url: str) -> Any:
    """What the gateway says of itself."""
    return json.load(urllib.request.urlopen(f"{url}/v1/live", timeout=30))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("overload") / "repository")


async def load(door: Door, processes: Mapping[int, str]) -> tuple[Outcomes, Sequence[float], Watch]:
    """What became of a load, what a caller alone then waits, and what memory did."""
    await one_after_the_other(door.ask, 1.0, 16)
    with Watch(processes) as watch:
        outcomes = await due_at(door.ask, RATE, SECONDS)
    deadline = time.monotonic() + 120
    while await door.ask() != ANSWERED:  # Triton may have requests left that nobody waits for
        assert time.monotonic() < deadline, "nobody is answered any more"
        await asyncio.sleep(0.1)
    return outcomes, await one_after_the_other(door.ask, 1.0), watch


def check(outcomes: Outcomes, after: Sequence[float], watch: Watch) -> None:
    assert sum(map(len, outcomes.values())) == int(RATE * SECONDS)
    assert outcomes[ANSWERED]
    assert max(max(took) for took in outcomes.values()) < HANGS
    assert after
    for memory in watch.memory():
        assert memory.end < memory.start + 100, memory


def test_the_gateway_refuses_what_it_cannot_take(repository: Path) -> None:
    async def overload(url: str, processes: Mapping[int, str]) -> Any:
        async with http_door(url, json.dumps({"rows": [NAP]}).encode()) as door:
            return door, await load(door, processes)

    with (
        serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        run_gateway("--url", server.grpc_url, "--max-in-flight", 8) as url,
    ):
        door, found = asyncio.run(overload(url, with_children(server.pid)))
        outcomes, _, _ = found
        check(*found)
        assert set(outcomes) == {ANSWERED, REFUSED}, door.faults
        assert door.retry_after >= len(outcomes[REFUSED])
        deadline = time.monotonic() + 30
        while json.load(urllib.request.urlopen(f"{url}/v1/live", timeout=10))["in_flight"]:
            assert time.monotonic() < deadline, "a place is still taken"
            time.sleep(0.1)


@pytest.mark.slow
def test_triton_itself_answers_everybody_some_day(repository: Path) -> None:
    async def overload(address: str, processes: Mapping[int, str]) -> Any:
        request = grpc_request("shop", encode([NAP], SIGNATURE), ["click"])
        async with grpc_door(address, request) as door:
            return await load(door, processes)

    with serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        found = asyncio.run(overload(server.grpc_url.removeprefix("grpc://"), with_children(server.pid)))
        check(*found)
        assert set(found[0]) <= {ANSWERED, LATE}
        assert server.alive()


def resident_of(url: str) -> float:
    """MB of the gateway that listens there."""
    port = int(url.rpartition(":")[2])
    pids = {each.pid for each in psutil.net_connections("tcp") if each.laddr.port == port and each.status == "LISTEN"}
    (pid,) = pids - {None}
    assert pid is not None
    return resident(pid)


def test_refusals_do_not_wait_for_those_who_are_inside(repository: Path, tmp_path: Path) -> None:
    """Those inside wait for a file to go, which it does once everybody else has been refused."""
    closed = tmp_path / "closed"
    closed.touch()
    rows = json.dumps({"rows": [{**NAP, "class": str(closed)}]}).encode()
    large = json.dumps({"rows": [{**NAP, "class": "x" * 3_000_000}]}).encode()

    async def main(url: str) -> None:
        callers = Callers(url, 400)
        waits = request_bytes(url, "/v1/predict", rows)
        inside = [asyncio.ensure_future(callers.ask(waits, HANGS)) for _ in range(8)]
        while (await asyncio.to_thread(live, url))["in_flight"] < 8:
            await asyncio.sleep(0.02)
        for request in (
            waits,
            request_bytes(url, "/v1/steps", rows),
            request_bytes(url, "/v1/predict", large),  # read and thrown away
            request_bytes(url, "/v1/predict", rows, Connection="close"),
            request_bytes(url, "/v1/predict", rows, Expect="100-continue"),
        ):
            count = 300 if len(request) < len(large) else 30
            answers = await asyncio.gather(*(callers.ask(request, HANGS) for _ in range(count)))
            assert {(each.status, each.retry_after) for each in answers} == {(503, True)}
            assert {json.loads(each.body)["error"] for each in answers} == {"full"}
        # a body that is announced and never comes holds a connection for a moment only
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), HANGS)  # to the end of the connection
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in answer
        writer.close()
        assert not any(each.done() for each in inside)
        closed.unlink()
        assert {each.status for each in await asyncio.gather(*inside)} == {200}
        assert (await callers.ask(request_bytes(url, "/v1/predict", FAST), HANGS)).status == 200
        callers.close()

    with (
        serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        run_gateway("--url", server.grpc_url, "--max-in-flight", 8, "--timeout", 120) as url,
    ):
        asyncio.run(main(url))


def test_bodies_together_are_bounded(repository: Path, tmp_path: Path) -> None:
    """Sixteen of the largest bodies are held, in whichever way they come; the next is refused, and places stay free."""
    closed = tmp_path / "closed"
    closed.touch()
    rows = json.dumps({"rows": [{**NAP, "class": str(closed)}]}).encode()
    padded = rows + b" " * ((1 << 20) - len(rows))  # the largest body there may be

    async def main(url: str) -> None:
        callers, request = Callers(url, 32), request_bytes(url, "/v1/predict", padded)
        inside = [asyncio.ensure_future(callers.ask(request, HANGS)) for _ in range(16)]
        while (await asyncio.to_thread(live, url))["in_flight"] < 16:
            await asyncio.sleep(0.02)
        refused = await callers.ask(request, HANGS)
        assert (refused.status, refused.retry_after) == (503, True)
        assert "bytes of requests are held" in json.loads(refused.body)["reason"]
        chunked = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        assert (await callers.ask(chunked % (len(rows), rows), HANGS)).status == 503
        closed.unlink()
        assert {each.status for each in await asyncio.gather(*inside)} == {200}
        assert (await callers.ask(chunked % (len(padded), padded), HANGS)).status == 200
        callers.close()

    with (
        serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        run_gateway("--url", server.grpc_url, "--max-body-mib", 1, "--timeout", 120) as url,
    ):
        asyncio.run(main(url))


def test_connections_are_bounded_and_health_is_seen(repository: Path) -> None:
    async def main(url: str) -> None:
        many, fast = Callers(url, 100), request_bytes(url, "/v1/predict", FAST)
        kept = [asyncio.ensure_future(many.ask(fast, HANGS)) for _ in range(100)]
        statuses = Counter((each.status, each.retry_after) for each in await asyncio.gather(*kept))
        assert set(statuses) == {(200, False), (503, True)}
        assert statuses[200, False] >= 20
        assert statuses[503, True] >= 1
        # the twenty connections are kept: whoever comes now is refused, but for those who look after the gateway
        for _ in range(3):
            other = Callers(url, 1)
            answer = await other.ask(fast, HANGS)
            assert (answer.status, json.loads(answer.body)["error"]) == (503, "connections")
            with urllib.request.urlopen(f"{url}/readyz", timeout=30) as ready:
                assert ready.status == 200
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as metrics:
            assert b'tristage_gateway_refused_total{code="connections"}' in metrics.read()
        many.close()
        deadline = time.monotonic() + 60
        while (await Callers(url, 1).ask(fast, HANGS)).status != 200:
            assert time.monotonic() < deadline, "connections that were closed are still counted"
            await asyncio.sleep(0.05)

    with (
        serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        run_gateway("--url", server.grpc_url, "--max-connections", 20) as url,
    ):
        asyncio.run(main(url))


def test_a_flood_leaves_nothing_behind(repository: Path) -> None:
    async def flood(url: str, seconds: float) -> Counter[tuple[int, bool]]:
        callers, seen = Callers(url, 400), Counter[tuple[int, bool]]()
        request, end = (
            request_bytes(url, "/v1/predict", json.dumps({"rows": [NAP]}).encode()),
            time.monotonic() + seconds,
        )

        async def call() -> None:
            while time.monotonic() < end:
                answer = await callers.ask(request, HANGS)
                seen[answer.status, answer.retry_after] += 1

        await asyncio.gather(*(call() for _ in range(400)))
        assert callers.opened == 400  # a refusal costs no connection
        callers.close()
        return seen

    async def alone(url: str) -> int:
        return (await Callers(url, 1).ask(request_bytes(url, "/v1/predict", FAST), HANGS)).status

    with (
        serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        run_gateway("--url", server.grpc_url, "--max-in-flight", 8) as url,
    ):
        memory = []
        for _ in range(2):
            seen = asyncio.run(flood(url, 4.0))
            assert set(seen) == {(200, False), (503, True)}
            assert asyncio.run(alone(url)) == 200
            memory.append(resident_of(url))
        assert memory[1] < memory[0] + GROWTH, memory


def test_too_few_files_are_said_before_anybody_is_let_in() -> None:
    command = [str(Path(sys.executable).with_name("tristage")), "gateway", "--port", "0"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 500; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "may have 500 files open, and needs" in " ".join(done.stderr.split())

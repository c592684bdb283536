"""More requests than can be answered: refusals come at once, nothing hangs, and afterwards all is as before."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from gateway_stack import SIGNATURE, run_gateway, some_rows, write_repository

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
    with_children,
)
from tristage.client import encode
from tristage.client._wire import grpc_request
from tristage.serving import serve

NAP = {**some_rows(1)[0], "class": "nap"}  # the stack sleeps 20 ms over such a row, so that it answers 50 a second
RATE, SECONDS = 150.0, 8.0
Outcomes = Mapping[str, Sequence[float]]
HANGS = 3 * DEADLINE  # seconds after which a request is said to hang; the machine may be busy


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

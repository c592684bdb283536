"""More requests than can be answered, for minutes: who is refused, how soon, what memory does, and what is left.

`python -m benchmarks.overload` from the repository's root (after `make demo`, which trains the stack) serves the small
reference stack on one core, and sends it twice what it can answer, from the other cores, which the gateway shares:
through the gateway over HTTP for five minutes, then to Triton itself over gRPC: as long where the stack is one model,
whose queue is bounded, and one minute where every step is one. Requests are due at times of their own (Poisson) and
timed from then, whether or not those before them were answered. Writes results/overload.json and .md; `--seconds 10` is
a look that writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.callers import Callers, request_bytes

RESULTS = Path(__file__).parent / "results"
DEADLINE = 10.0  # seconds that a request may take
CALLERS = 256  # that measure the capacity, each with one request on its way: as many as the gateway takes at once
UNBOUNDED = 60.0  # seconds at most for Triton where it refuses nobody: the backlog takes as long again
CONNECTIONS = 1024  # at most from the sender to the gateway; requests that are due and find none free wait
QUIET = 10.0  # seconds in which one caller asks alone, before and after
ANSWERED, REFUSED, LATE, FAILED = "answered", "refused", "late", "failed"

Ask = Callable[[], Awaitable[str]]  # sends one request; what became of it


@dataclass(frozen=True)
class Times:
    """Milliseconds from when requests were due to when they ended."""

    count: int
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times | None:
        """None where there are none."""
        if not seconds:
            return None
        p50, p99, most = np.percentile(np.asarray(seconds) * 1e3, [50, 99, 100])
        return cls(len(seconds), float(p50), float(p99), float(most))


@dataclass(frozen=True)
class Memory:
    """Resident MB of one process when the load began, at half its time, when it ended, and at most."""

    process: str
    start: float
    middle: float
    end: float
    most: float


@dataclass(frozen=True)
class Overloaded:
    """What became of a load beyond capacity.

    Attributes:
        capacity: requests a second that are answered when `CALLERS` ask one after the other.
        rate: requests a second that were due.
        seconds: how long.
        outcomes: answered, refused, late or failed -> how long that took.
        retry_after: refusals over HTTP that said when to come again; None over gRPC.
        faults: why requests failed -> how many.
        memory: of every process.
        before: one caller alone, before the load.
        recovered: seconds from the end of the load's last request until that caller was answered.
        after: the same caller in the seconds from then on.
    """

    capacity: float
    rate: float
    seconds: float
    outcomes: Mapping[str, Times]
    retry_after: int | None
    faults: Mapping[str, int]
    memory: tuple[Memory, ...]
    before: Times
    recovered: float
    after: Times


@dataclass
class Door:
    """Where requests go in, what its refusals said, and why requests failed."""

    ask: Ask
    retry_after: int | None = None
    faults: Counter[str] = field(default_factory=Counter)

    def failed(self, why: str) -> str:
        """Count a request that failed."""
        self.faults[why] += 1
        return FAILED


@contextlib.asynccontextmanager
async def http_door(url: str, body: bytes) -> AsyncIterator[Door]:
    """The gateway."""
    callers, request = Callers(url, CONNECTIONS), request_bytes(url, "/v1/predict", body)

    async def ask() -> str:
        try:
            answer = await callers.ask(request, 3 * DEADLINE)  # what takes as long hangs, and is counted as failed
        except (OSError, asyncio.TimeoutError) as error:
            return door.failed(repr(error))
        if answer.status == 503 and answer.retry_after:
            door.retry_after = (door.retry_after or 0) + 1
        known = {200: ANSWERED, 503: REFUSED, 504: LATE}.get(answer.status)
        return known or door.failed(f"status {answer.status}")

    door = Door(ask, 0)
    try:
        yield door
    finally:
        callers.close()


@contextlib.asynccontextmanager
async def grpc_door(address: str, request: Any) -> AsyncIterator[Door]:
    """Triton itself. Callers leave at the deadline, and their calls end by themselves: to cancel one may end Triton."""
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    calls: set[asyncio.Future[Any]] = set()

    def ended(call: Any) -> None:
        calls.discard(call)
        call.cancelled() or call.exception()  # of a call that nobody waits for any more

    async def ask() -> str:
        call = asyncio.ensure_future(stub.ModelInfer(request))
        calls.add(call)
        call.add_done_callback(ended)
        await asyncio.wait({call}, timeout=DEADLINE)
        if not call.done():
            return LATE
        if (error := call.exception()) is None:
            return ANSWERED
        code = error.code().name if isinstance(error, grpc.RpcError) else repr(error)
        return REFUSED if code == "UNAVAILABLE" else door.failed(code)

    door = Door(ask)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        yield door
        if calls:
            await asyncio.wait(calls)


async def one_after_the_other(ask: Ask, seconds: float, callers: int = 1) -> list[float]:
    """Seconds that each answered request took; callers whose request is not answered try again."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def call() -> None:
        while (began := time.perf_counter()) < end:
            if await ask() == ANSWERED:
                took.append(time.perf_counter() - began)
            else:
                await asyncio.sleep(0.01)

    await asyncio.gather(*(call() for _ in range(callers)))
    return took


async def due_at(ask: Ask, rate: float, seconds: float) -> dict[str, list[float]]:
    """Send requests at random times at a mean rate; outcome -> seconds from when each was due to its end."""
    outcomes: dict[str, list[float]] = {}
    gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds))
    start = time.perf_counter()

    async def send(due: float) -> None:
        outcome = await ask()
        outcomes.setdefault(outcome, []).append(time.perf_counter() - due)

    running: set[asyncio.Task[None]] = set()
    for due in start + np.cumsum(gaps):
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        task = asyncio.create_task(send(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return outcomes


class Watch:
    """Looks at the resident memory of processes, by name, every half second while its block lasts."""

    def __init__(self, processes: Mapping[int, str]) -> None:
        self._processes = processes
        self._seen: dict[int, list[float]] = {pid: [] for pid in processes}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            for pid, seen in self._seen.items():
                with contextlib.suppress(OSError):  # it has ended
                    seen.append(resident(pid))
            if self._done.wait(0.5):
                return

    def memory(self) -> tuple[Memory, ...]:
        """Of every process, the largest first."""
        found = [
            Memory(self._processes[pid], seen[0], seen[len(seen) // 2], seen[-1], max(seen))
            for pid, seen in self._seen.items()
        ]
        return tuple(sorted(found, key=lambda memory: -memory.end))


def resident(pid: int) -> float:
    """Resident MB of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def with_children(pid: int) -> dict[int, str]:
    """A server's processes, and what each is: tritonserver, or the step that a stub runs."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    model = next((Path(word).parent.parent.name for word in words if word.endswith("model.py")), None)
    found = {pid: model or Path(words[0]).name}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= with_children(int(child))
    return found


async def overload(door: Door, processes: Mapping[int, str], seconds: float, times: float = 2.0) -> Overloaded:
    """Measure the capacity, ask for more of it, and see what is left.

    Args:
        door: where requests go in.
        processes: whose memory is watched, by id.
        seconds: how long the overload lasts.
        times: how many times the capacity is asked for.
    """
    quiet = min(QUIET, seconds)
    await one_after_the_other(door.ask, min(2.0, seconds), CALLERS)
    capacity = len(await one_after_the_other(door.ask, quiet, CALLERS)) / quiet
    before = Times.of(await one_after_the_other(door.ask, quiet))
    rate = times * capacity
    with Watch(processes) as watch:
        outcomes = await due_at(door.ask, rate, seconds)
    ended = time.perf_counter()
    while await door.ask() != ANSWERED:
        if time.perf_counter() - ended > 5 * seconds + DEADLINE:
            raise RuntimeError("long after the load nobody is answered")
        await asyncio.sleep(0.01)
    recovered = time.perf_counter() - ended
    after = Times.of(await one_after_the_other(door.ask, quiet))
    assert before is not None and after is not None  # noqa: PT018
    known = {outcome: times for outcome, took in outcomes.items() if (times := Times.of(took))}
    return Overloaded(
        capacity, rate, seconds, known, door.retry_after, dict(door.faults), watch.memory(), before, recovered, after
    )


@contextlib.contextmanager
def gateway(url: str) -> Iterator[tuple[str, int]]:
    """`tristage gateway` in front of Triton; its URL and its process id."""
    command = [str(Path(sys.executable).with_name("tristage")), "gateway", "--port", "0", "--url", url]
    process = subprocess.Popen([*command, "--timeout", str(DEADLINE)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line
        rest = threading.Thread(target=process.stderr.read)
        rest.start()
        yield found[0], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        rest.join()


@contextlib.contextmanager
def away_from(core: int) -> Iterator[None]:
    """Keep this thread, and what it starts, off a core, where there is another."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores - {core} or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


# the doors -> the layout behind, and whether what waits there is bounded
DOORS = {
    "gateway, HTTP": ("ensemble", True),
    "Triton, gRPC, fused": ("fused", True),
    "Triton, gRPC, a model per step": ("ensemble", False),
}


async def measure(
    repositories: Mapping[str, Path], row: Mapping[str, Any], seconds: float, core: int
) -> dict[str, Overloaded]:
    """Overload each door, with a server of its own; the repositories are by layout."""
    from tristage.client import Client, encode
    from tristage.client._wire import grpc_request
    from tristage.serving import serve

    found = {}
    for name, (layout, bounded) in DOORS.items():
        repository = repositories[layout]
        with serve(repository, cores=[core], http_port=0, grpc_port=0, metrics_port=0) as server, away_from(core):
            with Client(server.grpc_url) as client:
                signature = client.signature
            processes = with_children(server.pid)
            if name.startswith("gateway"):
                body = json.dumps({"rows": [row]}).encode()
                with gateway(server.grpc_url) as (url, pid):
                    async with http_door(url, body) as door:
                        found[name] = await overload(door, {**processes, pid: "gateway"}, seconds)
            else:
                outputs = [column.name for column in signature.outputs]
                request = grpc_request(signature.stack, encode([row], signature), outputs)
                async with grpc_door(server.grpc_url.removeprefix("grpc://"), request) as door:
                    found[name] = await overload(door, processes, seconds if bounded else min(seconds, UNBOUNDED))
        print(f"{name}: {found[name]}", file=sys.stderr)
    return found


def table(found: Mapping[str, Overloaded]) -> str:
    """What became of the requests, as Markdown."""
    lines = [
        "| door | capacity, a second | sent, a second | outcome | requests | p50, ms | p99, ms | max, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for door, its in found.items():
        for outcome in (ANSWERED, REFUSED, LATE, FAILED):
            times = its.outcomes.get(outcome)
            figures = (
                "0 | | |"
                if times is None
                else f"{times.count:,} | {times.p50:.1f} | {times.p99:.1f} | {times.max:.0f} |"
            )
            lines.append(f"| {door} | {its.capacity:.0f} | {its.rate:.0f} | {outcome} | {figures}")
    return "\n".join(lines)


def memory_table(found: Mapping[str, Overloaded]) -> str:
    """Resident memory over time, as Markdown."""
    lines = ["| door | process | start, MB | middle | end | most |", "|---|---|---|---|---|---|"]
    for door, its in found.items():
        for each in its.memory:
            figures = f"{each.start:.1f} | {each.middle:.1f} | {each.end:.1f} | {each.most:.1f}"
            lines.append(f"| {door} | {each.process} | {figures} |")
    return "\n".join(lines)


def recovery_table(found: Mapping[str, Overloaded]) -> str:
    """One caller alone before and after, as Markdown."""
    lines = [
        "| door | before: p50, p99, max, ms | answered again after, s | after: p50, p99, max, ms |",
        "|---|---|---|---|",
    ]
    for door, its in found.items():
        before, after = (f"{times.p50:.2f}, {times.p99:.2f}, {times.max:.1f}" for times in (its.before, its.after))
        lines.append(f"| {door} | {before} | {its.recovered:.3f} | {after} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every door in one run and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="how long each overload lasts (default: 300)")
    seconds = parser.parse_args().seconds
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import pyarrow.parquet as pq
    import uvloop

    from examples.recsys2021.train import train
    from tristage.export import prepare, write
    from tristage.export.stack_file import read_stack
    from tristage.loadtest._machine import machine

    trained = train()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(read_stack(trained.folder / "stack.yaml"), trust=True)
        layouts = sorted({layout for layout, _ in DOORS.values()})
        repositories = {layout: write(prepared, Path(folder) / layout, layout=layout).path for layout in layouts}
        names = [column.name for column in prepared.placement.signature.inputs]
        row = pq.read_table(trained.folder / "test_rows.parquet").select(names).slice(0, 1).to_pylist()[0]
        cores = os.sched_getaffinity(0)
        found = uvloop.run(measure(repositories, row, seconds, min(cores)))
    text = [
        "# More requests than can be answered",
        f"`python -m benchmarks.overload --seconds {seconds:g}`, {datetime.now(timezone.utc):%Y-%m-%d}, "
        f"{machine()['processor']}, {len(cores)} cores: small reference stack, Triton 2.51 on one core; the gateway "
        f"and the sender share the others. The sender keeps {CONNECTIONS} connections at most to the gateway. Requests "
        f"of one row, Poisson arrivals at twice the capacity, each with a deadline of {DEADLINE:g} s, timed from "
        f"when it was due; to Triton with a model per step for {min(seconds, UNBOUNDED):g} s. Callers of Triton leave "
        "at the deadline without cancelling.",
        table(found),
        memory_table(found),
        f"One caller alone, {QUIET:g} s before the load, and {QUIET:g} s from its first answer after it:",
        recovery_table(found),
        *(
            f"{door}: {count:,} failed with {fault}"
            for door, its in found.items()
            for fault, count in its.faults.items()
        ),
        "The gateway refuses what is beyond its places: as soon as its one process sees it, before its body is read. "
        "A stack of one model refuses what is beyond its queue's 1,024 places, as soon as Triton's front end has read "
        "it. With a model per step nobody is refused: what Triton cannot answer waits in its memory.",
    ]
    print("\n\n".join(text))
    if seconds >= 300:
        document = {"machine": machine(), **{door: asdict(its) for door, its in found.items()}}
        (RESULTS / "overload.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "overload.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

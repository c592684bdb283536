"""A run of the load tester: one cell after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from tristage import __version__
from tristage.client import _wire
from tristage.columns import Signature
from tristage.loadtest._cell import cell_of, server_use
from tristage.loadtest._latency import bands, settled
from tristage.loadtest._loop import Load, Outcome, Samples, run_loop
from tristage.loadtest._machine import machine
from tristage.loadtest._plan import CONNECTIONS, Point, Settings, Tick, due_times, highest_rate, points
from tristage.loadtest._process import Processes, Watch, find_server, of_pid
from tristage.loadtest._report import SCHEMA, Arrivals, Cell, Ended, Found, Report
from tristage.loadtest._rows import requests_of
from tristage.loadtest._statistics import Counters, Graph, graph_of, when_quiet
from tristage.loadtest._wire import GrpcWire, HttpWire, Tensors, TransportWire, Wire, still_there

if TYPE_CHECKING:
    from tristage.client import Transport

__all__ = ["Protocol", "run_loadtest"]

Protocol = Literal["http", "grpc", "grpc+shm"]

_ASK_S = 10.0  # how long the server may take to answer a question about itself
_PROBE_S = 5.0  # how long it may take to say that it is still there
_SETTLE_S = 1.0  # a cell is not taken for settled before
_FEW_ROWS = 10_000
_TRIAL_REQUESTS = 200  # that a rate is tried for at the least, so that p99 is not the maximum
_LONGEST_TRIAL_S = 60.0
_LIMITS = 10  # times the limit that a rate is tried for at the least
_KEPT = 0.9  # of the rate, at the least; arrivals are random


def run_loadtest(
    url: str,
    *,
    rows: Any,
    batches: Sequence[int] | None = None,
    concurrencies: Sequence[int] | None = None,
    rates: Sequence[float] = (),
    arrivals: Arrivals = "poisson",
    max_p99_ms: float | None = None,
    duration: float | None = None,
    band: float = 0.05,
    longest: float = 20.0,
    requests: int | None = None,
    warmup: float = 1.0,
    timeout: float = 30.0,
    power_law: float | None = None,
    seed: int = 0,
    stack: str | None = None,
    protocol: Protocol | None = None,
    server_pid: int | None = None,
    source: str = "given",
    watch: Callable[[Tick], None] = lambda tick: None,
    connect: Callable[[], Transport] | None = None,
) -> Report:
    """Measure a served stack.

    A closed loop keeps `concurrency` requests on their way: each connection sends its next request when its last one
    is answered. It measures what an example costs and what the server can do at most; a server that stalls is asked
    less often while it stalls, so its percentiles say nothing about the wait of requests that come at their own pace.

    An open loop (`rates`, `max_p99_ms`) sends requests when they are due, whatever the server does, and counts a
    request's time from then. Its percentiles are what users at that rate see.

    Requests are made before the clock starts; a request's time is that of its bytes to the server and of the answer's
    bytes back. Connections are threads of one Python process: a cell says where that process is the limit. Where the
    server's cores are known and leave others free, this process keeps off them until the run ends.

    Args:
        url: the server, such as "http://127.0.0.1:8000" or "grpc://127.0.0.1:8001".
        rows: real rows, in any form that `tristage.client.codec.encode` takes.
        batches: rows a request; by default 1, 64 and 1024, as far as the stack takes them.
        concurrencies: closed loop: connections, by default 1. Open loop: connections at most, by default 64.
        rates: requests a second, on average: an open loop, every batch size at every rate.
        arrivals: of an open loop: "poisson" as of many independent users, or "constant".
        max_p99_ms: look for the highest rate whose p99 holds this, in an open loop, for each batch size.
        duration: seconds a cell; None: until p50, p90 and p99 have settled within `band` (see `bands`).
        band: as a part of each percentile, such as 0.05.
        longest: seconds after which a cell ends though it has not settled.
        requests: requests a cell, by all connections together, instead of a time.
        warmup: seconds of requests before each cell that are in no figure; 0 for none.
        timeout: seconds a request may take.
        power_law: draw rows with this exponent (see `requests_of`); None: all rows in turn.
        seed: of all draws.
        stack: the stack's name; needed where the server has more than one.
        protocol: "http", "grpc" or "grpc+shm" (tensors in system shared memory), where the URL does not say.
        server_pid: the server's process, where it is not the one that listens on the port.
        source: where the rows came from, for the report.
        watch: called about ten times a second.
        connect: opens a connection of your own kind; requests then go through its `infer`.

    Returns:
        What was measured. A server that goes away in mid-run, and Ctrl-C, end the run but lose nothing: `ended` and
        `message` say so, and the cell that was under way is the last one, marked incomplete.

    Raises:
        InputError: a setting or the rows do not fit the stack, or there are none.
        ServerUnavailable: nothing answers at `url`.
        ServerError: the server has no such stack, or several and none was named; it shares no memory with us.
        RepositoryError: the stack's signature cannot be read.
    """
    from tristage.client import connect as connect_to
    from tristage.client._client import ask_stack
    from tristage.client.codec import encode

    settings = Settings(
        *(batches, concurrencies, tuple(rates), arrivals, max_p99_ms, duration, band, longest),
        *(requests, warmup, timeout, power_law, seed),
    )
    settings.check()
    created = datetime.now(timezone.utc)
    plain: _wire.Protocol | None = "grpc" if protocol == "grpc+shm" else protocol
    opens: Callable[[], Transport] = connect or (lambda: connect_to(url, protocol=plain))
    transport = opens()
    try:
        signature, config = ask_stack(transport, stack, min(timeout, _ASK_S))
        sizes = settings.batches_for(signature.stack, signature.max_batch)
        tensors = encode(rows, signature)
        if connect is None:
            address = _wire.parse_url(url, plain)
            wire = _wire_for(address, signature, shared_memory=protocol == "grpc+shm", most_rows=max(sizes))
            processes = of_pid(server_pid) if server_pid is not None else find_server(address)
        else:
            wire = TransportWire(opens, signature.stack, [column.name for column in signature.outputs])
            processes = of_pid(server_pid) if server_pid is not None else Processes(None, "unknown: not asked for")
        run = _Run(settings, transport, opens, wire, signature.stack, graph_of(config), processes, tensors, watch)
        with _off_the_cores_of(processes):
            try:
                run.measure_all(sizes)
            finally:
                wire.close()
            client = machine()
    finally:
        transport.close()
    row_count = len(next(iter(tensors.values())))
    return Report(
        schema=SCHEMA,
        created=created.isoformat(timespec="seconds"),
        version=__version__,
        machine=client,
        url=transport.url,
        protocol=wire.protocol,
        server=processes.words,
        stack=signature.stack,
        mode="open" if settings.open else "closed",
        arrivals=arrivals if settings.open else None,
        duration_s=None if requests is not None else duration,
        band=band if settings.settles else None,
        longest_s=longest if settings.settles else None,
        requests=requests,
        warmup_s=warmup,
        rows=source,
        row_count=row_count,
        draw="in turn" if power_law is None else f"power law, exponent {power_law:g}",
        ended=run.ended,
        message=run.message,
        cells=tuple(run.cells),
        found=tuple(run.found),
        notes=tuple(_notes(row_count, processes)),
    )


@dataclass
class _Run:
    """A run under way: what every cell needs, and what was found so far."""

    settings: Settings
    transport: Transport
    connect: Callable[[], Transport]
    wire: Wire
    model: str
    graph: Graph
    processes: Processes
    tensors: Tensors
    watch: Callable[[Tick], None]
    cells: list[Cell] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    ended: Ended = "completed"
    message: str = ""
    requests: tuple[int, list[Any]] = (0, [])  # of the last batch size, encoded

    def measure_all(self, batches: Sequence[int]) -> None:
        """Every cell that the settings ask for, until the server goes away or Ctrl-C."""
        limit = self.settings.max_p99_ms
        if limit is None:
            plan = points(self.settings, batches)
            for number, point in enumerate(plan):
                if self.measure(point, number, len(plan)) is None:
                    return
            return
        for batch in batches:
            self.search(batch, limit)
            if self.ended != "completed":
                return

    def search(self, batch: int, limit: float) -> None:
        """Find the highest rate that holds the limit, beginning at what one connection does in a closed loop."""
        first = self.measure(Point(batch, 1), len(self.cells), None)
        if first is None or first.latency is None:
            return
        if first.latency.p50_ms > limit:  # alone on the server: no rate is low enough
            self.found.append(Found(batch, limit, None, None, None))
            return
        connections = (self.settings.concurrencies or (CONNECTIONS,))[0]
        tried: dict[float, int] = {}

        def holds(rate: float) -> bool:
            cell = self.measure(Point(batch, connections, rate), len(self.cells), None)
            if cell is None:
                raise _CutShort
            tried[rate] = len(self.cells) - 1
            if not cell.complete or cell.errors or cell.latency is None or cell.latency.p99_ms > limit:
                return False
            return cell.requests / cell.elapsed_s >= _KEPT * rate or cell.requests < _TRIAL_REQUESTS

        try:
            held, missed = highest_rate(holds, first.requests / first.elapsed_s)
        except _CutShort:
            return
        self.found.append(Found(batch, limit, held, None if held is None else tried[held], missed))

    def measure(self, point: Point, number: int, cells: int | None) -> Cell | None:
        """One cell; None where nothing more can be measured after it."""
        tick = Tick(number, cells, point.batch, point.concurrency, point.rate, requests=0, elapsed_s=0.0)
        cell, outcome = self._measure(self._load(point), point, tick)
        if cell.requests or cell.errors:
            self.cells.append(cell)
        where = f"cell {number + 1}" + ("" if cells is None else f" of {cells}")
        if outcome.unavailable is not None:
            self.ended = "unavailable"
            self.message = f"{self.transport.url} went away during the run: {outcome.unavailable}"
        elif outcome.interrupted:
            self.ended, self.message = "interrupted", f"interrupted in {where}"
        return cell if self.ended == "completed" else None

    def _load(self, point: Point) -> Load:
        settings = self.settings
        if self.requests[0] != point.batch:
            made = requests_of(self.tensors, point.batch, exponent=settings.power_law, seed=settings.seed)
            self.requests = (point.batch, self.wire.encode(made))
        seconds, due = settings.seconds, None
        limit = settings.max_p99_ms
        if point.rate is not None:
            if limit is not None:
                # long enough that a queue which only grows shows in p99, and that p99 is not the maximum
                seconds = max(seconds, _LIMITS * limit / 1e3, min(_TRIAL_REQUESTS / point.rate, _LONGEST_TRIAL_S))
            due = due_times(
                point.rate, settings.arrivals, seconds=seconds, count=settings.requests, seed=settings.seed + 1
            )
        return Load(
            batch=point.batch,
            requests=self.requests[1],
            concurrency=point.concurrency,
            duration_s=seconds,
            count=settings.requests,
            warmup_s=settings.warmup,
            timeout_s=settings.timeout,
            due_ns=due,
            limit_s=None if limit is None or due is None else limit / 1e3,
            misses=0 if due is None else len(due) // 100,  # with one more, p99 cannot hold any more
        )

    def _measure(self, load: Load, point: Point, tick: Tick) -> tuple[Cell, Outcome]:
        before: dict[str, Counters] = {}
        used: list[Any] = []

        def started() -> None:
            before.update(when_quiet(self._statistics, self.model))
            used.append(self.processes.usage())

        def enough(samples: Samples) -> bool:
            if samples.ended_ns[-1] < _SETTLE_S * 1e9 or len(samples.ended_ns) < _TRIAL_REQUESTS:
                return False
            return settled(bands(samples.took_ns), self.settings.band)

        self.watch(tick)
        with Watch(self.processes) as memory:
            outcome = run_loop(
                load,
                self.wire,
                lambda: still_there(self.connect, self.model, min(load.timeout_s, _PROBE_S)),
                started=started,
                settled=enough if self.settings.settles else None,
                watch=lambda requests, elapsed_s: self.watch(_at(tick, requests, elapsed_s)),
            )
        after: dict[str, Counters] = {}
        usage = self.processes.usage()
        answered = len(outcome.samples.took_ns)
        if before and outcome.unavailable is None:
            after = when_quiet(self._statistics, self.model, at_least=answered, since=before)
        server = server_use(
            used[0] if used and outcome.unavailable is None else None,
            usage,
            peak=memory.peak,
            shared_once=self.processes.shared_once(),
            elapsed_s=outcome.elapsed_s,
            examples=answered * load.batch,
        )
        band = self.settings.band if self.settings.settles else None
        cell = cell_of(point, load, outcome, self.graph, before, after, model=self.model, server=server, band=band)
        return cell, outcome

    def _statistics(self) -> Mapping[str, Any]:
        return self.transport.statistics("", _ASK_S)


class _CutShort(Exception):
    """A search ends because the server went away or the user said so."""


def _at(tick: Tick, requests: int, elapsed_s: float) -> Tick:
    return Tick(tick.cell, tick.cells, tick.batch, tick.concurrency, tick.rate, requests, elapsed_s)


def _wire_for(address: _wire.Address, signature: Signature, *, shared_memory: bool, most_rows: int) -> Wire:
    outputs = [column.name for column in signature.outputs]
    if shared_memory:
        from tristage.loadtest._shared_memory import SharedMemoryWire

        return SharedMemoryWire(address, signature.stack, signature.outputs, most_rows)
    wire = GrpcWire if address.protocol == "grpc" else HttpWire
    return wire(address, signature.stack, outputs)


@contextmanager
def _off_the_cores_of(processes: Processes) -> Iterator[None]:
    """Keep this thread, and those it starts, off the server's cores, where that leaves any."""
    theirs = processes.cores()
    if theirs is None:
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ours - theirs or ours)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def _notes(row_count: int, processes: Processes) -> Iterator[str]:
    if row_count < _FEW_ROWS:
        yield (
            f"{row_count:,} different rows were sent: live traffic reaches more of a stack's tables, and finds less of "
            "them in the processor's caches; --rows takes a larger Parquet file"
        )
    theirs = processes.cores()
    if theirs is not None and theirs & os.sched_getaffinity(0) == theirs and not os.sched_getaffinity(0) - theirs:
        yield (
            "the server and the load tester share all cores, so that each takes time from the other; "
            "`tristage serve --cores 0` leaves the others to the load tester"
        )

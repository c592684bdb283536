"""A run of the load tester: every batch size at every concurrency, one cell after the other."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tristage import __version__
from tristage.columns import Signature
from tristage.errors import InputError, TristageError
from tristage.loadtest._closed import Load, Outcome, closed_loop
from tristage.loadtest._report import SCHEMA, Cell, Ended, Latency, Report
from tristage.loadtest._rows import requests_of
from tristage.loadtest._statistics import Counters, between, counters, models_of, shares

if TYPE_CHECKING:
    from tristage.client import Transport
    from tristage.client._wire import Protocol

__all__ = ["Tick", "run_loadtest"]

_ASK_S = 10.0  # how long the server may take to answer a question about itself
_SETTLE_S = 0.02  # Triton books a request just after it has sent the answer


@dataclass(frozen=True)
class Tick:
    """How far a run is: cell `cell` (0-based) of `cells`, how long it has run and what it has answered so far.

    `elapsed_s` is 0 while the cell warms up.
    """

    cell: int
    cells: int
    batch: int
    concurrency: int
    requests: int
    elapsed_s: float


def run_loadtest(
    url: str,
    *,
    rows: Any,
    batches: Sequence[int] = (1, 64, 1024),
    concurrencies: Sequence[int] = (1,),
    duration: float = 5.0,
    requests: int | None = None,
    warmup: float = 1.0,
    timeout: float = 30.0,
    stack: str | None = None,
    protocol: Protocol | None = None,
    source: str = "given",
    watch: Callable[[Tick], None] = lambda tick: None,
    connect: Callable[[], Transport] | None = None,
) -> Report:
    """Measure a served stack in a closed loop.

    A closed loop keeps `concurrency` requests on their way: each connection sends its next request when its last one
    is answered. It measures what an example costs and what the server can do at most; a server that stalls is asked
    less often while it stalls, so its percentiles say nothing about the wait of requests that come at their own pace.

    Rows are encoded to tensors before the clock starts; what a request's time includes is its serialisation, the
    network, the server, and reading the answer. Connections are threads of one Python process, so at high
    concurrency and small batches the client itself may be the limit: compare a cell's `server_ms` and `outside_ms`.

    Args:
        url: the server, such as "http://127.0.0.1:8000" or "grpc://127.0.0.1:8001".
        rows: real rows, in any form that `tristage.client.codec.encode` takes; each request sends another slice.
        batches: rows a request; each at most the stack's maximum.
        concurrencies: connections.
        duration: seconds a cell; at least one request a connection is sent.
        requests: requests a cell, by all connections together, instead of `duration`.
        warmup: seconds of requests before each cell that are in no figure; 0 for none.
        timeout: seconds a request may take.
        stack: the stack's name; needed where the server has more than one.
        protocol: "http" or "grpc", where the URL does not say.
        source: where the rows came from, for the report.
        watch: called about ten times a second.
        connect: opens a connection, in the thread that uses it; by default `tristage.client.connect`.

    Returns:
        What was measured. A server that goes away in mid-run, and Ctrl-C, end the run but lose nothing: `ended` and
        `message` say so, and the cell that was under way is the last one, marked incomplete.

    Raises:
        InputError: rows do not fit the stack, there are none, or a batch exceeds the stack's maximum.
        ServerUnavailable: nothing answers at `url`.
        ServerError: the server has no such stack, or several and none was named.
        RepositoryError: the stack's signature cannot be read.
    """
    from tristage.client import connect as connect_to
    from tristage.client.codec import encode

    _check(batches, concurrencies, duration, requests, warmup, timeout)
    created = datetime.now(timezone.utc)
    opens: Callable[[], Transport] = connect or (lambda: connect_to(url, protocol=protocol))
    transport = opens()
    try:
        signature, config = _ask(transport, stack, min(timeout, _ASK_S))
        for batch in batches:
            if batch > signature.max_batch:
                raise InputError(
                    f"a batch of {batch} exceeds the {signature.max_batch} rows that {signature.stack} takes in one "
                    f"request; measure batches up to {signature.max_batch}"
                )
        tensors = encode(rows, signature)
        row_count = len(next(iter(tensors.values()), ()))
        if not row_count:
            raise InputError("no rows to send: the rows are empty; give at least one row (better, some thousand)")
        cells: list[Cell] = []
        ended: Ended = "completed"
        message = ""
        plan = [(batch, concurrency) for concurrency in concurrencies for batch in batches]
        for number, (batch, concurrency) in enumerate(plan):
            load = Load(
                model=signature.stack,
                outputs=[column.name for column in signature.outputs],
                batch=batch,
                requests=requests_of(tensors, batch),
                concurrency=concurrency,
                duration_s=None if requests is not None else duration,
                count=requests,
                warmup_s=warmup,
                timeout_s=timeout,
            )
            tick = Tick(number, len(plan), batch, concurrency, requests=0, elapsed_s=0.0)
            cell, outcome = _measure(load, transport, opens, models_of(config), tick, watch)
            if cell.requests or cell.errors:
                cells.append(cell)
            if outcome.unavailable is not None:
                ended, message = "unavailable", f"{transport.url} went away during the run: {outcome.unavailable}"
                break
            if outcome.interrupted:
                ended, message = "interrupted", f"interrupted in cell {number + 1} of {len(plan)}"
                break
    finally:
        transport.close()
    return Report(
        schema=SCHEMA,
        created=created.isoformat(timespec="seconds"),
        version=__version__,
        machine=_machine(),
        url=transport.url,
        stack=signature.stack,
        mode="closed",
        duration_s=None if requests is not None else duration,
        requests=requests,
        warmup_s=warmup,
        rows=source,
        row_count=row_count,
        ended=ended,
        message=message,
        cells=tuple(cells),
    )


def _check(
    batches: Sequence[int],
    concurrencies: Sequence[int],
    duration: float,
    requests: int | None,
    warmup: float,
    timeout: float,
) -> None:
    for name, numbers in (("batch", batches), ("concurrency", concurrencies)):
        if not numbers or any(number < 1 for number in numbers):
            raise InputError(f"{name} is {list(numbers)}; give at least one number, each 1 or more")
    if requests is not None and requests < 1:
        raise InputError(f"requests is {requests}; give 1 or more")
    for name, seconds in (("duration", duration), ("timeout", timeout)):
        if not 0 < seconds < float("inf"):
            raise InputError(f"{name} is {seconds:g} s; give a number of seconds above 0")
    if not 0 <= warmup < float("inf"):
        raise InputError(f"warmup is {warmup:g} s; give a number of seconds, or 0 for none")


def _ask(transport: Transport, stack: str | None, timeout: float) -> tuple[Signature, Mapping[str, Any]]:
    """The signature and the configuration of the stack."""
    from tristage.client._client import find_signature

    names = [stack] if stack is not None else transport.models(timeout)
    configs = {name: transport.config(name, timeout) for name in names}
    signature = find_signature(transport.url, stack, configs)
    return signature, configs[signature.stack]


def _measure(
    load: Load,
    transport: Transport,
    connect: Callable[[], Transport],
    models: Sequence[str],
    tick: Tick,
    watch: Callable[[Tick], None],
) -> tuple[Cell, Outcome]:
    before: dict[str, Counters] = {}
    watch(tick)
    outcome = closed_loop(
        load,
        connect,
        started=lambda: before.update(_statistics(transport)),
        watch=lambda requests, elapsed_s: watch(replace(tick, requests=requests, elapsed_s=elapsed_s)),
    )
    after = _statistics(transport) if before and outcome.unavailable is None else {}
    return cell_of(load, outcome, models, before, after), outcome


def _statistics(transport: Transport) -> dict[str, Counters]:
    """The counters of all models; none where the server will not say, which costs the report a table, not the run."""
    time.sleep(_SETTLE_S)
    try:
        return counters(transport.statistics("", _ASK_S))
    except TristageError:
        return {}


def cell_of(
    load: Load,
    outcome: Outcome,
    models: Sequence[str],
    before: Mapping[str, Counters],
    after: Mapping[str, Counters],
) -> Cell:
    """Work out a cell's figures from what its requests took and from Triton's counters before and after them."""
    answered = len(outcome.nanoseconds)
    examples = answered * load.batch
    latency = Latency.of(outcome.nanoseconds)
    ensemble = between(before, after, load.model) if before and after else Counters()
    server_ms = ensemble.total_ns / ensemble.count / 1e6 if ensemble.count > 0 else None
    notes = []
    # requests that a client gave up on may still be answered, and counted
    if ensemble.count > answered + sum(error.count for error in outcome.errors):
        notes.append(
            f"the server answered {ensemble.count:,} requests, {ensemble.count - answered:,} more than these: "
            "another client was calling it"
        )
    return Cell(
        batch=load.batch,
        concurrency=load.concurrency,
        complete=not outcome.interrupted and outcome.unavailable is None,
        elapsed_s=outcome.elapsed_s,
        requests=answered,
        examples=examples,
        ms_per_example=outcome.elapsed_s * 1e3 / examples if examples else None,
        examples_per_s=examples / outcome.elapsed_s if examples else 0.0,
        latency=latency,
        errors=outcome.errors,
        server_ms=server_ms,
        outside_ms=latency.mean_ms - server_ms if latency is not None and server_ms is not None else None,
        steps=shares(models, before, after) if ensemble.count > 0 else (),
        notes=tuple(notes),
    )


def _machine() -> dict[str, str]:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": ",".join(map(str, sorted(cores))),
    }


def _processor() -> str:
    """The processor's name as Linux tells it; platform.processor() is often empty there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

"""One cell's figures, from what its requests took, Triton's counters and the server's processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tristage.loadtest._latency import Histogram, Latency, bands
from tristage.loadtest._loop import Load, Outcome
from tristage.loadtest._plan import Point
from tristage.loadtest._process import Usage
from tristage.loadtest._report import Cell, ServerUse
from tristage.loadtest._statistics import Counters, Graph, between, overlap, shares

__all__ = ["cell_of", "server_use"]

_BUSY = 0.8  # of one core; Python's threads together can use hardly more
_LATE = 0.1  # of the median: from then on it matters that requests were sent late
_ALL_TAKEN = 0.8  # of the connections, on average
_KEPT = 0.95  # of the rate that was due


def cell_of(
    point: Point,
    load: Load,
    outcome: Outcome,
    graph: Graph,
    before: Mapping[str, Counters],
    after: Mapping[str, Counters],
    *,
    model: str,
    server: ServerUse | None = None,
    band: float | None = None,
) -> Cell:
    """Work out a cell's figures.

    Args:
        point: where it lies.
        load: what was sent.
        outcome: what came of it.
        graph: the ensemble's steps.
        before: Triton's counters at the start; empty where they could not be read, here and below.
        after: at the end.
        model: the ensemble.
        server: what the server's processes used.
        band: within which the percentiles were to settle; None where that was not asked.
    """
    took = outcome.samples.took_ns
    answered, attempted = len(took), len(took) + sum(error.count for error in outcome.errors)
    examples = answered * point.batch
    latency = Latency.of(took)
    ensemble = between(before, after, model) if before and after else Counters()
    server_ms = ensemble.total_ns / ensemble.count / 1e6 if ensemble.count > 0 else None
    steps = shares(graph, before, after) if ensemble.count > 0 else ()
    late = Latency.of(outcome.samples.late_ns) if load.due_ns is not None else None
    found = bands(took)
    return Cell(
        batch=point.batch,
        concurrency=point.concurrency,
        rate=point.rate,
        complete=not (outcome.interrupted or outcome.gave_up) and outcome.unavailable is None,
        elapsed_s=outcome.elapsed_s,
        requests=answered,
        examples=examples,
        ms_per_example=outcome.elapsed_s * 1e3 / examples if examples else None,
        examples_per_s=examples / outcome.elapsed_s if examples else 0.0,
        latency=latency,
        histogram=Histogram.of(took),
        bands=found,
        settled=None if band is None else outcome.settled,
        late=late,
        errors=outcome.errors,
        server_ms=server_ms,
        outside_ms=max(0.0, latency.mean_ms - server_ms) if latency and server_ms is not None else None,
        client_cpu_ms=outcome.client_cpu_s * 1e3 / attempted if attempted else None,
        overlap_ms=overlap(graph, steps, server_ms) if steps and server_ms is not None else None,
        server=server,
        steps=steps,
        notes=tuple(_notes(point, outcome, ensemble, latency, late, found, band)),
    )


def server_use(
    before: Usage | None, after: Usage | None, *, peak: int, shared_once: int | None, elapsed_s: float, examples: int
) -> ServerUse | None:
    """What the server's processes used between two looks; None where they are unknown."""
    if before is None or after is None:
        return None
    cpu_s = max(0.0, after.cpu_s - before.cpu_s)
    return ServerUse(
        cpu_s=cpu_s,
        cpu_ms_per_example=cpu_s * 1e3 / examples if examples else None,
        cores=cpu_s / elapsed_s if elapsed_s > 0 else 0.0,
        peak_mb=max(peak, after.resident) / 1e6,
        shared_once_mb=None if shared_once is None else shared_once / 1e6,
    )


def _notes(
    point: Point,
    outcome: Outcome,
    ensemble: Counters,
    latency: Latency | None,
    late: Latency | None,
    found: Mapping[str, float],
    band: float | None,
) -> Iterator[str]:
    answered = len(outcome.samples.took_ns)
    # requests that a client gave up on may still be answered, and counted
    if ensemble.count > answered + sum(error.count for error in outcome.errors):
        yield (
            f"the server answered {ensemble.count:,} requests, {ensemble.count - answered:,} more than these: "
            "another client was calling it"
        )
    if ensemble.cache_hits > 0:
        yield f"{ensemble.cache_hits:,} answers came from Triton's response cache, and cost no computing"
    if latency is None or outcome.elapsed_s <= 0:
        return
    if ensemble.count > 0 and ensemble.total_ns / ensemble.count > latency.mean_ms * 1.01e6:
        yield (
            f"Triton counts {ensemble.total_ns / ensemble.count / 1e6:.3g} ms a request, more than the client's "
            f"{latency.mean_ms:.3g}: its clock runs on after the answer has left"
        )
    if outcome.client_cpu_s / outcome.elapsed_s > _BUSY:
        yield (
            f"the load tester itself was busy {outcome.client_cpu_s / outcome.elapsed_s:.0%} of one core, about all it "
            "can use: it may be what limits these figures"
        )
    if band is not None and not outcome.settled and outcome.unavailable is None and not outcome.interrupted:
        widths = ", ".join(f"{name} ±{width:.1%}" for name, width in found.items()) or "too few requests"
        yield f"not settled within ±{band:.0%} after {outcome.elapsed_s:.0f} s: {widths}"
    if late is not None and late.p99_ms > max(0.5, _LATE * latency.p50_ms):
        under_way = answered / outcome.elapsed_s * latency.mean_ms / 1e3  # on average, by Little's law
        cause = "this machine had no core free to send in time"
        if under_way > _ALL_TAKEN * point.concurrency:
            cause = f"all {point.concurrency} connections were waiting for answers"
        yield f"1% of the requests were sent {late.p99_ms:.3g} ms late or more, as {cause}; the wait is in the figures"
    if point.rate is not None and answered >= 100:
        pace = answered / outcome.elapsed_s
        chance = 3 * math.sqrt(answered) / outcome.elapsed_s  # arrivals are random
        if pace < _KEPT * point.rate - chance:
            yield f"{pace:,.4g} requests a second were answered, of {point.rate:,.4g} that were due: too many for it"

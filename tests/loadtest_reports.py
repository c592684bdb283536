"""Reports worked out by hand, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tristage.loadtest import SCHEMA, Cell, ErrorCount, Report, ServerUse
from tristage.loadtest._cell import cell_of
from tristage.loadtest._loop import Load, Outcome, Samples
from tristage.loadtest._plan import Point
from tristage.loadtest._statistics import Counters, Graph, counters

MS = 1_000_000
# first feeds second
GRAPH = Graph(("first", "second"), (frozenset(), frozenset({0})))


def triton(**models: tuple[int, int, int, int, int, int]) -> dict[str, Any]:
    """Triton's statistics: (count, success ms, queue ms, input ms, infer ms, output ms) by model."""
    return {
        "model_stats": [
            {
                "name": name,
                "version": "1",
                "execution_count": count,
                "inference_stats": {
                    "success": {"count": count, "ns": total * MS},
                    "queue": {"count": count, "ns": queue * MS},
                    "compute_input": {"count": count, "ns": taking * MS},
                    "compute_infer": {"count": count, "ns": infer * MS},
                    "compute_output": {"count": count, "ns": giving * MS},
                },
            }
            for name, (count, total, queue, taking, infer, giving) in models.items()
        ]
    }


BEFORE = counters(triton(whole=(10, 100, 0, 0, 0, 0), first=(10, 50, 5, 5, 35, 5), second=(10, 50, 10, 0, 40, 0)))
AFTER = counters(triton(whole=(20, 300, 0, 0, 0, 0), first=(20, 110, 15, 15, 65, 15), second=(20, 190, 30, 0, 160, 0)))


def outcome(requests: int = 10, **changes: Any) -> Outcome:
    """Requests of 25 ms each, answered one after the other within half a second."""
    times = np.full(requests, 25 * MS, dtype=np.int64)
    settings: dict[str, Any] = {
        "samples": Samples(times, np.arange(1, requests + 1) * 50 * MS, np.zeros_like(times)),
        "elapsed_s": 0.5,
        "client_cpu_s": 0.01,
        "errors": (),
        "settled": False,
        "gave_up": False,
        "interrupted": False,
        "unavailable": None,
    }
    return Outcome(**{**settings, **changes})


def load(batch: int = 4, **changes: Any) -> Load:
    """What a cell sent."""
    settings = {"requests": [{}], "concurrency": 1, "duration_s": 1e6, "count": 10, "warmup_s": 0, "timeout_s": 1}
    return Load(batch, **{**settings, **changes})


def cell(
    came: Outcome | None = None,
    *,
    point: Point | None = None,
    before: dict[str, Counters] = BEFORE,
    after: dict[str, Counters] = AFTER,
    graph: Graph = GRAPH,
    due_ns: Any = None,
    **more: Any,
) -> Cell:
    """A cell of batch 4, as a run makes it."""
    where = point or Point(4, 1)
    sent = load(where.batch, due_ns=due_ns)
    return cell_of(where, sent, came or outcome(), graph, before, after, model="whole", **more)


def report(*cells: Cell, **changes: Any) -> Report:
    """A report of these cells; of a whole one and one that was cut short, where none are given."""
    failed = ErrorCount("InferenceFailed", 5, "the [red] <b>model</b> said no | not\nat all")
    use = ServerUse(cpu_s=0.4, cpu_ms_per_example=10.0, cores=0.8, peak_mb=300.0, shared_once_mb=200.0)
    both = (
        cell(server=use),
        cell(outcome(0, errors=(failed,), interrupted=True), point=Point(64, 1), before={}, after={}),
    )
    settings: dict[str, Any] = {
        "schema": SCHEMA,
        "created": "2026-01-02T03:04:05+00:00",
        "version": "1.2.3",
        "machine": {"python": "3.11", "processor": "a processor", "cores": "1"},
        "url": "http://127.0.0.1:1",
        "protocol": "http",
        "server": "tritonserver 7 and the processes below it",
        "stack": "whole",
        "mode": "closed",
        "arrivals": None,
        "duration_s": 5.0,
        "band": None,
        "longest_s": None,
        "requests": None,
        "warmup_s": 1.0,
        "rows": "rows.parquet",
        "row_count": 7,
        "draw": "in turn",
        "ended": "completed",
        "message": "",
        "cells": cells or both,
        "found": (),
        "notes": (),
    }
    return Report(**{**settings, **changes})

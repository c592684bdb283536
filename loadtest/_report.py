"""What a load test found: frozen dataclasses that go to JSON and come back.

A later version of the schema may add fields; a field never changes its meaning under one name of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tristage.errors import InputError
from tristage.loadtest._latency import Histogram, Latency

__all__ = ["SCHEMA", "Cell", "ErrorCount", "Found", "Report", "ServerUse", "StepShare", "read_report"]

SCHEMA = "tristage.loadtest/2"

Ended = Literal["completed", "interrupted", "unavailable"]
Arrivals = Literal["poisson", "constant"]


@dataclass(frozen=True)
class ErrorCount:
    """Requests that failed in one way: the error's class, how many, and the first one's message."""

    kind: str
    count: int
    message: str


@dataclass(frozen=True)
class StepShare:
    """What one Triton model did during a cell, from the difference of Triton's own statistics.

    Attributes:
        model: the Triton model's name.
        count: requests the model answered.
        executions: times the model ran; fewer than `count` where Triton joined requests.
        queue_ms: mean ms a request waited in Triton for the model.
        compute_input_ms: mean ms to hand the request's tensors to the model.
        compute_infer_ms: mean ms the model itself took.
        compute_output_ms: mean ms to take its answer's tensors.
        share: the four together, as a part (0 to 1) of the sum over all steps. Steps may run side by side, so the
            sum over all steps may exceed the time a request spends in the ensemble.
        beside: the steps that neither feed this one nor are fed by it, and so may run at the same time.
        critical: whether it lies on the chain of steps, each fed by the one before, that takes longest.
    """

    model: str
    count: int
    executions: int
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    share: float
    beside: tuple[str, ...]
    critical: bool

    @property
    def compute_ms(self) -> float:
        """Mean ms of work on a request, its tensors' way in and out included."""
        return self.compute_input_ms + self.compute_infer_ms + self.compute_output_ms

    @property
    def total_ms(self) -> float:
        """Mean ms a request spent at this step, waiting included."""
        return self.queue_ms + self.compute_ms


@dataclass(frozen=True)
class ServerUse:
    """What the server's processes used during a cell, as the kernel counts it.

    Attributes:
        cpu_s: CPU seconds of all of them.
        cpu_ms_per_example: CPU ms of all of them / examples; None where nothing was answered. Where one core does all
            the work it equals `Cell.ms_per_example` or is less; above, more than one core worked.
        cores: CPU seconds / wall seconds: how many cores were at work on average.
        peak_mb: the most memory (resident, 10^6 bytes) they had together at one of the looks taken during the cell;
            memory that several share counts for each.
        shared_once_mb: the same after the cell, with shared memory counted once (Linux's PSS); None where the
            kernel does not say.
    """

    cpu_s: float
    cpu_ms_per_example: float | None
    cores: float
    peak_mb: float
    shared_once_mb: float | None


@dataclass(frozen=True)
class Cell:
    """One batch size at one concurrency, or at one rate.

    Attributes:
        batch: examples (rows) a request.
        concurrency: connections; in a closed loop each has one request on its way all the time.
        rate: open loop: requests a second that were due; None in a closed loop.
        complete: False where the cell was cut short: interrupted, the server went away, or (looking for the highest
            rate) so many requests took longer than the limit that p99 could not hold it any more.
        elapsed_s: wall time of the cell; of one cut short, up to its last answer.
        requests: requests answered.
        examples: examples answered; those of failed requests do not count.
        ms_per_example: `elapsed_s` in ms / `examples`; None where nothing was answered. In a closed loop that is what
            an example costs; in an open one that keeps up, it is the pace that was asked for.
        examples_per_s: the other way round; 0 where nothing was answered.
        latency: times of the answered requests; None where nothing was answered. In an open loop they count from when
            a request was due.
        histogram: the same as counts; None where nothing was answered.
        bands: percentile -> how far it can be trusted, see `bands`.
        settled: whether the percentiles settled within the report's band; None where that was not asked.
        late: open loop: how long after they were due requests were sent; None in a closed loop.
        errors: what failed, by kind, most frequent first.
        server_ms: mean ms a request spent in the ensemble, by Triton's statistics; None where they could not be read.
        outside_ms: the rest of the client's mean: network, Triton's front end, the client; in an open loop also the
            wait before sending.
        client_cpu_ms: CPU ms of this program a request, which is within `outside_ms` where cores are free.
        overlap_ms: how many ms a request spent, on average, in two steps at once, at the least; None without steps.
        server: what the server's processes used; None where they are not known.
        steps: the ensemble's models in their order; empty where the statistics could not be read.
        notes: what a reader should know before trusting the cell.
    """

    batch: int
    concurrency: int
    rate: float | None
    complete: bool
    elapsed_s: float
    requests: int
    examples: int
    ms_per_example: float | None
    examples_per_s: float
    latency: Latency | None
    histogram: Histogram | None
    bands: Mapping[str, float]
    settled: bool | None
    late: Latency | None
    errors: tuple[ErrorCount, ...]
    server_ms: float | None
    outside_ms: float | None
    client_cpu_ms: float | None
    overlap_ms: float | None
    server: ServerUse | None
    steps: tuple[StepShare, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> int:
        """Requests that failed."""
        return sum(error.count for error in self.errors)

    @classmethod
    def _from_dict(cls, raw: Mapping[str, Any]) -> Cell:
        return cls(
            **{
                **raw,
                "latency": None if raw["latency"] is None else Latency(**raw["latency"]),
                "late": None if raw["late"] is None else Latency(**raw["late"]),
                "histogram": None
                if raw["histogram"] is None
                else Histogram(**{**raw["histogram"], "counts": tuple(raw["histogram"]["counts"])}),
                "errors": tuple(ErrorCount(**error) for error in raw["errors"]),
                "server": None if raw["server"] is None else ServerUse(**raw["server"]),
                "steps": tuple(StepShare(**{**step, "beside": tuple(step["beside"])}) for step in raw["steps"]),
                "notes": tuple(raw["notes"]),
            }
        )


@dataclass(frozen=True)
class Found:
    """The highest rate that held a limit.

    Attributes:
        batch: examples a request.
        max_p99_ms: the limit.
        rate: requests a second; None where even the lowest that was tried missed the limit.
        cell: which of the report's cells measured it, from 0; None without a rate.
        missed: the lowest rate that was tried and did not hold; None where all held, or where none was tried because
            one request at a time takes longer than the limit.
    """

    batch: int
    max_p99_ms: float
    rate: float | None
    cell: int | None
    missed: float | None


@dataclass(frozen=True)
class Report:
    """One run of the load tester.

    Attributes:
        schema: SCHEMA.
        created: when the run began: ISO 8601, UTC.
        version: tristage's version.
        machine: the client's: python, platform, processor, cores it may use.
        url: the server.
        protocol: "http", "grpc", "grpc+shm"; "given" where the caller brought connections of its own.
        server: the server's processes in words, or why they are unknown.
        stack: the ensemble measured.
        mode: how load was made: "closed" or "open" loop (see `run_loadtest`).
        arrivals: open loop: how requests were spread over time; None in a closed loop.
        duration_s: seconds each cell was to last; None where it ran until it settled, or for a number of requests.
        band: the band within which percentiles were to settle, as a part of each; None where that was not asked.
        longest_s: seconds after which a cell ended though it had not settled; None where that was not asked.
        requests: requests each cell was to send; None where it ran for a time.
        warmup_s: seconds of requests before each cell that are in no figure.
        rows: where the rows came from.
        row_count: how many different rows there were.
        draw: how rows were drawn: "in turn", or "power law" with its exponent.
        ended: "completed"; "interrupted" (Ctrl-C); "unavailable" (the server went away).
        message: what happened, where `ended` is not "completed".
        cells: what was measured, in order; the last one may be incomplete.
        found: the highest rate that held `--max-p99`, for each batch size; empty where that was not asked.
        notes: what a reader should know before trusting any cell.
    """

    schema: str
    created: str
    version: str
    machine: Mapping[str, str]
    url: str
    protocol: str
    server: str
    stack: str
    mode: Literal["closed", "open"]
    arrivals: Arrivals | None
    duration_s: float | None
    band: float | None
    longest_s: float | None
    requests: int | None
    warmup_s: float
    rows: str
    row_count: int
    draw: str
    ended: Ended
    message: str
    cells: tuple[Cell, ...]
    found: tuple[Found, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The report as JSON, indented by two."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote.

        Raises:
            InputError: the text is not a report, or one of another schema.
        """
        try:
            raw = json.loads(text)
            schema = raw["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"this is no load test report ({error!r}); give a file that loadtest -o wrote") from error
        if schema != SCHEMA:
            raise InputError(f"the report's schema is {schema!r}, this tristage reads {SCHEMA!r}; measure again")
        try:
            return cls(
                **{
                    **raw,
                    "cells": tuple(Cell._from_dict(cell) for cell in raw["cells"]),
                    "found": tuple(Found(**found) for found in raw["found"]),
                    "notes": tuple(raw["notes"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"the load test report is incomplete ({error}); measure again") from error


def read_report(path: Path) -> Report:
    """Read a report from a file.

    Raises:
        InputError: it cannot be read, or is no report.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give a file that tristage loadtest -o wrote") from error
    try:
        return Report.from_json(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error

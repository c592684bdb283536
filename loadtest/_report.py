"""What a load test found: frozen dataclasses that go to JSON and come back.

A later version of the schema may add fields; a field never changes its meaning under one name of the schema.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tristage.errors import InputError, TristageError

__all__ = ["SCHEMA", "Cell", "ErrorCount", "Latency", "Report", "StepShare", "write_report"]

SCHEMA = "tristage.loadtest/1"

Ended = Literal["completed", "interrupted", "unavailable"]


@dataclass(frozen=True)
class Latency:
    """How long requests took, seen by the client: ms per request, of answered requests only.

    A percentile is the nearest-rank one: the smallest measured time that at least that share of the requests did not
    exceed. So each figure is a time that some request really took; with fewer than 100 requests p99 is the maximum.
    """

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, nanoseconds: NDArray[np.int64]) -> Latency | None:
        """Summarise times of shape [requests], int64 nanoseconds; None where there are none."""
        if not len(nanoseconds):
            return None
        p50, p90, p99 = np.quantile(nanoseconds, (0.5, 0.9, 0.99), method="inverted_cdf") / 1e6
        return cls(
            mean_ms=float(nanoseconds.mean() / 1e6),
            p50_ms=float(p50),
            p90_ms=float(p90),
            p99_ms=float(p99),
            max_ms=float(nanoseconds.max() / 1e6),
        )


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
        queue_ms: mean ms a request waited in Triton for the model.
        compute_input_ms: mean ms to hand the request's tensors to the model.
        compute_infer_ms: mean ms the model itself took.
        compute_output_ms: mean ms to take its answer's tensors.
        share: the four together, as a part (0 to 1) of the sum over all steps. Steps may run side by side, so the
            sum over all steps may exceed the time a request spends in the ensemble.
    """

    model: str
    count: int
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    share: float

    @property
    def total_ms(self) -> float:
        """Mean ms a request spent at this step, waiting included."""
        return self.queue_ms + self.compute_input_ms + self.compute_infer_ms + self.compute_output_ms


@dataclass(frozen=True)
class Cell:
    """One batch size at one concurrency.

    Attributes:
        batch: examples (rows) a request.
        concurrency: connections, each with one request on its way at a time.
        complete: False where the cell was cut short: interrupted, or the server went away.
        elapsed_s: wall time of the cell; of one cut short, up to its last answer.
        requests: requests answered.
        examples: examples answered; those of failed requests do not count.
        ms_per_example: `elapsed_s` in ms / `examples`; None where nothing was answered.
        examples_per_s: the other way round; 0 where nothing was answered.
        latency: times of the answered requests; None where nothing was answered.
        errors: what failed, by kind, most frequent first.
        server_ms: mean ms a request spent in the ensemble, by Triton's statistics; None where they could not be read.
        outside_ms: the rest of the client's mean: network, Triton's front end, and the client's own encoding.
        steps: the ensemble's models in their order; empty where the statistics could not be read.
        notes: what a reader should know before trusting the cell.
    """

    batch: int
    concurrency: int
    complete: bool
    elapsed_s: float
    requests: int
    examples: int
    ms_per_example: float | None
    examples_per_s: float
    latency: Latency | None
    errors: tuple[ErrorCount, ...]
    server_ms: float | None
    outside_ms: float | None
    steps: tuple[StepShare, ...]
    notes: tuple[str, ...]

    @classmethod
    def _from_dict(cls, raw: Mapping[str, Any]) -> Cell:
        return cls(
            **{
                **raw,
                "latency": None if raw["latency"] is None else Latency(**raw["latency"]),
                "errors": tuple(ErrorCount(**error) for error in raw["errors"]),
                "steps": tuple(StepShare(**step) for step in raw["steps"]),
                "notes": tuple(raw["notes"]),
            }
        )


@dataclass(frozen=True)
class Report:
    """One run of the load tester.

    Attributes:
        schema: SCHEMA.
        created: when the run began: ISO 8601, UTC.
        version: tristage's version.
        machine: the client's: python, platform, processor, cores it may use.
        url: the server.
        stack: the ensemble measured.
        mode: how load was made; "closed" is a closed loop (see `run_loadtest`).
        duration_s: seconds each cell was to last; None where it ran for a number of requests.
        requests: requests each cell was to send; None where it ran for a duration.
        warmup_s: seconds of requests before each cell that are in no figure.
        rows: where the rows came from.
        row_count: how many different rows there were.
        ended: "completed"; "interrupted" (Ctrl-C); "unavailable" (the server went away).
        message: what happened, where `ended` is not "completed".
        cells: what was measured, in order; the last one may be incomplete.
    """

    schema: str
    created: str
    version: str
    machine: Mapping[str, str]
    url: str
    stack: str
    mode: Literal["closed"]
    duration_s: float | None
    requests: int | None
    warmup_s: float
    rows: str
    row_count: int
    ended: Ended
    message: str
    cells: tuple[Cell, ...]

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
            return cls(**{**raw, "cells": tuple(Cell._from_dict(cell) for cell in raw["cells"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"the load test report is incomplete ({error}); measure again") from error


def write_report(report: Report, path: Path) -> None:
    """Write the report's JSON to `path`, beside it first and then renamed, so that `path` is never half a report.

    Raises:
        TristageError: the file cannot be written; what was at `path` is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(report.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise TristageError(
            f"the report {path} cannot be written ({error.strerror or error}); give -o a file in a folder "
            "that can be written and has room"
        ) from error

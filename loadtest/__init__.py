"""The load tester: what an example costs, as a client sees it, and where the server spends it."""

from __future__ import annotations

from tristage.loadtest._files import write_report
from tristage.loadtest._latency import Histogram, Latency
from tristage.loadtest._plan import Tick
from tristage.loadtest._report import (
    SCHEMA,
    Cell,
    ErrorCount,
    Found,
    Report,
    ServerUse,
    StepShare,
    read_report,
)
from tristage.loadtest._rows import rows_from
from tristage.loadtest._run import run_loadtest

__all__ = [
    "SCHEMA",
    "Cell",
    "ErrorCount",
    "Found",
    "Histogram",
    "Latency",
    "Report",
    "ServerUse",
    "StepShare",
    "Tick",
    "read_report",
    "rows_from",
    "run_loadtest",
    "write_report",
]

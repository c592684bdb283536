"""The load tester: what an example costs, as a client sees it, and where the server spends it."""

from __future__ import annotations

from tristage.loadtest._report import SCHEMA, Cell, ErrorCount, Latency, Report, StepShare, write_report
from tristage.loadtest._rows import rows_from
from tristage.loadtest._run import Tick, run_loadtest

__all__ = [
    "SCHEMA",
    "Cell",
    "ErrorCount",
    "Latency",
    "Report",
    "StepShare",
    "Tick",
    "rows_from",
    "run_loadtest",
    "write_report",
]

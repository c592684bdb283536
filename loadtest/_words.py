"""How reports put things: figures with three digits, a run in a sentence or two."""

from __future__ import annotations

import math

from tristage.loadtest._report import Cell, Found, Report

__all__ = ["describe", "figure", "finding", "loop", "side_by_side", "where"]


def figure(value: float | None) -> str:
    """Three significant digits, but no more than six behind the point."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = min(max(2 - math.floor(math.log10(abs(value))), 0), 6)
    return f"{value:,.{digits}f}"


def loop(report: Report) -> str:
    """How load was made."""
    return {None: "closed loop", "poisson": "open loop, Poisson arrivals", "constant": "open loop, constant arrivals"}[
        report.arrivals
    ]


def finding(found: Found) -> str:
    """What the search for a rate ended with."""
    limit = f"batch {found.batch}, p99 of at most {figure(found.max_p99_ms)} ms"
    if found.rate is None and found.missed is None:
        return f"{limit}: no rate holds it; one request at a time takes longer"
    if found.rate is None:
        return f"{limit}: no rate that was tried holds it (the lowest: {figure(found.missed)} requests/s)"
    beyond = "nothing higher was missed" if found.missed is None else f"{figure(found.missed)} does not"
    examples = figure(found.rate * found.batch)
    return f"{limit}: {figure(found.rate)} requests/s hold it, {examples} examples/s; {beyond}"


def describe(report: Report) -> str:
    """What was run, where and how, in a few sentences."""
    if report.requests is not None:
        length = f"{report.requests:,} requests a cell"
    elif report.duration_s is not None:
        length = f"{report.duration_s:g} s a cell"
    else:
        length = f"each cell until p50, p90 and p99 were within ±{report.band or 0:.0%}, {report.longest_s:g} s at most"
    return (
        f"{report.url} over {report.protocol}, {report.created[:16].replace('T', ' ')} UTC, tristage {report.version}: "
        f"{loop(report)}, {length}, after {report.warmup_s:g} s of warm-up. "
        f"{report.row_count:,} different rows from {report.rows}, drawn {report.draw}. "
        f"Client: {report.machine.get('processor', '')}, cores {report.machine.get('cores', '')}. "
        f"Server: {report.server}."
    )


def where(cell: Cell) -> str:
    """Which cell it is."""
    if cell.rate is None:
        return f"batch {cell.batch}, concurrency {cell.concurrency}"
    return f"batch {cell.batch}, {cell.rate:,.4g} requests/s"


def side_by_side(report: Report) -> list[tuple[str, ...]]:
    """Groups of steps that may run at the same time, each step with all the others of its group."""
    steps = next((cell.steps for cell in report.cells if cell.steps), ())
    order = [step.model for step in steps]
    groups = {frozenset({step.model, *step.beside}) for step in steps if step.beside}
    return sorted((tuple(sorted(group, key=order.index)) for group in groups), key=lambda group: order.index(group[0]))

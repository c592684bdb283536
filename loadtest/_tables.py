"""The report as tables: what an example costs, and which step takes it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from tristage.loadtest._report import Cell, Report

__all__ = ["tables"]

_BAR = 20
_EIGHTHS = " ▏▎▍▌▋▊▉"


def tables(report: Report) -> Iterator[RenderableType]:
    """What to print of a report, one thing after the other."""
    yield f"[bold]{escape(report.stack)} at {escape(report.url)}, closed loop[/]\n"
    yield _costs(report)
    yield "p50 to max: ms a request." + ("" if all(cell.complete for cell in report.cells) else " *: cut short.")
    if any(cell.steps for cell in report.cells):
        yield "\n[bold]Where the time goes, by Triton's statistics[/] (ms a request; steps may run side by side)"
    for cell in report.cells:
        if cell.steps:
            yield (
                f"\n[bold]batch {cell.batch}, concurrency {cell.concurrency}:[/] "
                f"{_figure(cell.server_ms)} in the server, {_figure(cell.outside_ms)} outside\n"
            )
            yield _steps(cell)
    if any(cell.errors or cell.notes for cell in report.cells):
        yield ""
    for cell in report.cells:
        where = f"batch {cell.batch}, concurrency {cell.concurrency}"
        for error in cell.errors:
            yield f"[red]{where}: {error.count} x {error.kind}:[/] {escape(error.message)}"
        for note in cell.notes:
            yield f"[yellow]{where}:[/] {escape(note)}"


def _costs(report: Report) -> Table:
    table = _table(gap=1)  # ten columns in eighty characters
    headings = ("batch", "conc.", "ms/example", "p50", "p90", "p99", "max", "examples/s", "requests", "errors")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, style="bold" if heading == "ms/example" else "")
    for cell in report.cells:
        latency = cell.latency
        times = (None,) * 4 if latency is None else (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.max_ms)
        failed = sum(error.count for error in cell.errors)
        table.add_row(
            f"{cell.batch}{'' if cell.complete else '*'}",
            str(cell.concurrency),
            _figure(cell.ms_per_example),
            *map(_figure, times),
            f"{cell.examples_per_s:,.0f}",
            f"{cell.requests:,}",
            f"[red]{failed:,}[/]" if failed else "0",
        )
    return table


def _steps(cell: Cell) -> Table:
    table = _table(gap=2)
    table.add_column("step", overflow="fold")
    for heading in ("queue", "input", "infer", "output", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", width=_BAR, no_wrap=True)
    for step in cell.steps:
        table.add_row(
            escape(step.model),
            _figure(step.queue_ms),
            _figure(step.compute_input_ms),
            _figure(step.compute_infer_ms),
            _figure(step.compute_output_ms),
            f"{step.share:.1%}",
            f"[cyan]{_bar(step.share)}[/]",
        )
    return table


def _table(gap: int) -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))


def _bar(share: float) -> str:
    whole, eighths = divmod(round(max(0.0, min(share, 1.0)) * _BAR * 8), 8)
    return ("█" * whole + _EIGHTHS[eighths]).rstrip()


def _figure(value: float | None) -> str:
    """Three significant digits, but no more than five behind the point."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = min(max(2 - math.floor(math.log10(abs(value))), 0), 5)
    return f"{value:,.{digits}f}"

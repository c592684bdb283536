"""The report as tables for a terminal: what an example costs, and which step takes it."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from tristage.loadtest._report import Cell, Report, StepShare
from tristage.loadtest._words import figure, finding, loop, side_by_side, where

__all__ = ["tables"]

_BAR = 20
_EIGHTHS = " ▏▎▍▌▋▊▉"


def tables(report: Report) -> Iterator[RenderableType]:
    """What to print of a report, one thing after the other."""
    yield f"[bold]{escape(report.stack)} at {escape(report.url)}, {escape(report.protocol)}, {loop(report)}[/]\n"
    yield _latencies(report)
    cut = "" if all(cell.complete for cell in report.cells) else " *: cut short."
    yield f"p50 to max: ms a request{', from when it was due' if report.arrivals else ''}.{cut}"
    for found in report.found:
        yield f"[bold green]{escape(finding(found))}[/]"
    yield "\n[bold]What that took[/] (in the server, outside it, client CPU: ms a request)\n"
    yield _costs(report)
    yield f"server: {escape(report.server)}"
    if any(cell.steps for cell in report.cells):
        yield "\n[bold]Where the time goes, by Triton's statistics[/] (ms a request)"
        for group in side_by_side(report):
            yield f"side by side, as nothing of one feeds another: {escape(', '.join(group))}"
    # a search visits many rates: the one that it found is the one to look at
    found_cells = [report.cells[found.cell] for found in report.found if found.cell is not None]
    for cell in found_cells or report.cells:
        if cell.steps:
            yield f"\n[bold]{where(cell)}:[/] {_overlap(cell)}\n"
            yield _steps(cell.steps)
    notes = [f"[yellow]note:[/] {escape(note)}" for note in report.notes]
    for cell in report.cells:
        for error in cell.errors:
            notes.append(f"[red]{where(cell)}: {error.count} x {error.kind}:[/] {escape(error.message)}")
        for note in cell.notes:
            notes.append(f"[yellow]{where(cell)}:[/] {escape(note)}")
    if notes:
        yield ""
        yield from notes


def _place(report: Report) -> list[str]:
    return ["batch", "conc." if report.arrivals is None else "due/s"]


def _at(cell: Cell) -> list[str]:
    return [
        f"{cell.batch}{'' if cell.complete else '*'}",
        str(cell.concurrency) if cell.rate is None else f"{cell.rate:,.4g}",
    ]


def _latencies(report: Report) -> Table:
    table = _table(gap=1)  # ten columns in eighty characters
    for heading in (*_place(report), "ms/example", "p50", "p90", "p95", "p99", "p99.9", "max", "examples/s"):
        table.add_column(heading, justify="right", no_wrap=True, style="bold" if heading == "ms/example" else "")
    for cell in report.cells:
        latency = cell.latency
        times: tuple[float | None, ...] = (None,) * 6
        if latency is not None:
            times = (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.p999_ms, latency.max_ms)
        table.add_row(*_at(cell), figure(cell.ms_per_example), *map(figure, times), f"{cell.examples_per_s:,.0f}")
    return table


def _costs(report: Report) -> Table:
    table = _table(gap=1)
    headings = ("requests", "errors", "in server", "outside", "client", "CPU ms/ex.", "cores", "peak MB")
    for heading in (*_place(report), *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in report.cells:
        server = cell.server
        table.add_row(
            *_at(cell),
            f"{cell.requests:,}",
            f"[red]{cell.failed:,}[/]" if cell.failed else "0",
            *map(figure, (cell.server_ms, cell.outside_ms, cell.client_cpu_ms)),
            figure(None if server is None else server.cpu_ms_per_example),
            figure(None if server is None else server.cores),
            f"{server.peak_mb:,.0f}" if server is not None else "-",
        )
    return table


def _overlap(cell: Cell) -> str:
    words = f"{figure(cell.server_ms)} in the server"
    if cell.server_ms is None or not cell.overlap_ms or cell.overlap_ms < 0.01 * cell.server_ms:
        return words
    return f"{words}, at least {figure(cell.overlap_ms)} of it in two steps at once"


def _steps(steps: tuple[StepShare, ...]) -> Table:
    table = _table(gap=2)
    table.add_column("step", overflow="fold")
    for heading in ("queue", "input", "infer", "output", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", width=_BAR, no_wrap=True)
    for step in steps:
        table.add_row(
            escape(step.model),
            figure(step.queue_ms),
            figure(step.compute_input_ms),
            figure(step.compute_infer_ms),
            figure(step.compute_output_ms),
            f"{step.share:.1%}",
            f"[cyan]{_bar(step.share)}[/]",
        )
    return table


def _table(gap: int) -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))


def _bar(share: float) -> str:
    whole, eighths = divmod(round(max(0.0, min(share, 1.0)) * _BAR * 8), 8)
    return ("█" * whole + _EIGHTHS[eighths]).rstrip()

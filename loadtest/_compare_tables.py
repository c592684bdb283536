"""A comparison as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from tristage.loadtest._compare import Comparison, Line
from tristage.loadtest._words import figure

__all__ = ["comparison_tables"]


def comparison_tables(found: Comparison) -> Iterator[RenderableType]:
    """What to print of a comparison, one thing after the other."""
    yield f"A: {escape(found.names[0])}\nB: {escape(found.names[1])}"
    for pair in found.pairs:
        yield f"\n[bold]{pair.at}[/], seconds for {found.examples:,} examples\n"
        table = _table("step", "A, s", "B, s")
        for line in (*pair.steps, pair.rest):
            _add(table, line)
        table.add_section()
        _add(table, pair.all, "bold")
        table.add_section()
        for line in pair.figures:
            _add(table, line)
        if pair.cost is not None and found.prices is not None:
            table.add_section()
            table.add_row("price an hour", *(f"{price:g}" for price in found.prices), "")
            _add(table, Line("cost of these examples", pair.cost.a, pair.cost.b), "bold")
        yield table
    if found.notes:
        yield ""
    for note in found.notes:
        yield f"[yellow]note:[/] {escape(note)}"


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, heading in enumerate((*headings, "A / B")):
        table.add_column(heading, justify="right" if number else "left", overflow="fold", no_wrap=number > 0)
    return table


def _add(table: Table, line: Line, style: str = "") -> None:
    times = figure(line.times)
    faster = line.times is not None and line.times > 1
    table.add_row(
        escape(line.name), figure(line.a), figure(line.b), f"[green]{times}[/]" if faster else times, style=style
    )

"""The size report, for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from tristage.export.size.work import Sizes, Work

__all__ = ["sizes_table"]

_COLUMNS = (
    "step",
    "trees met",
    "trees",
    "node visits",
    "MAC, as trained",
    "MAC, as served",
    "keys looked up",
    "ids looked up",
    "tables, MB",
)


def sizes_table(sizes: Sizes) -> Table:
    """The work of a row, step by step and in all."""
    caption = [
        "MAC: multiply-accumulates of matrix products and recurrences, in millions; trained: with those that exact "
        "rewrites saved.",
        "Node visits: means over the rows of training."
        if sizes.served.estimated
        else "Node visits: at most; not all trees say how many rows reached their leaves.",
        f"{sizes.served.dictionaries} searches of dictionaries serve the keyed look-ups.",
    ]
    if sizes.served.searched:
        caption.append("Not counted: the vectors that a search by a graph or by cells compares a query with.")
    if sizes.interpreted:
        caption.append(f"Served by NVTabular itself, and not counted: {', '.join(sizes.interpreted)}.")
    table = Table(title="the work of a row", caption="\n".join(caption), caption_justify="left", box=box.SIMPLE_HEAD)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for heading in _COLUMNS:
        first = heading == "step"
        table.add_column(heading, justify="left" if first else "right", no_wrap=first)
    for name, work in sizes.parts.items():
        table.add_row(name, *_cells(work, work.macs + sizes.saved.get(name, 0)))
    table.add_section()
    table.add_row("all", *_cells(sizes.served, sizes.macs_as_trained), style="bold")
    return table


def _cells(work: Work, trained: int) -> list[str]:
    whole = (work.trees_met, work.trees, round(work.node_visits), work.keyed_look_ups, work.embedding_rows)
    counts = [f"{number:,}" if number else "" for number in whole]
    macs = [f"{number / 1e6:,.3f}" if number else "" for number in (trained, work.macs)]
    return [*counts[:3], *macs, *counts[3:], f"{work.table_bytes / 1e6:,.1f}" if work.table_bytes else ""]

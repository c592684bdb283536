"""Opened GRU and LSTM layers handed to the engine in `serving/recurrence`: faster than a Scan, most of all for one row.

For targets whose server runs tristage's own programs; elsewhere the Scan stays, which any ONNX Runtime runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from tristage.export.onnx_graph import ENGINE_DOMAIN
from tristage.export.rewrites.editable import EditableGraph, attributes, blocks
from tristage.export.rewrites.finding import Finding, Rewrite
from tristage.export.rewrites.pack import pack
from tristage.export.rewrites.scan import Opened
from tristage.serving.recurrence import available

__all__ = ["RECURRENCE_ENGINE"]


def _apply(graph: EditableGraph) -> Iterator[Finding]:
    for opened in list(graph.opened):
        if isinstance(opened, Opened):
            yield _hand_over(graph, opened)


def _hand_over(graph: EditableGraph, opened: Opened) -> Finding:
    where = f"{opened.cell.kind} of width {opened.cell.width}"
    if graph.tables is None or not available():
        return Finding("recurrence_engine", where, False, why="tristage was installed without its recurrence engine")
    if not opened.from_zeros:
        return Finding("recurrence_engine", where, False, why="it begins with states that are computed")
    outputs = dict(zip(("last", "cells"), opened.node.output[:-1], strict=False))
    outputs = {"every": opened.node.output[-1], **outputs}
    makes = {what: name for what, name in outputs.items() if graph.readers(name) or name in graph.outputs}
    inputs = opened.node.input[len(outputs) - 1]
    gather = graph.maker(inputs, "Gather")
    table = None if gather is None else graph.constant(gather.input[0])
    rows = 0
    if gather is not None and table is not None and table.ndim == 2:
        rows, inputs = len(table), graph.add("Cast", _rows_first(graph, gather.input[1], 2), to=TensorProto.INT64)
    else:
        inputs = _rows_first(graph, inputs, 3)
    file = pack(
        opened.cell,
        graph.tables,
        backwards=opened.backwards,
        zeros=opened.zeros,
        rows=rows,
        table=blocks(table) if rows and table is not None else (),
    )
    mask = [] if opened.mask is None else [_rows_first(graph, opened.mask, 3)]
    graph.remove(opened.node)
    made = dict(makes)
    if "every" in makes:
        made["every"] = graph.new_name()
        graph.add("Transpose", made["every"], outputs=[makes["every"]], perm=[1, 0, 2])
    graph.add(
        "Recurrence",
        inputs,
        *mask,
        outputs=list(made.values()),
        domain=ENGINE_DOMAIN,
        file=file,
        width=opened.cell.width,
        makes=list(made),
    )
    graph.drop_unread()
    return Finding("recurrence_engine", where, True)


def _rows_first(graph: EditableGraph, tensor: str, rank: int) -> str:
    """A tensor [steps, rows, ...] as [rows, steps, ...], as all that passes between a program's parts."""
    order = [1, 0, 2][:rank]
    maker = graph.maker(tensor, "Transpose")
    if maker is not None and list(attributes(maker).get("perm", [])) == order:
        return str(maker.input[0])
    return graph.add("Transpose", tensor, perm=order)


RECURRENCE_ENGINE = Rewrite("recurrence_engine", "GRU and LSTM layers are answered by the engine in C", _apply, True)

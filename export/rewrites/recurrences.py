"""GRU and LSTM layers opened: the input projection of all steps becomes one product, and only the rest recurs.

ONNX Runtime's GRU and LSTM project the inputs themselves, so that nothing can be folded into the projection. Opened, a
layer is a MatMul (which a frozen embedding folds into, see `embeddings`) and a Scan of the recurrent part. Keras's
layers, which arrive as loops, are recognised in `loops`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from tristage.export.rewrites.cell import Cell
from tristage.export.rewrites.editable import EditableGraph, attributes
from tristage.export.rewrites.embeddings import MOST_GROWTH, growth, looked_up
from tristage.export.rewrites.finding import Finding, Rewrite
from tristage.export.rewrites.loops import Recognised, recognise
from tristage.export.rewrites.scan import scan

__all__ = ["OPEN_RECURRENCES"]

_ACTIVATIONS = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


def _apply(graph: EditableGraph) -> Iterator[Finding]:
    for node in [node for node in graph.nodes if node.op_type in _ACTIVATIONS]:
        yield from _open(graph, node)
    for node in [node for node in graph.nodes if node.op_type == "Loop"]:
        loop = recognise(graph, node)
        if loop is not None:
            yield Finding("open_recurrences", f"{loop.cell}, a loop", True)
            _replace(graph, node, loop)
    graph.drop_unread()


def _replace(graph: EditableGraph, node: onnx.NodeProto, loop: Recognised) -> None:
    """Put an opened layer where a loop is."""
    graph.remove(node)
    shown, ends = scan(graph, loop.cell, loop.inputs, [], loop.mask, zeros=loop.zeros)
    for name, what in loop.outputs.items():
        if what == "last":
            graph.add("Gather", shown, graph.add_constant(np.array(-1, np.int64)), outputs=[name], axis=0)
        else:
            graph.add("Identity", {"every": shown, "h": ends[0], "c": ends[-1]}[what], outputs=[name])


def _open(graph: EditableGraph, node: onnx.NodeProto) -> Iterator[Finding]:
    """Open a GRU or LSTM node whose inputs are looked up; others are ONNX Runtime's."""
    cells = _cells(graph, node)
    if cells is None:
        return
    where = str(cells[0]) + (", both directions" if len(cells) == 2 else "")
    said = attributes(node)
    inputs, lengths = node.input[0], node.input[4] if len(node.input) > 4 else ""
    look_up = looked_up(graph, inputs)
    if look_up is None:
        yield Finding("open_recurrences", where, False, why="its inputs are computed, not looked up")
        return
    grown = growth(graph, look_up, len(cells) * cells[0].kernel.shape[1])
    if grown > MOST_GROWTH:
        why = f"the table would be {grown / 1e6:,.0f} MB larger, and at most {MOST_GROWTH / 1e6:.0f} are given"
        yield Finding("open_recurrences", where, False, why=why)
        return
    first = [node.input[place] if len(node.input) > place else "" for place in (5, 6)[: 1 + (cells[0].kind == "LSTM")]]
    if all(not name or graph.is_zeros(name) for name in first):
        first = []
    first = [name or _zeros(graph, inputs, len(cells), cells[0].width) for name in first]
    mask = _mask(graph, inputs, lengths) if lengths else None
    backwards = [said.get("direction") == "reverse"] if len(cells) == 1 else [False, True]
    outputs = list(node.output)
    graph.remove(node)
    every, ends = [], []
    for number, cell in enumerate(cells):
        place = graph.add_constant(np.array(number, np.int64))
        states = [graph.add("Gather", name, place, axis=0) for name in first]
        shown, end = scan(graph, cell, inputs, states, mask, backwards=backwards[number])
        one, none = graph.add_constant(np.array([1])), graph.add_constant(np.array([0]))
        every.append(graph.add("Unsqueeze", shown, one))
        ends.append([graph.add("Unsqueeze", state, none) for state in end])
    parts = [(every, 1), *(([end[place] for end in ends], 0) for place in range(len(ends[0])))]
    for name, (tensors, axis) in zip(outputs, parts, strict=False):
        if name:
            graph.add("Concat", *tensors, outputs=[name], axis=axis)
    yield Finding("open_recurrences", where, True)


def _cells(graph: EditableGraph, node: onnx.NodeProto) -> list[Cell] | None:
    """The weights of each direction; None where they are not constant, or the layer is not the usual one."""
    said = attributes(node)
    usual = [a for _ in range(2) for a in _ACTIVATIONS[node.op_type]]
    functions = [a.decode() if isinstance(a, bytes) else a for a in said.get("activations", [])]
    if functions != usual[: len(functions)] or said.get("clip") or said.get("layout") or said.get("input_forget"):
        return None
    if len(node.input) > 7 and node.input[7]:  # peepholes
        return None
    given = [graph.constant(node.input[place]) if len(node.input) > place else None for place in (1, 2, 3)]
    kernel, recurrent, bias = given
    if kernel is None or recurrent is None or kernel.dtype != np.float32:
        return None
    if bias is None:
        if len(node.input) > 3 and node.input[3]:
            return None
        bias = np.zeros((len(kernel), 2 * kernel.shape[1]), np.float32)
    half, after = bias.shape[1] // 2, bool(said.get("linear_before_reset", 0))
    return [
        Cell(node.op_type, kernel[d].T, recurrent[d].T, bias[d, :half], bias[d, half:], after)
        for d in range(len(kernel))
    ]


def _zeros(graph: EditableGraph, inputs: str, directions: int, width: int) -> str:
    """A first state of zeros, [directions, rows, width]."""
    rows = graph.add("Shape", inputs, start=1, end=2)
    ends = [graph.add_constant(np.array([size], np.int64)) for size in (directions, width)]
    return graph.add("ConstantOfShape", graph.add("Concat", ends[0], rows, ends[1], axis=0))


def _mask(graph: EditableGraph, inputs: str, lengths: str) -> str:
    """[steps, rows, 1]: whether a step is before a row's end."""
    zero, one, axes = (graph.add_constant(np.array(value, np.int64)) for value in (0, 1, [0, 2]))
    last = graph.add_constant(np.array([1, 2], np.int64))
    steps = graph.add("Range", zero, graph.add("Gather", graph.add("Shape", inputs), zero), one)
    wide = graph.add("Cast", lengths, to=TensorProto.INT64)
    return graph.add("Less", graph.add("Unsqueeze", steps, last), graph.add("Unsqueeze", wide, axes))


OPEN_RECURRENCES = Rewrite(
    "open_recurrences", "a GRU's or LSTM's input projection becomes a product that an embedding folds into", _apply
)

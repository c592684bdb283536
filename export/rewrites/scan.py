"""A GRU or LSTM layer as a MatMul of all steps' inputs and a Scan of what recurs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tristage.export.rewrites.cell import Cell, Floats
from tristage.export.rewrites.editable import EditableGraph

__all__ = ["Opened", "scan"]


@dataclass(frozen=True)
class Opened:
    """A Scan that is a layer: what `scan` was asked for, and the node."""

    cell: Cell
    node: onnx.NodeProto
    mask: str | None
    backwards: bool
    zeros: bool
    from_zeros: bool


def scan(
    graph: EditableGraph,
    cell: Cell,
    inputs: str,
    states: list[str],
    mask: str | None,
    *,
    backwards: bool = False,
    zeros: bool = True,
) -> tuple[str, list[str]]:
    """Add an opened layer.

    Args:
        graph: where to.
        cell: the weights.
        inputs: [steps, rows, in].
        states: the first state, [rows, width]; an LSTM's cell state after it. None: zeros.
        mask: [steps, rows, 1] booleans, false where a step is passed over; None passes over none.
        backwards: whether the steps are taken from the last on.
        zeros: whether the state of a step that is passed over shows as zeros; else as it was before.

    Returns:
        The states of all steps, [steps, rows, width], and the states at the end.
    """
    kernel, bias = cell.projection()
    projected = graph.add("MatMul", inputs, graph.add_constant(kernel))
    projected = graph.add("Add", projected, graph.add_constant(bias))
    body = _body(cell, mask is not None, zeros)
    scanned = [projected, *([] if mask is None else [mask])]
    from_zeros = not states
    states = states or [zeros_like(graph, inputs, cell.width)] * (1 + (cell.kind == "LSTM"))
    names = [graph.new_name() for _ in states] + [graph.new_name()]
    node = graph.add_node(
        "Scan",
        *states,
        *scanned,
        outputs=names,
        body=body,
        num_scan_inputs=len(scanned),
        scan_input_directions=[int(backwards)] * len(scanned),
        scan_output_directions=[int(backwards)],
    )
    graph.opened.append(Opened(cell, node, mask, backwards, zeros, from_zeros))
    return names[-1], names[:-1]


def zeros_like(graph: EditableGraph, inputs: str, width: int) -> str:
    """States of zeros, [rows, width], for inputs [steps, rows, ..]."""
    rows = graph.add("Shape", inputs, start=1, end=2)
    return graph.add(
        "ConstantOfShape", graph.add("Concat", rows, graph.add_constant(np.array([width], np.int64)), axis=0)
    )


def _body(cell: Cell, masked: bool, zeros: bool) -> onnx.GraphProto:
    """One step: states, projected inputs [rows, gates * width] and mask [rows, 1] -> states, and what shows."""
    width, lstm = cell.width, cell.kind == "LSTM"
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def add(op: str, *inputs: str, outputs: int = 1, **attributes: int) -> list[str]:
        names = [f"t{len(nodes)}_{number}" for number in range(outputs)]
        nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def constant(values: NDArray[np.float32] | NDArray[np.int64] | NDArray[np.bool_]) -> str:
        name = f"c{len(constants)}"
        constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def product(state: str, weights: Floats, bias: Floats | None) -> str:
        if bias is None or not bias.any():
            return add("MatMul", state, constant(weights))[0]
        return add("Gemm", state, constant(weights), constant(bias))[0]

    def split(tensor: str, *sizes: int) -> list[str]:
        return add("Split", tensor, constant(np.array(sizes, np.int64)), outputs=len(sizes), axis=1)

    if lstm:
        gates = add("Add", product("h", cell.recurrent, None), "p")[0]
        rest, candidate = split(gates, 3 * width, width)
        i, o, f = split(add("Sigmoid", rest)[0], width, width, width)
        written = add("Mul", i, add("Tanh", candidate)[0])[0]
        c = add("Add", add("Mul", f, "c")[0], written)[0]
        new = [add("Mul", o, add("Tanh", c)[0])[0], c]
    else:
        late = np.zeros(3 * width, np.float32)
        late[2 * width :] = cell.recurrent_bias[2 * width :]
        given, candidate = split("p", 2 * width, width)
        if cell.reset_after:
            recurred, inner = split(product("h", cell.recurrent, late), 2 * width, width)
            z, r = split(add("Sigmoid", add("Add", recurred, given)[0])[0], width, width)
            inner = add("Mul", r, inner)[0]
        else:
            recurred = product("h", cell.recurrent[:, : 2 * width], None)
            z, r = split(add("Sigmoid", add("Add", recurred, given)[0])[0], width, width)
            inner = product(add("Mul", r, "h")[0], cell.recurrent[:, 2 * width :], None)
        n = add("Tanh", add("Add", inner, candidate)[0])[0]
        new = [add("Add", add("Mul", add("Sub", "h", n)[0], z)[0], n)[0]]
    old = ["h", "c"][: len(new)]
    if masked:
        new = [add("Where", "m", state, before)[0] for state, before in zip(new, old, strict=True)]
    shown = new[0]
    if masked and zeros:
        shown = add("Where", "m", shown, constant(np.zeros((), np.float32)))[0]
    results = [*new, shown]
    for place, name in enumerate(results):
        nodes.append(helper.make_node("Identity", [name], [f"out{place}"]))
    value = helper.make_tensor_value_info
    of = {"h": width, "c": width, "p": cell.recurrent.shape[1]}
    takes = [value(name, TensorProto.FLOAT, ["rows", of[name]]) for name in (*old, "p")]
    takes += [value("m", TensorProto.BOOL, ["rows", 1])] if masked else []
    makes = [value(f"out{place}", TensorProto.FLOAT, ["rows", width]) for place in range(len(results))]
    return helper.make_graph(nodes, "step", takes, makes, constants)

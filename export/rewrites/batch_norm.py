"""Batch norm, and whatever else scales and shifts columns, folded into the Dense layer before or after it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from tristage.export.rewrites.editable import EditableGraph, attributes
from tristage.export.rewrites.embeddings import Dense, dense_after
from tristage.export.rewrites.finding import Finding, Rewrite

__all__ = ["FOLD_BATCH_NORM"]

Affine = tuple[NDArray[np.float64], NDArray[np.float64]]  # what each column is multiplied with, and then added


def _apply(graph: EditableGraph) -> Iterator[Finding]:
    for node in [node for node in graph.nodes if node.op_type in ("MatMul", "Gemm")]:
        if any(node is other for other in graph.nodes):
            yield from _after(graph, node)
    for node in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        yield from _before(graph, node)


def _after(graph: EditableGraph, node: onnx.NodeProto) -> Iterator[Finding]:
    """Fold what follows a Dense layer."""
    dense = dense_after(graph, node.input[0], node)
    if dense is None:
        return
    width = dense.weights.shape[1]
    scale, shift = np.ones(width), np.zeros(width)
    taken: list[onnx.NodeProto] = []
    output, done = dense.output, 0
    while (reader := graph.only_reader(output)) is not None:
        step = _affine(graph, reader, output, width)
        if step is None:
            break
        scale, shift = scale * step[0], shift * step[0] + step[1]
        taken.append(reader)
        output = reader.output[0]
        done += reader.op_type != "Add"
    if not done:
        return
    bias = np.zeros(width) if dense.bias is None else dense.bias.astype(np.float64)
    flat = len(graph.shape(node.input[0]) or ()) == 2
    graph.remove(*dense.nodes, *taken)
    _dense(graph, node.input[0], dense.weights.astype(np.float64) * scale, bias * scale + shift, output, flat)
    yield Finding("fold_batch_norm", f"{' and '.join(_names(taken))} after {_sizes(dense)}", True, width * len(taken))


def _before(graph: EditableGraph, node: onnx.NodeProto) -> Iterator[Finding]:
    """Fold a batch norm into the Dense layer that alone reads it."""
    shape = graph.shape(node.input[0])
    reader = graph.only_reader(node.output[0], "MatMul", "Gemm")
    dense = None if reader is None else dense_after(graph, node.output[0], reader)
    if dense is None or shape is None or shape[-1] is None:
        return
    step = _affine(graph, node, node.input[0], len(dense.weights))
    if step is None:
        return
    weights = dense.weights.astype(np.float64)
    bias = (0.0 if dense.bias is None else dense.bias.astype(np.float64)) + step[1] @ weights
    graph.remove(node, *dense.nodes)
    _dense(graph, node.input[0], weights * step[0][:, None], bias, dense.output, True)
    yield Finding("fold_batch_norm", f"batch norm before {_sizes(dense)}", True, len(weights))


def _affine(graph: EditableGraph, node: onnx.NodeProto, tensor: str, width: int) -> Affine | None:
    """What a node does to each column of a tensor, where it is a scale and a shift."""
    if node.op_type == "BatchNormalization":
        given = [graph.constant(name) for name in node.input[1:5]]
        said = attributes(node)
        flat = len(graph.shape(tensor) or ()) == 2
        if node.input[0] != tensor or not flat or said.get("training_mode") or any(v is None for v in given):
            return None
        gamma, beta, mean, variance = (np.asarray(values, np.float64) for values in given)
        scale = gamma / np.sqrt(variance + said.get("epsilon", 1e-5))
        return scale, beta - mean * scale
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or tensor not in node.input[:2]:
        return None
    first = node.input[0] == tensor
    values = graph.constant(node.input[1] if first else node.input[0])
    if values is None or values.shape not in ((), (1,), (width,), (1, width)) or (not first and node.op_type == "Div"):
        return None
    column = np.broadcast_to(values.reshape(-1).astype(np.float64), (width,))
    one, none = np.ones(width), np.zeros(width)
    match node.op_type:
        case "Add":
            return one, column
        case "Sub":
            return (one, -column) if first else (-one, column)
        case "Mul":
            return column, none
        case _:
            return 1 / column, none


def _dense(
    graph: EditableGraph,
    tensor: str,
    weights: NDArray[np.float64],
    bias: NDArray[np.float64],
    output: str,
    flat: bool,
) -> None:
    constants = [graph.add_constant(np.ascontiguousarray(values, np.float32)) for values in (weights, bias)]
    if flat:
        graph.add("Gemm", tensor, *constants, outputs=[output])
    else:
        graph.add("Add", graph.add("MatMul", tensor, constants[0]), constants[1], outputs=[output])


def _names(nodes: list[onnx.NodeProto]) -> list[str]:
    names = {"BatchNormalization": "batch norm", "Add": "a shift", "Sub": "a shift", "Mul": "a scale", "Div": "a scale"}
    return list(dict.fromkeys(names[node.op_type] for node in nodes))


def _sizes(dense: Dense) -> str:
    return f"Dense {dense.weights.shape[0]} -> {dense.weights.shape[1]}"


FOLD_BATCH_NORM = Rewrite("fold_batch_norm", "batch norm becomes part of a Dense layer's weights", _apply)

"""A table that is looked up and then multiplied with a matrix: the product is looked up instead.

table[ids] @ W + b equals (table @ W + b)[ids], and so do all that only moves steps and rows about in between. What
follows may be a Dense layer or the input projection of a GRU or LSTM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from tristage.export.rewrites.editable import EditableGraph, attributes, blocks
from tristage.export.rewrites.finding import Finding, Rewrite

__all__ = ["FOLD_EMBEDDINGS", "MOST_GROWTH", "Dense", "LookUp", "dense_after", "fold", "looked_up"]

MOST_GROWTH = 64_000_000  # bytes that a table may grow by: memory is dearer than what a larger one saves


@dataclass(frozen=True)
class LookUp:
    """A look-up and what moves its rows about: `path` are the nodes from the Gather on, which change no row."""

    table: str
    path: tuple[onnx.NodeProto, ...]


@dataclass(frozen=True)
class Dense:
    """A product with a constant matrix and what is added to it.

    Attributes:
        nodes: the nodes it is made of.
        output: what it makes.
        weights: [in, out].
        bias: [out]; None without.
    """

    nodes: tuple[onnx.NodeProto, ...]
    output: str
    weights: NDArray[np.float32]
    bias: NDArray[np.float32] | None


def looked_up(graph: EditableGraph, tensor: str) -> LookUp | None:
    """How a tensor [..., width] is looked up in a table [rows, width]; None where it is not."""
    path: list[onnx.NodeProto] = []
    while (node := graph.maker(tensor)) is not None:
        path.insert(0, node)
        if node.op_type == "Gather" and attributes(node).get("axis", 0) == 0:
            shape = graph.shape(node.input[0])
            values = graph.constant(node.input[0])
            if values is None or shape is None or len(shape) != 2 or values.dtype != np.float32:
                return None
            return LookUp(node.input[0], tuple(path))
        if not _keeps_rows(graph, node):
            return None
        tensor = node.input[0]
    return None


def _keeps_rows(graph: EditableGraph, node: onnx.NodeProto) -> bool:
    """Whether a node moves rows of width [..., width] about and leaves each as it is."""
    said = attributes(node)
    if node.op_type == "Transpose":
        order = list(said.get("perm", []))
        return bool(order) and order[-1] == len(order) - 1
    if node.op_type == "Reshape":
        shape, target = graph.shape(node.input[0]), graph.integers(node.input[1])
        return bool(shape and target) and shape is not None and target is not None and shape[-1] == target[-1] != 0
    if node.op_type == "ReverseSequence":
        shape = graph.shape(node.input[0])
        return shape is not None and len(shape) > 2
    rank = len(graph.shape(node.input[0]) or ())
    if node.op_type == "Slice" and rank:
        axes = graph.integers(node.input[3]) if len(node.input) > 3 else None
        return axes is not None and all(axis % rank != rank - 1 for axis in axes)
    if node.op_type in ("Squeeze", "Unsqueeze") and len(node.input) > 1 and rank:
        axes = graph.integers(node.input[1])
        whole = rank + len(axes or ()) if node.op_type == "Unsqueeze" else rank
        return axes is not None and all(axis % whole != whole - 1 for axis in axes)
    return False


def dense_after(graph: EditableGraph, tensor: str, reader: onnx.NodeProto) -> Dense | None:
    """The Dense layer that a reader of a tensor begins; None where it begins none."""
    said = attributes(reader)
    if reader.op_type == "Gemm":
        weights = graph.constant(reader.input[1])
        plain = said.get("alpha", 1.0) == said.get("beta", 1.0) == 1.0 and not said.get("transA", 0)
        bias = graph.constant(reader.input[2]) if len(reader.input) > 2 and reader.input[2] else None
        if weights is None or not plain or reader.input[0] != tensor or weights.dtype != np.float32:
            return None
        if bias is None and len(reader.input) > 2 and reader.input[2]:
            return None
        weights = weights.T if said.get("transB", 0) else weights
        bias = None if bias is None else np.broadcast_to(bias.reshape(-1), weights.shape[1:])
        return Dense((reader,), reader.output[0], weights, bias)
    if reader.op_type != "MatMul" or reader.input[0] != tensor:
        return None
    weights = graph.constant(reader.input[1])
    if weights is None or weights.ndim != 2 or weights.dtype != np.float32:
        return None
    after = graph.only_reader(reader.output[0], "Add")
    if after is not None:
        other = after.input[1] if after.input[0] == reader.output[0] else after.input[0]
        bias = graph.constant(other)
        if bias is not None and bias.shape in ((), (1,), weights.shape[1:], (1, weights.shape[1])):
            full = np.broadcast_to(bias.reshape(-1), weights.shape[1:])
            return Dense((reader, after), after.output[0], weights, full)
    return Dense((reader,), reader.output[0], weights, None)


def fold(graph: EditableGraph, look_up: LookUp, dense: Dense) -> tuple[str, int]:
    """A table that holds what the Dense layer makes of each row: its name, and the bytes by which tables grow."""
    table = graph.constant(look_up.table)
    assert table is not None
    weights = dense.weights.astype(np.float64)
    bias = 0.0 if dense.bias is None else dense.bias.astype(np.float64)
    made = ((block.astype(np.float64) @ weights + bias).astype(np.float32) for block in blocks(table))
    return graph.add_table(len(table), weights.shape[1], made), growth(graph, look_up, weights.shape[1])


def growth(graph: EditableGraph, look_up: LookUp, width: int) -> int:
    """By how many bytes tables grow where a table so wide takes a look-up's place."""
    rows, before = graph.shape(look_up.table) or (0, 0)
    freed = before if len(graph.readers(look_up.table)) == 1 else 0
    return 4 * (rows or 0) * (width - (freed or 0))


def rows_of(graph: EditableGraph, look_up: LookUp) -> int:
    """Ids that are looked up for one row of a request, as far as the shapes tell."""
    shape = graph.shape(look_up.path[0].input[1]) or ()
    return int(np.prod([size or 1 for size in shape], dtype=np.int64))


def again(graph: EditableGraph, look_up: LookUp, table: str, output: str | None = None) -> str:
    """Look the same up in another table; returns the tensor. Ids are moved about as rows were: they are narrower."""
    gather, *rest = look_up.path
    ids = gather.input[1]
    for node in rest:
        said, inputs = attributes(node), list(node.input[1:])
        if node.op_type == "Transpose":
            said["perm"] = list(said["perm"])[:-1]
        if node.op_type in ("Slice", "Squeeze", "Unsqueeze"):
            place = 2 if node.op_type == "Slice" else 0
            axes = graph.integers(inputs[place]) or []
            rank = len(graph.shape(node.input[0]) or ()) + (len(axes) if node.op_type == "Unsqueeze" else 0)
            inputs[place] = graph.add_constant(np.array([axis % rank for axis in axes], np.int64))
        if node.op_type == "Reshape":
            inputs[0] = graph.add_constant(np.array((graph.integers(inputs[0]) or [])[:-1], np.int64))
        ids = graph.add(node.op_type, ids, *inputs, **said)
    return graph.add("Gather", table, ids, outputs=[output] if output else None, axis=0)


def _apply(graph: EditableGraph) -> Iterator[Finding]:
    for node in [node for node in graph.nodes if node.op_type in ("MatMul", "Gemm")]:
        look_up = looked_up(graph, node.input[0])
        dense = dense_after(graph, node.input[0], node)
        if look_up is None or dense is None:
            continue
        width, out = dense.weights.shape
        rows = (graph.shape(look_up.table) or (0,))[0]
        where = f"table {rows} x {width} into {width} -> {out}"
        grown = growth(graph, look_up, out)
        if grown > MOST_GROWTH:
            why = f"the table would be {grown / 1e6:,.0f} MB larger, and at most {MOST_GROWTH / 1e6:.0f} are given"
            yield Finding("fold_embeddings", where, False, why=why)
            continue
        table, grown = fold(graph, look_up, dense)
        graph.remove(*dense.nodes)
        again(graph, look_up, table, dense.output)
        graph.drop_unread()
        yield Finding("fold_embeddings", where, True, rows_of(graph, look_up) * width * out, grown)


FOLD_EMBEDDINGS = Rewrite("fold_embeddings", "a table that is looked up and multiplied holds the products", _apply)

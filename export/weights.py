"""Weights stored in a narrower format, on request: computing stays float32.

Of a table that is looked up only the rows that are asked for are widened, so that it is narrow in memory and in its
file. A matrix is widened when the model is loaded. int8 has a scale for each row of a table, and for each column that a
matrix makes. Weights that anything else reads, such as a recurrence's own matrices, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tristage.export.rewrites.editable import EditableGraph, attributes, blocks

__all__ = ["Narrowed", "narrow"]

_KINDS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "int8": TensorProto.INT8}
_LARGEST = 127
_MOST_FLOAT16 = 65504


@dataclass
class Narrowed:
    """What became narrow.

    Attributes:
        format: one of `tristage.weights.WEIGHT_FORMATS`.
        before: bytes of what became narrow, as float32.
        after: bytes of it now.
        left: what stayed float32, and why.
        model: the narrow model.
    """

    format: str
    before: int = 0
    after: int = 0
    left: list[str] = field(default_factory=list)
    model: onnx.ModelProto | None = None


def narrow(graph: EditableGraph, weights: str) -> Narrowed:
    """Make the tables and matrices of a graph narrow.

    Args:
        graph: the graph; it is changed.
        weights: one of `tristage.weights.WEIGHT_FORMATS`.
    """
    found = Narrowed(weights)
    for name, readers in _readers(graph).items():
        values = graph.constant(name)
        assert values is not None
        what = f"{'table' if readers[0].op_type == 'Gather' else 'matrix'} {' x '.join(map(str, values.shape))}"
        why = _why_not(graph, name, values, readers, weights)
        if why:
            found.left.append(f"{what}: {why}")
            continue
        if weights == "int8":
            found.after += _int8(graph, values, readers)
        else:
            found.after += _cast(graph, values, readers, _KINDS[weights])
        found.before += values.nbytes
    graph.drop_unread()
    return found


def _readers(graph: EditableGraph) -> dict[str, list[onnx.NodeProto]]:
    """Float32 constants that are looked up, or that something is multiplied with, and who does so, in order."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.sorted():
        name = _weights(node)
        values = None if name is None else graph.constant(name)
        if name is not None and values is not None and values.dtype == np.float32 and values.ndim > 0:
            found.setdefault(name, []).append(node)
    return found


def _weights(node: onnx.NodeProto) -> str | None:
    if node.op_type == "Gather" and attributes(node).get("axis", 0) == 0:
        return str(node.input[0])
    return str(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None


def _why_not(
    graph: EditableGraph, name: str, values: NDArray[Any], readers: list[onnx.NodeProto], weights: str
) -> str | None:
    others = [node for node in graph.readers(name) if not any(node is other for other in readers)]
    if others or name in graph.outputs or any(list(node.input).count(name) > 1 for node in readers):
        return f"{others[0].op_type if others else 'the net'} reads it too"
    kinds = {node.op_type == "Gather" for node in readers}
    if kinds == {False} and values.ndim != 2:
        return "it is no matrix"
    if weights == "bfloat16":
        return None
    if weights == "float16":
        largest = max((float(np.abs(b).max(initial=0, where=np.isfinite(b))) for b in blocks(values)), default=0.0)
        return f"it holds {largest:.3g}, and float16 ends at 65,504" if largest > _MOST_FLOAT16 else None
    if not all(np.isfinite(block).all() for block in blocks(values)):
        return "it holds what is no finite number, which int8 lacks"
    if len(kinds) > 1 or len({_transposed(node) for node in readers}) > 1:
        return "it is read by rows and by columns, and int8 has one scale"
    if values.ndim != 2 or values.shape[1] < 2:
        return "its rows are single numbers, which scales would make larger"
    return None


def _transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and bool(attributes(node).get("transB", 0))


def _cast(graph: EditableGraph, values: NDArray[Any], readers: list[onnx.NodeProto], kind: int) -> int:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    made = graph.add_array(values.shape, dtype, (block.astype(dtype) for block in blocks(values)))
    for node in readers:
        if node.op_type == "Gather":
            rows = graph.add("Gather", made, node.input[1], axis=0)
            graph.remove(node)
            graph.add("Cast", rows, outputs=list(node.output), to=TensorProto.FLOAT)
        else:
            _multiply(graph, node, graph.add("Cast", made, to=TensorProto.FLOAT))
    return values.size * dtype.itemsize


def _int8(graph: EditableGraph, values: NDArray[Any], readers: list[onnx.NodeProto]) -> int:
    by_row = readers[0].op_type == "Gather" or _transposed(readers[0])
    largest = [np.abs(block).max(axis=1 if by_row else 0, keepdims=True, initial=0) for block in blocks(values)]
    each = np.concatenate(largest) if by_row else np.max(largest, axis=0)
    scales = np.where(each > 0, each / np.float32(_LARGEST), 1).astype(np.float32)
    made, scale = graph.add_array(values.shape, np.dtype(np.int8), _rounded(values, scales)), graph.add_constant(scales)
    for node in readers:
        if node.op_type == "Gather":
            rows = graph.add("Cast", graph.add("Gather", made, node.input[1], axis=0), to=TensorProto.FLOAT)
            its = graph.add("Gather", scale, node.input[1], axis=0)
            graph.remove(node)
            graph.add("Mul", rows, its, outputs=list(node.output))
        else:
            _multiply(graph, node, graph.add("Mul", graph.add("Cast", made, to=TensorProto.FLOAT), scale))
    return values.size + scales.nbytes


def _rounded(values: NDArray[Any], scales: NDArray[np.float32]) -> Iterator[NDArray[np.int8]]:
    start = 0
    for block in blocks(values):
        its = scales[start : start + len(block)] if len(scales) == len(values) and scales.shape[1] == 1 else scales
        start += len(block)
        yield np.rint(block / its).astype(np.int8)


def _multiply(graph: EditableGraph, node: onnx.NodeProto, weights: str) -> None:
    """A product with other weights."""
    given = [node.input[0], weights, *node.input[2:]]
    graph.remove(node)
    graph.add(node.op_type, *given, outputs=list(node.output), **attributes(node))

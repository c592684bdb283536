"""Graphs for the ONNX Runtime of Triton 24.10, 1.19.2: what it cannot compute is said in what it can.

It lacks the arithmetic and comparisons of narrow and unsigned whole numbers, and the cosine of float64; and the square
root of float32 infinity is NaN to it. A newer one that runs the same graph has them, and knows better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tristage.errors import ArtifactError
from tristage.export.onnx_graph import dtype_of, onnx_type

__all__ = ["LACKS", "for_release"]

_NARROW = frozenset({"int8", "int16", "uint8", "uint16", "uint32", "uint64"})
_COMPARISONS = ("Less", "Greater", "LessOrEqual", "GreaterOrEqual")
# operator -> the dtypes that it lacks or gets wrong; of Where, those of its branches
LACKS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Equal", *_COMPARISONS), _NARROW),
    "Min": frozenset({"int8", "uint8"}),
    "Max": frozenset({"int8", "uint8"}),
    "Where": frozenset({"int8", "uint32"}),
    "Neg": frozenset({"int16"}),
    "Cos": frozenset({"float64"}),
    "Sqrt": frozenset({"float32"}),
}
_ORDERED = ("Div", *_COMPARISONS)  # what depends on how large a number is, and so cannot be done with its bits alone


def for_release(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in operators that ONNX Runtime 1.19.2 has; the model itself where it has them all.

    Raises:
        ArtifactError: it orders or divides uint64, which nothing there can stand for.
    """
    if not any(node.op_type in LACKS for node in model.graph.node):
        return model
    dtypes = _dtypes(model)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    for number, node in enumerate(model.graph.node):
        data = node.input[1] if node.op_type == "Where" else node.input[0] if node.input else ""
        dtype = dtypes.get(data, "")
        if dtype not in LACKS.get(node.op_type, ()):
            made.graph.node.add().CopyFrom(node)
        elif node.op_type == "Cos":
            made.graph.node.extend(_cosine(node, number, made.graph))
        elif node.op_type == "Sqrt":
            made.graph.node.extend(_widened(node, number, "float64", dtype))
        else:
            made.graph.node.extend(_in_int64(node, number, dtype, dtypes[node.output[0]]))
    return made


def _dtypes(model: onnx.ModelProto) -> dict[str, str]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)
    }
    values.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    return {
        name: dtype_of(kind)
        for name, kind in values.items()
        if kind not in (0, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    }


def _cosine(node: onnx.NodeProto, number: int, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """cos x = sin(x + pi / 2), as exact as x + pi / 2 is: 1e-16 for an angle of a few turns."""
    turn = f"__quarter{number}"
    graph.initializer.append(numpy_helper.from_array(np.array(np.pi / 2), turn))
    yield helper.make_node("Add", [node.input[0], turn], [f"{turn}_turned"])
    yield helper.make_node("Sin", [f"{turn}_turned"], list(node.output))


def _in_int64(node: onnx.NodeProto, number: int, dtype: str, answer: str) -> Iterator[onnx.NodeProto]:
    """A node whose numbers are widened and whose answer is narrowed again, where it wraps around as it would have."""
    if dtype == "uint64" and node.op_type in _ORDERED:
        raise ArtifactError(
            f"it computes {node.op_type} of uint64, which Triton 24.10's ONNX Runtime lacks; use int64 in training"
        )
    yield from _widened(node, number, "int64", answer)


def _widened(node: onnx.NodeProto, number: int, dtype: str, answer: str) -> Iterator[onnx.NodeProto]:
    wide = [f"__wide{number}_{at}" for at in range(len(node.input))]
    kept = 1 if node.op_type == "Where" else 0  # its condition
    for at, name in enumerate(node.input):
        if at >= kept:
            yield helper.make_node("Cast", [name], [wide[at]], to=onnx_type(dtype))
    inputs = [*node.input[:kept], *wide[kept:]]
    if answer == "bool":
        yield helper.make_node(node.op_type, inputs, list(node.output))
        return
    yield helper.make_node(node.op_type, inputs, [f"__wide{number}"])
    yield helper.make_node("Cast", [f"__wide{number}"], list(node.output), to=onnx_type(answer))

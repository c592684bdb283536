"""Operators on numbers: fill, scale, cut, bucket.

Arithmetic is done in the dtype that pandas does it in, in the same order, so that results are the same to the bit
where ONNX Runtime's operation is (all but the logarithm are).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.registry import Node, lowers
from tristage.export.workflow.values import NotCompilable, NotServable, Value, materialise

__all__: list[str] = []


@lowers("nvtabular.ops.fill.FillMissing")
def fill_missing(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Nulls become `fill_val`."""
    return _fill(node, graph, dict.fromkeys(node.names, node.op.fill_val))


@lowers("nvtabular.ops.fill.FillMedian")
def fill_median(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Nulls become the fitted median."""
    return _fill(node, graph, node.op.medians)


def _fill(node: Node, graph: GraphBuilder, fills: Mapping[str, Any]) -> dict[str, Value]:
    made = {}
    for name in node.names:
        value = node.columns[name]
        if value.length is not None:
            # pandas looks for nulls among lists, and not within them
            made[name] = value
            if node.op.add_binary_cols:
                any_row = graph.columns(value.valid or value.tensor, [0], value.length)
                made[f"{name}_filled"] = Value(graph.add("And", any_row, graph.scalar(False, "bool")), "bool")
            continue
        tensor = materialise(graph, value)
        null = graph.is_null(tensor, value.dtype)
        fill = fills[name]
        if isinstance(fill, str) != (value.dtype == "string"):
            raise NotCompilable(
                f"{_op(node)} fills {name} ({value.dtype}) with {fill!r}, which mixes types in a column"
            )
        if value.dtype in ("float32", "float64", "string"):
            # pandas widens float32 to hold a value that doesn't fit in it
            wide = value.dtype == "float32" and np.float32(fill) != fill
            dtype = "float64" if wide else value.dtype
            filled = graph.add("Where", null, graph.scalar(fill, dtype), graph.cast(tensor, value.dtype, dtype))
            made[name] = Value(filled, dtype)
        else:
            made[name] = value  # no null can be in it
        if node.op.add_binary_cols:
            made[f"{name}_filled"] = Value(null, "bool")
    return made


@lowers("nvtabular.ops.normalize.Normalize")
def normalize(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """(x - mean) / std with the fitted mean and std; x - mean where std is 0. Of lists, of every element."""
    made = {}
    for name in node.names:
        value = _number(node, name)
        if value.length is not None and value.raw_pad == 0:
            raise NotServable(
                f"Normalize of {name}: the pad 0 that fills its lists up may well be an element too, which would stay "
                f"as it is; declare a pad that no list holds: inputs: {{{name}: {{pad: ...}}}}"
            )
        dtype = _float(value.dtype)
        tensor = graph.cast(materialise(graph, value), value.dtype, dtype)
        centred = graph.add("Sub", tensor, graph.scalar(node.op.means[name], dtype))
        if node.op.stds[name] > 0:
            centred = graph.add("Div", centred, graph.scalar(node.op.stds[name], dtype))
        to = np.dtype(node.op.output_dtype).name
        made[name] = _like(value, graph.cast(centred, dtype, to), to)
    return made


@lowers("nvtabular.ops.normalize.NormalizeMinMax")
def normalize_min_max(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """(x - min) / (max - min); x / (2 x) where max equals min, as NVTabular has it."""
    made = {}
    for name in node.names:
        value = _scalar(node, name)
        dtype = _float(value.dtype)
        tensor = graph.cast(materialise(graph, value), value.dtype, dtype)
        low, high = node.op.mins[name], node.op.maxs[name]
        if high > low:
            shifted = graph.add("Sub", tensor, graph.scalar(low, dtype))
            scaled = graph.add("Div", shifted, graph.scalar(high - low, dtype))
        else:
            scaled = graph.add("Div", tensor, graph.add("Mul", graph.scalar(2, dtype), tensor))
        to = np.dtype(node.op.output_dtype).name
        made[name] = Value(graph.cast(scaled, dtype, to), to)
    return made


@lowers("nvtabular.ops.logop.LogOp")
def log(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """log(x + 1) in float32; taken in float64 and rounded, it is within one unit in the last place of NumPy's.

    Of lists, of every element.
    """
    made = {}
    for name in node.names:
        value = _number(node, name)
        tensor = graph.cast(materialise(graph, value), value.dtype, "float32")
        plus_one = graph.add("Add", tensor, graph.scalar(1, "float32"))
        wide = graph.add("Log", graph.cast(plus_one, "float32", "float64"))
        made[name] = _like(value, graph.cast(wide, "float64", "float32"), "float32")
    return made


@lowers("nvtabular.ops.clip.Clip")
def clip(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Values below `min_value` become it, those above `max_value` become that; NaN stays."""
    made = {}
    for name in node.names:
        value = _scalar(node, name)
        tensor = materialise(graph, value)
        for compare, bound in (("Less", node.op.min_value), ("Greater", node.op.max_value)):
            if bound is None:
                continue
            if value.dtype not in ("float32", "float64"):
                if float(bound) != np.floor(bound):
                    raise NotCompilable(
                        f"Clip cuts the whole-number column {name} at {bound}; cut it at a whole number"
                    )
                lowest, highest = np.iinfo(value.dtype).min, np.iinfo(value.dtype).max
                if (bound <= lowest) if compare == "Less" else (bound >= highest):
                    continue  # it cuts nothing
                if not lowest <= bound <= highest:
                    raise NotCompilable(f"Clip cuts the {value.dtype} column {name} at {bound}, which it cannot hold")
            limit = graph.scalar(bound, value.dtype)
            tensor = graph.where(graph.add(compare, tensor, limit), limit, tensor, value.dtype)
        made[name] = Value(tensor, value.dtype)
    return made


@lowers("nvtabular.ops.bucketize.Bucketize")
def bucketize(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """How many boundaries are at most x, as numpy.digitize counts; NaN lies beyond the last."""
    made = {}
    for name in node.names:
        boundaries = np.asarray(node.op.boundaries(name), np.float64)
        if not np.all(np.diff(boundaries) > 0):
            raise NotCompilable(f"Bucketize of {name} has boundaries that do not rise: {boundaries.tolist()}")
        value = _scalar(node, name)
        tensor = graph.cast(materialise(graph, value), value.dtype, "float64")
        reached = graph.add("Not", graph.add("Less", tensor, graph.constant(boundaries[None, :])))
        axis = graph.constant(np.array([1], np.int64))
        count = graph.add("ReduceSum", graph.cast(reached, "bool", "int32"), axis, keepdims=1)
        to = np.dtype(node.op.output_dtype).name
        made[name] = Value(graph.cast(count, "int32", to), to)
    return made


def _float(dtype: str) -> str:
    return dtype if dtype in ("float32", "float64") else "float64"


def _scalar(node: Node, name: str) -> Value:
    value = _number(node, name)
    if value.length is not None:
        raise NotServable(f"{_op(node)} reads the list column {name}, which NVTabular 23.8 fails on too")
    return value


def _number(node: Node, name: str) -> Value:
    value = node.columns[name]
    if value.dtype == "string":
        raise NotServable(f"{_op(node)} reads {name}, which holds text; turn it into numbers with Categorify")
    return value


def _like(value: Value, tensor: str, dtype: str) -> Value:
    """What became of a column, element by element: of a list, the padding stays what it was."""
    return replace(value, tensor=tensor, dtype=dtype, part=None, width=value.length or 1)


def _op(node: Node) -> str:
    return type(node.op).__name__

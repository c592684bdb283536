"""Slices of list columns: which elements stay, and where they stand."""

from __future__ import annotations

import numpy as np

from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.registry import Node, lowers
from tristage.export.workflow.values import NotCompilable, NotServable, Value

__all__: list[str] = []

_OPEN = np.iinfo(np.int64).max


@lowers("nvtabular.ops.list_slice.ListSlice")
def list_slice(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """The elements `start` to `end` of each list, counted from its end where negative, as Python slices.

    With `pad` a list is filled up to the slice's length with `pad_value`. NVTabular 23.8 does so for rows that are
    Python lists, and not for NumPy arrays, which is what it reads from files; operators after it see padding.
    """
    made = {}
    start, end = int(node.op.start), int(node.op.end)
    for name in node.names:
        value = node.columns[name]
        if value.length is None or value.valid is None:
            raise NotCompilable(f"ListSlice reads {name}, which is not a list column")
        width = min(_longest(start, end), value.length - max(start, 0))
        if node.op.pad and node.op.max_elements < _OPEN:
            width = int(node.op.max_elements)
        if width <= 0:
            raise NotServable(
                f"ListSlice takes the elements {node.op.start} to {node.op.end} of {name}, of which no list of at most "
                f"{value.length} has any; declare a larger max_length"
            )
        cut = _from_the_front if start >= 0 and end >= 0 else _from_the_end
        tensor, valid = cut(graph, value.tensor, value.valid, value.length, start, end, width)
        made[name] = Value(
            tensor=tensor,
            dtype=value.dtype,
            length=width,
            valid=valid,
            pad=np.dtype(value.dtype).type(node.op.pad_value).item()
            if node.op.pad and value.dtype != "string"
            else value.pad,
            width=width,
            raw_pad=value.raw_pad,
        )
    return made


def _longest(start: int, end: int) -> int:
    """How many elements the slice has of a list that is long enough."""
    if start < 0 <= end:
        return min(-start, end)
    return end - start if end >= 0 or start < 0 else _OPEN


def _from_the_front(
    graph: GraphBuilder, tensor: str, valid: str, length: int, start: int, end: int, width: int
) -> tuple[str, str]:
    kept = list(range(start, min(end, length, start + width)))
    # any column will do where there is no element
    filled = kept + [0] * (width - len(kept))
    valid = graph.columns(valid, filled, length)
    if len(kept) < width:
        valid = graph.add("And", valid, graph.constant((np.arange(width) < len(kept))[None, :]))
    return graph.columns(tensor, filled, length), valid


def _from_the_end(
    graph: GraphBuilder, tensor: str, valid: str, length: int, start: int, end: int, width: int
) -> tuple[str, str]:
    """Every row is read at its own positions, which its number of elements decides."""
    places = graph.constant(np.arange(1, length + 1, dtype=np.int64)[None, :])
    taken = graph.add("Mul", graph.cast(valid, "bool", "int64"), places)
    # the last element's place and not the number of elements: one that equals the pad may stand between others
    count = graph.add("ReduceMax", taken, graph.constant(np.array([1], np.int64)), keepdims=1)
    first, stop = (_place(graph, count, bound, length) for bound in (start, end))
    at = graph.add("Add", first, graph.constant(np.arange(width, dtype=np.int64)[None, :]))
    within = graph.add("Less", at, stop)
    at = graph.add("Min", at, graph.scalar(length - 1, "int64"))
    return (
        graph.add("GatherElements", tensor, at, axis=1),
        graph.add("And", graph.add("GatherElements", valid, at, axis=1), within),
    )


def _place(graph: GraphBuilder, count: str, bound: int, length: int) -> str:
    """Where a bound of a slice lies in rows of `count` elements, an int64 tensor [rows, 1]."""
    if bound < 0:
        moved = graph.add("Add", count, graph.scalar(max(bound, -length), "int64"))
        return graph.add("Max", moved, graph.scalar(0, "int64"))
    return graph.add("Min", count, graph.scalar(min(bound, length), "int64"))

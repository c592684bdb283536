"""What flows through a workflow while it is compiled: columns as ONNX tensors, with pandas' idea of their dtype."""

from __future__ import annotations

from dataclasses import dataclass

from tristage.export.onnx_graph import GraphBuilder

__all__ = ["NotCompilable", "NotServable", "Value", "materialise", "pack"]


class NotCompilable(Exception):
    """An operator, or a use of it, that has no exact lowering, so that NVTabular itself has to serve the workflow.

    The message says which and why; there are several of them where several operators have none.
    """


class NotServable(Exception):
    """An operator, or a use of it, that nothing can serve right, NVTabular neither.

    The message says which, why, and what to do instead.
    """


@dataclass(frozen=True)
class Value:
    """One column.

    Attributes:
        tensor: an ONNX tensor of shape [rows, width].
        dtype: its dtype's name; a null is NaN, or NULL_STRING in strings.
        part: which column of the tensor this is; None where it is the whole tensor.
        length: elements of a list column; None for a scalar.
        valid: of a list column, a boolean tensor of the same shape: True where there is an element, False on padding.
            Elements stand first, padding last.
        pad: what padding holds when the column leaves the workflow.
        width: columns of the tensor.
        raw_pad: what a client fills the raw list up with; an element that equals it would be taken for padding.
    """

    tensor: str
    dtype: str
    part: int | None = None
    length: int | None = None
    valid: str | None = None
    pad: int | float | str = 0
    width: int = 1
    raw_pad: int | float | str | None = None


def materialise(graph: GraphBuilder, value: Value) -> str:
    """The tensor of a value by itself: [rows, 1] for a scalar, [rows, length] for a list."""
    if value.part is None:
        return value.tensor
    return graph.columns(value.tensor, [value.part], value.width)


def pack(graph: GraphBuilder, values: list[Value], dtype: str) -> str:
    """Values side by side in one tensor of one dtype.

    Neighbours that are parts of one tensor are taken from it together.
    """
    pieces: list[str] = []
    start = 0
    while start < len(values):
        first = values[start]
        end = start + 1
        if first.part is not None:
            while end < len(values) and values[end].tensor == first.tensor and values[end].part is not None:
                end += 1
            parts = [value.part for value in values[start:end] if value.part is not None]
            piece = graph.columns(first.tensor, parts, first.width)
        else:
            piece = padded(graph, first)
        pieces.append(graph.cast(piece, first.dtype, dtype))
        start = end
    return graph.concat(pieces)


def padded(graph: GraphBuilder, value: Value) -> str:
    """A list's tensor with its pad value where there is no element; a scalar's tensor as it is."""
    if value.valid is None:
        return value.tensor
    return graph.where(value.valid, value.tensor, graph.scalar(value.pad, value.dtype), value.dtype)

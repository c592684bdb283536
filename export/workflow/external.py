"""Columns of another table, joined by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import NULL_STRING
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.dictionary import Numbers, number_rows
from tristage.export.workflow.fitted import frame_table
from tristage.export.workflow.keys import gather
from tristage.export.workflow.registry import Node, lowers
from tristage.export.workflow.values import NotCompilable, NotServable, Value

__all__: list[str] = []

_EXACT_IN_FLOAT64 = 2**53


@lowers("nvtabular.ops.join_external.JoinExternal")
def join_external(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """The row of the external table that has a row's key; nulls where none has it. Null keys match each other.

    Whole numbers become float64, as in pandas wherever a key of the data frame is not in the table.
    """
    op = node.op
    left, right = _names(op.on), _names(op.on_ext)
    what = f"JoinExternal on {', '.join(left)}"
    table = _table(op)
    lost = [name for name in right if name not in table.columns]
    if lost:
        raise NotServable(f"{what}: columns_ext lacks the key {', '.join(lost)}, and NVTabular fails; add it")
    shared = {name for name, other in zip(left, right, strict=True) if name == other}
    twice = [name for name in table.columns if name in node.columns and name not in shared]
    if twice:
        raise NotCompilable(f"{what}: {', '.join(twice)} is in both tables; choose others with columns_ext or Rename")
    twice_there = table.duplicated(right)
    if twice_there.any():
        key = [None if value != value else value for value in table[right][twice_there].iloc[0]]
        raise NotServable(
            f"{what}: several rows of the table have the key {', '.join(map(repr, key))}, which makes several rows "
            "of one; keep one row for every key"
        )
    columns = [node.columns[name] for name in left]
    if any(column.length is not None for column in columns):
        raise NotCompilable(f"{what}: a list column cannot be a key")
    fitted = frame_table(table[right], what)
    number = number_rows(graph, columns, fitted, right)
    made = {name: node.columns[name] for name in node.names}
    by_dtype: dict[str, dict[str, NDArray[Any]]] = {}
    for name in table.columns:
        if name in shared:
            continue
        values = _statistics(table[name], f"{what}: column {name}")
        if values.dtype == object:
            made[name] = _gather_texts(graph, number, values)
        else:
            by_dtype.setdefault(values.dtype.name, {})[name] = values
    for dtype, same in by_dtype.items():
        values = np.stack(list(same.values()), axis=1)
        made.update(
            gather(graph, number, [(slice(0, len(values)), values)], list(same), np.full(len(same), np.nan, dtype))
        )
    return made


def _gather_texts(graph: GraphBuilder, number: Numbers, texts: NDArray[np.object_]) -> Value:
    """One column of texts: ONNX Runtime copies one text of every row it gathers, and would leave others empty."""
    table = np.full((number.unseen + 1, 1), NULL_STRING, object)
    table[number.rows, 0] = texts
    row = graph.add("Squeeze", number.tensor, graph.constant(np.array([1], np.int64)))
    return Value(graph.add("Gather", graph.constant(table), row, axis=0), "string")


def _names(on: str | Sequence[str]) -> list[str]:
    return [on] if isinstance(on, str) else list(on)


def _table(op: Any) -> Any:
    """The external table as NVTabular joins it: its columns chosen, its equal rows dropped."""
    table = op._ext
    return table.compute() if hasattr(table, "npartitions") else table


def _statistics(series: Any, what: str) -> NDArray[Any]:
    """A column's values, nulls as they are served."""
    dtype = series.dtype
    if dtype == np.dtype(object):
        texts = [NULL_STRING if null else text for text, null in zip(series, series.isna(), strict=True)]
        if not all(isinstance(text, str) for text in texts):
            raise NotCompilable(f"{what} holds objects that are not texts; give it a NumPy type")
        return np.array(texts, object)
    if not isinstance(dtype, np.dtype) or dtype.name == "float16" or dtype.kind not in "iuf":
        raise NotCompilable(f"{what} is {dtype}, which has no null that is served; cast it to a number or a text")
    if dtype.kind in "iu" and len(series) and max(abs(int(series.min())), int(series.max())) > _EXACT_IN_FLOAT64:
        raise NotCompilable(f"{what} holds whole numbers beyond 2**53, which float64 cannot tell apart")
    to = dtype if dtype.kind == "f" else np.dtype(np.float64)
    return np.asarray(series.to_numpy(to))

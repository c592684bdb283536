"""Keyed look-ups: categories to codes, and keys to the statistics that were fitted for them.

A key column becomes the number of its row in the fitted table (one LabelEncoder); the table's columns are then read by
that number (one Gather a dtype), however many statistics hang on the key. Several key columns become one whole number
first, from the number of each column's value.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import NULL_STRING
from tristage.errors import ArtifactError
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.refusals import HASHES_ROW_NUMBERS
from tristage.export.workflow.registry import Node, lowers
from tristage.export.workflow.values import NotCompilable, Value, materialise

__all__ = ["gather", "keys_of", "row_number"]

PADDING, NULL, OUT_OF_VOCABULARY = 0, 1, 2
# what nulls and fractions of a numeric key become; ids are never these
_NULL_KEY = np.iinfo(np.int64).min
_NO_KEY = np.iinfo(np.int64).min + 1
_EXACT = 2.0**62


@lowers("nvtabular.ops.categorify.Categorify")
def categorify(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Codes of NVTabular 23.8: 0 padding, 1 null, 2 out of vocabulary or too rare, 3 and up the fitted categories.

    With `single_table` a column's codes follow the one's before it, and NVTabular gives a null the code of the column's
    first category, and what is out of vocabulary the code after that: so it was in training, and so it is served.
    """
    op = node.op
    for fault, reason in (
        (op.num_buckets, f"num_buckets hashes unseen categories: {HASHES_ROW_NUMBERS}; leave num_buckets out"),
        (op.search_sorted, "search_sorted is for a GPU, and not compiled"),
    ):
        if fault:
            raise NotCompilable(f"Categorify({', '.join(node.names)}): {reason}")
    made = {}
    combo = op.encode_type == "combo"
    outputs = op.column_mapping(node.selector) if combo else {name: [name] for name in node.names}
    for name, keys in outputs.items():
        stored = name if combo else op.storage_name.get(name, name)
        table = _read(op.categories[stored], f"Categorify of {name}")
        codes = np.asarray(table.index, np.int64)
        if len(codes) and codes[0] < OUT_OF_VOCABULARY + 1:
            codes = codes + OUT_OF_VOCABULARY + 1
        columns = [node.columns[key] for key in keys]
        keyed = [keys_of(table[key if combo else stored]) for key in keys]
        if columns[0].length is not None and columns[0].raw_pad in keyed[0]:
            raise NotCompilable(
                f"Categorify of {name}: the pad {columns[0].raw_pad!r} that fills its lists up is a fitted category "
                f"too; declare another: inputs: {{{name}: {{pad: ...}}}}"
            )
        null = int(codes[0]) if op.single_table and len(codes) else NULL
        code = row_number(graph, columns, keyed, codes, default=null + OUT_OF_VOCABULARY - NULL, null=null)
        dtype = np.dtype(op.output_dtype).name
        first = columns[0]
        made[name] = Value(
            graph.cast(code, "int64", dtype),
            dtype,
            length=first.length,
            valid=first.valid,
            pad=PADDING,
            width=first.length or 1,
        )
    return made


@lowers("nvtabular.ops.target_encoding.TargetEncoding")
def target_encoding(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """(sum + p_smooth * mean) / (count + p_smooth) over all folds; an unseen key gets the mean.

    Training excludes a row's own fold; serving has no fold, so it takes the statistics of all folds and needs no
    target column (NVTabular 23.8's own transform asks for both).
    """
    op = node.op
    means = op.means
    made = {}
    for group in node.groups:
        tag = op.name_sep.join(group)
        table = _read(op.stats[tag], f"TargetEncoding of {', '.join(group)}")
        # by position, as NVTabular reads it: keys, count, then a sum for every target
        keyed, (count, *sums) = table.columns[: len(group)], table.columns[len(group) :]
        fitted = [op.name_sep.join((*group, target, "sum")) for target in op.target_columns]
        if list(keyed) != list(group) or sums != fitted:
            raise _overwritten("TargetEncoding", group, table)
        encoded = np.stack(
            [
                _filled((table[total] + op.p_smooth * means[target]) / (table[count] + op.p_smooth), means[target])
                for target, total in zip(op.target_columns, sums, strict=True)
            ],
            axis=1,
        )
        unseen = np.array([[means[target] for target in op.target_columns]])
        dtype = np.dtype(op.output_dtype).name
        statistics = np.concatenate([encoded, unseen])
        if op.out_dtype is not None:
            statistics = statistics.astype(op.out_dtype)
        columns = [node.columns[key] for key in group]
        row = row_number(
            graph, columns, [keys_of(table[key]) for key in group], np.arange(len(table)), default=len(table)
        )
        names = [f"TE_{tag}_{target}" for target in op.target_columns]
        made.update(gather(graph, row, statistics.astype(dtype), names))
    return made


@lowers("nvtabular.ops.join_groupby.JoinGroupby")
def join_groupby(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Fitted group statistics by key; an unseen key gets NaN, and a count of 0 (where NVTabular fails on a CPU)."""
    op = node.op
    outputs = op.column_mapping(node.selector)
    made: dict[str, Value] = {}
    for group in node.groups:
        tag = op.name_sep.join(group)
        stored = tag if len(group) > 1 else op.storage_name.get(group[0], group[0])
        table = _read(op.categories[stored], f"JoinGroupby of {', '.join(group)}")
        names = [name for name in table.columns if name not in group]
        if not {name for name, keys in outputs.items() if tuple(keys[-len(group) :]) == group} <= set(names):
            raise _overwritten("JoinGroupby", group, table)
        columns = [node.columns[key] for key in group]
        row = row_number(
            graph, columns, [keys_of(table[key]) for key in group], np.arange(len(table)), default=len(table)
        )
        by_dtype: dict[str, list[str]] = {}
        for name in names:
            by_dtype.setdefault(_statistic_dtype(name, table[name].dtype, op.name_sep), []).append(name)
        for dtype, same in by_dtype.items():
            unseen = 0 if dtype == "int32" else np.nan
            statistics = np.stack(
                [np.append(table[name].to_numpy(dtype), np.array(unseen, dtype)) for name in same], axis=1
            )
            made.update(gather(graph, row, statistics, [name for name in same if name not in made]))
    return made


def _overwritten(op: str, group: Sequence[str], table: Any) -> ArtifactError:
    return ArtifactError(
        f"the statistics of {op} on {', '.join(group)} were overwritten by another operator's (its file has "
        f"{', '.join(table.columns)}): NVTabular keeps one file per key; give one operator's key column another "
        "name with Rename, and fit again"
    )


def _statistic_dtype(name: str, stored: Any, separator: str) -> str:
    for statistic, dtype in (("count", "int32"), ("std", "float32"), ("var", "float32"), ("mean", "float32")):
        if name.endswith(f"{separator}{statistic}"):
            return dtype
    # an integer column that is joined gets NaN for unseen keys, and so becomes float64 in pandas
    return "float32" if np.dtype(stored).name == "float32" else "float64"


def _filled(series: Any, mean: float) -> NDArray[np.float64]:
    return np.asarray(series.fillna(mean), np.float64)


def gather(graph: GraphBuilder, row: str, statistics: NDArray[Any], names: Sequence[str]) -> dict[str, Value]:
    """Columns of a [keys + 1, statistics] table, read by row number."""
    flat = graph.add("Squeeze", row, graph.constant(np.array([1], np.int64)))
    if statistics.dtype == object:
        # ONNX Runtime copies one text of every row it gathers, and leaves the others empty
        columns = (graph.constant(statistics[:, part : part + 1]) for part in range(len(names)))
        return {
            name: Value(graph.add("Gather", column, flat, axis=0), "string")
            for name, column in zip(names, columns, strict=True)
        }
    tensor = graph.add("Gather", graph.constant(statistics), flat, axis=0)
    width = statistics.shape[1]
    dtype = statistics.dtype.name
    return {name: Value(tensor, dtype, part=part, width=width) for part, name in enumerate(names)}


def row_number(
    graph: GraphBuilder,
    columns: Sequence[Value],
    keys: Sequence[list[Any]],
    rows: NDArray[np.int64],
    *,
    default: int,
    null: int | None = None,
) -> str:
    """The number that belongs to a row's key, an int64 tensor of the key column's shape; `default` where there is none.

    Args:
        columns: the key's columns.
        keys: for each of them its value in every row of the fitted table; None for a null.
        rows: the number that belongs to every row of the fitted table.
        null: the number of a key whose every column is null; None where nulls are keys like any other.
    """
    if len(columns) == 1:
        labels = dict(zip(keys[0], rows.tolist(), strict=True))
        if null is not None:
            labels[None] = null
        return _encode(graph, columns[0], labels, default)
    combined = None
    numbers = np.zeros(len(rows), np.int64)
    known = None
    for column, values in zip(columns, keys, strict=True):
        if column.length is not None:
            raise NotCompilable("a list column cannot be part of a key of several columns")
        distinct = list(dict.fromkeys(values))
        labels = {value: number for number, value in enumerate(distinct)}
        number = _encode(graph, column, labels, -1)
        seen = graph.add("GreaterOrEqual", number, graph.scalar(0, "int64"))
        known = seen if known is None else graph.add("And", known, seen)
        size = graph.scalar(len(distinct), "int64")
        combined = number if combined is None else graph.add("Add", graph.add("Mul", combined, size), number)
        numbers = numbers * len(distinct) + np.array([labels[value] for value in values], np.int64)
    assert combined is not None
    assert known is not None
    found = graph.label_encode(combined, dict(zip(numbers.tolist(), rows.tolist(), strict=True)), default)
    row = graph.add("Where", known, found, graph.scalar(default, "int64"))
    if null is not None:
        nulls = [graph.is_null(materialise(graph, column), column.dtype) for column in columns]
        every = nulls[0]
        for other in nulls[1:]:
            every = graph.add("And", every, other)
        row = graph.add("Where", every, graph.scalar(null, "int64"), row)
    return row


def _encode(graph: GraphBuilder, column: Value, labels: dict[Any, int], default: int) -> str:
    """One key column to its numbers."""
    tensor = materialise(graph, column)
    if column.dtype == "string":
        if any(not isinstance(key, str) for key in labels if key is not None):
            raise NotCompilable("a text column whose fitted categories are not texts")
        texts = {NULL_STRING if key is None else key: row for key, row in labels.items()}
        return graph.label_encode(tensor, texts or {NULL_STRING: default}, default)
    whole: dict[int, int] = {}
    for key, row in labels.items():
        if key is None:
            whole[_NULL_KEY] = row
        elif isinstance(key, str) or not abs(key) < 2**63 or key != int(key):
            raise NotCompilable(f"category {key!r} of a numeric column is not a whole number of 64 bits")
        else:
            whole[int(key)] = row
    return graph.label_encode(_whole(graph, tensor, column.dtype), whole or {_NO_KEY: default}, default)


def _whole(graph: GraphBuilder, tensor: str, dtype: str) -> str:
    """A numeric column as int64 keys: null and what is not a whole number become keys of their own."""
    if dtype not in ("float32", "float64"):
        return graph.cast(tensor, dtype, "int64")
    null = graph.add("IsNaN", tensor)
    whole = graph.add(
        "And",
        graph.add("Equal", tensor, graph.add("Floor", tensor)),
        graph.add("Less", graph.add("Abs", tensor), graph.scalar(_EXACT, dtype)),
    )
    safe = graph.add("Where", whole, tensor, graph.scalar(0, dtype))
    number = graph.add("Where", whole, graph.cast(safe, dtype, "int64"), graph.scalar(_NO_KEY, "int64"))
    return graph.add("Where", null, graph.scalar(_NULL_KEY, "int64"), number)


def keys_of(series: Any) -> list[Any]:
    """A fitted table's key column; None for a null."""
    return [None if null else key for key, null in zip(series.tolist(), series.isna().tolist(), strict=True)]


def _read(path: str, what: str) -> Any:
    import pandas as pd

    if not Path(path).exists():
        raise ArtifactError(f"{what}: its fitted table {path} is gone; save the workflow again", path=Path(path))
    return pd.read_parquet(path)

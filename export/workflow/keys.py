"""Keyed look-ups: categories to codes, and keys to the statistics that were fitted for them.

A key becomes a number (see `dictionary`), and the columns of every table that hangs on it are read by that number: one
Gather a dtype, however many statistics there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.dictionary import Numbers, number_rows, settled
from tristage.export.workflow.fitted import FittedTable, read_table
from tristage.export.workflow.registry import Node, lowers
from tristage.export.workflow.values import NotCompilable, NotServable, Value

__all__ = ["Chunks", "gather", "side_by_side"]

Chunks = Iterable[tuple[slice, NDArray[Any]]]
PADDING, NULL, OUT_OF_VOCABULARY = 0, 1, 2


@lowers("nvtabular.ops.categorify.Categorify")
def categorify(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Codes of NVTabular 23.8: 0 padding, 1 null, 2 out of vocabulary or too rare, 3 and up the fitted categories.

    With `single_table` a column's codes follow the one's before it, and NVTabular gives a null the code of the column's
    first category, and what is out of vocabulary the code after that: so it was in training, and so it is served.
    """
    op = node.op
    if op.search_sorted:
        raise NotCompilable(f"Categorify({', '.join(node.names)}): search_sorted is for a GPU, and not compiled")
    made = {}
    combo = op.encode_type == "combo"
    outputs = op.column_mapping(node.selector) if combo else {name: [name] for name in node.names}
    for name, keys in outputs.items():
        stored = name if combo else op.storage_name.get(name, name)
        table = read_table(op.categories[stored], f"Categorify of {name}")
        codes = table.labels()
        if len(codes) and codes[0] < OUT_OF_VOCABULARY + 1:
            codes = codes + OUT_OF_VOCABULARY + 1
        columns = [node.columns[key] for key in keys]
        _check_pad(name, columns[0], table, stored)
        number = number_rows(graph, columns, table, keys if combo else [stored])
        null = int(codes[0]) if op.single_table and len(codes) else NULL
        by_number = graph.array((number.unseen + 1,), "int64")
        by_number[:] = null + OUT_OF_VOCABULARY - NULL
        by_number[number.null] = null
        by_number[number.at(slice(None))] = codes
        code = graph.add("Gather", graph.constant(by_number), number.tensor, axis=0)
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
        table = read_table(op.stats[tag], f"TargetEncoding of {', '.join(group)}")
        # by position, as NVTabular reads it: keys, count, then a sum for every target
        keyed, (count, *sums) = table.names[: len(group)], table.names[len(group) :]
        fitted = [op.name_sep.join((*group, target, "sum")) for target in op.target_columns]
        if keyed != list(group) or sums != fitted:
            raise _overwritten("TargetEncoding", group, table.names)
        number = settled(graph, number_rows(graph, [node.columns[key] for key in group], table, group))
        names = [f"TE_{tag}_{target}" for target in op.target_columns]
        unseen = _as_told(op, np.array([means[target] for target in op.target_columns]))
        made.update(gather(graph, number, _encodings(op, table, count, sums), names, unseen))
    return made


def _encodings(op: Any, table: FittedTable, count: str, sums: Sequence[str]) -> Chunks:
    """TargetEncoding of the fitted keys, [rows, targets] a chunk."""
    mean = np.array([op.means[target] for target in op.target_columns])
    for place, chunk in table.chunks([count, *sums]):
        total = np.stack([chunk[name] for name in sums], axis=1)
        with np.errstate(all="ignore"):  # 0 / 0 is the mean of nothing
            encoded = (total + op.p_smooth * mean) / (chunk[count][:, None] + op.p_smooth)
        yield place, _as_told(op, np.where(np.isnan(encoded), mean, encoded))


@lowers("nvtabular.ops.join_groupby.JoinGroupby")
def join_groupby(node: Node, graph: GraphBuilder) -> dict[str, Value]:
    """Fitted group statistics by key; an unseen key gets NaN, and a count of 0 (where NVTabular fails on a CPU)."""
    op = node.op
    outputs = op.column_mapping(node.selector)
    made: dict[str, Value] = {}
    for group in node.groups:
        tag = op.name_sep.join(group)
        stored = tag if len(group) > 1 else op.storage_name.get(group[0], group[0])
        table = read_table(op.categories[stored], f"JoinGroupby of {', '.join(group)}")
        names = [name for name in table.names if name not in group]
        if not {name for name, keys in outputs.items() if tuple(keys[-len(group) :]) == group} <= set(names):
            raise _overwritten("JoinGroupby", group, table.names)
        number = settled(graph, number_rows(graph, [node.columns[key] for key in group], table, group))
        by_dtype: dict[str, list[str]] = {}
        for name in names:
            if name not in made:
                by_dtype.setdefault(_statistic_dtype(name, table.dtype(name), op.name_sep), []).append(name)
        for dtype, same in by_dtype.items():
            unseen = np.full(len(same), 0 if dtype == "int32" else np.nan, dtype)
            made.update(gather(graph, number, side_by_side(table, same, dtype), same, unseen))
    return made


def side_by_side(table: FittedTable, names: Sequence[str], dtype: str) -> Chunks:
    """Columns of a fitted table, [rows, names] a chunk."""
    for place, chunk in table.chunks(names):
        yield place, np.stack([chunk[name].astype(dtype) for name in names], axis=1)


def _check_pad(name: str, column: Value, table: FittedTable, stored: str) -> None:
    """What fills a list up must be no category."""
    if column.length is None:
        return
    if any((chunk[stored] == column.raw_pad).any() for _, chunk in table.chunks([stored])):
        raise NotServable(
            f"Categorify of {name}: the pad {column.raw_pad!r} that fills its lists up is a fitted category too; "
            f"declare another: inputs: {{{name}: {{pad: ...}}}}"
        )


def _overwritten(op: str, group: Sequence[str], names: Sequence[str]) -> ArtifactError:
    return ArtifactError(
        f"the statistics of {op} on {', '.join(group)} were overwritten by another operator's (its file has "
        f"{', '.join(names)}): NVTabular keeps one file per key; give one operator's key column another "
        "name with Rename, and fit again"
    )


def _statistic_dtype(name: str, stored: Any, separator: str) -> str:
    for statistic, dtype in (("count", "int32"), ("std", "float32"), ("var", "float32"), ("mean", "float32")):
        if name.endswith(f"{separator}{statistic}"):
            return dtype
    # an integer column that is joined gets NaN for unseen keys, and so becomes float64 in pandas
    return "float32" if np.dtype(stored).name == "float32" else "float64"


def _as_told(op: Any, encoded: NDArray[np.float64]) -> NDArray[Any]:
    """In the type that a TargetEncoding was told, then in that of its columns."""
    return (encoded if op.out_dtype is None else encoded.astype(op.out_dtype)).astype(op.output_dtype)


def gather(
    graph: GraphBuilder,
    number: Numbers,
    chunks: Chunks,
    names: Sequence[str],
    unseen: NDArray[Any],
) -> dict[str, Value]:
    """Statistics by key.

    Args:
        graph: takes the nodes and the table.
        number: the key's number, from `number_rows`, or its row from `settled`.
        chunks: the statistics of the fitted rows, [rows, names] each, in the table's order.
        names: the columns that they become.
        unseen: the statistics of a key that was not fitted, [names].
    """
    dtype, width = unseen.dtype.name, len(names)
    table = graph.array((number.unseen + 1, width), dtype)
    if number.rows is None:
        table[number.unseen] = unseen
    else:
        table[:] = unseen
    for place, values in chunks:
        table[number.at(place)] = values
    row = graph.add("Squeeze", number.tensor, graph.constant(np.array([1], np.int64)))
    tensor = graph.add("Gather", graph.constant(table), row, axis=0)
    return {name: Value(tensor, dtype, part=part, width=width) for part, name in enumerate(names)}

"""Keys to numbers: which row of a fitted table a served row belongs to.

A set of keys becomes a dictionary that numbers them; every table of the same keys shares it. Up to LARGE keys it is a
LabelEncoder, which ONNX Runtime makes a hash map of for every instance. Beyond, it is a perfect hash in files that are
memory-mapped, so that instances share it and opening it takes no time. Several key columns become one whole number
first, from the number of each's value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import NULL_STRING
from tristage.errors import ArtifactError
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.fitted import EXACT, NO_KEY, NULL_KEY, NULL_TEXT_KEY, FittedTable
from tristage.export.workflow.perfect_hash import FIRST, build, places
from tristage.export.workflow.values import NotCompilable, Value, materialise
from tristage.fingerprint import DERIVED

__all__ = ["LARGE", "Numbers", "number_rows", "settled"]

LARGE = 1 << 16  # keys; above, a dictionary lies in files


@dataclass(frozen=True)
class Numbers:
    """The numbers of a table's keys.

    Attributes:
        tensor: the number of every served row's key, int64 of the key column's shape.
        rows: the number of every fitted row, [rows]; None where a row's number is its place.
        null: the number of a key whose every column is null.
        unseen: the number of a key that was not fitted: one more than the largest.
    """

    tensor: str
    rows: NDArray[np.int64] | None
    null: int
    unseen: int

    def at(self, place: slice) -> Any:
        """Where the statistics of some fitted rows belong: what an array is indexed with."""
        return place if self.rows is None else self.rows[place]


def number_rows(graph: GraphBuilder, columns: Sequence[Value], table: FittedTable, names: Sequence[str]) -> Numbers:
    """Number the keys of a fitted table.

    Args:
        graph: takes the nodes that find a served row's number.
        columns: the key's columns.
        table: the fitted table, a row for every key.
        names: what it calls them.

    Raises:
        NotCompilable: a key column cannot be looked up exactly.
        ArtifactError: two fitted texts have one fingerprint.
    """
    if len(columns) == 1:
        number = _column(graph, columns[0], table, names[0])
        if columns[0].dtype == "string":
            _check_apart(graph, number, names[0])
        return number
    if any(column.length is not None for column in columns):
        raise NotCompilable("a list column cannot be part of a key of several columns")
    each = [_column(graph, column, table, name) for column, name in zip(columns, names, strict=True)]
    combined, null, most = each[0].tensor, each[0].null, each[0].unseen + 1
    keys = graph.array((table.rows,), "int64")
    for place in places(keys):
        keys[place] = each[0].at(place)
    for key in each[1:]:
        size = key.unseen + 1
        most *= size
        if most > EXACT:
            raise NotCompilable(f"the key {', '.join(names)} has more combinations than 64 bits can tell apart")
        combined = graph.add("Add", graph.add("Mul", combined, graph.scalar(size, "int64")), key.tensor)
        null = null * size + key.null
        for place in places(keys):
            keys[place] = keys[place] * size + key.at(place)
    return _numbers(graph, combined, keys, null)


def _check_apart(graph: GraphBuilder, number: Numbers, name: str) -> None:
    """Every row of a table has a key of its own, so texts of one number have one fingerprint."""
    seen, rows = graph.array((number.unseen + 1,), "bool"), 0
    for place in places(seen):
        seen[place] = False
    assert number.rows is not None
    for place in places(number.rows):
        known = number.rows[place][number.rows[place] != number.null]
        seen[known] = True
        rows += len(known)
    if sum(int(seen[place].sum()) for place in places(seen)) != rows:
        raise ArtifactError(f"two of the fitted keys of {name} have one fingerprint; rename one of them")


def settled(graph: GraphBuilder, number: Numbers) -> Numbers:
    """Numbers that are places in a fitted table, where it is large: then its statistics are written as they come."""
    if number.unseen <= LARGE:
        return number
    assert number.rows is not None
    order = graph.array((number.unseen + 1,), "int32")
    for place in places(order):
        order[place] = len(number.rows)
    for place in places(number.rows):
        order[number.rows[place]] = np.arange(place.start, place.stop)
    row = graph.add("Gather", graph.constant(order), number.tensor, axis=0)
    return Numbers(row, None, len(number.rows), len(number.rows))


def _column(graph: GraphBuilder, column: Value, table: FittedTable, name: str) -> Numbers:
    """Number what one key column holds."""
    tensor = materialise(graph, column)
    keys = graph.array((table.rows,), "int64")
    if column.dtype != "string":
        for place, chunk in table.keys(name, None):
            keys[place] = chunk
        return _numbers(graph, _whole(graph, tensor, column.dtype), keys, NULL_KEY)
    # a fingerprint is made of what a client sends, not of text that the graph makes
    raw = graph.fingerprints and column.part is None and graph.is_input(tensor)
    texts: dict[int, str] = {}
    for place, chunk in table.keys(name, texts):
        keys[place] = chunk
        if raw and len(texts) > LARGE:
            texts.clear()
    distinct = _distinct(keys, LARGE if raw else len(keys), NULL_TEXT_KEY)
    if distinct is None:
        return _hashed(graph, graph.input(DERIVED + tensor, "int64", column.width), keys, NULL_TEXT_KEY)
    labels = {texts[key]: number for number, key in enumerate(distinct.tolist())}
    return _labelled(graph, tensor, {**labels, NULL_STRING: len(distinct)}, keys, distinct, NULL_TEXT_KEY)


def _numbers(graph: GraphBuilder, tensor: str, keys: NDArray[np.int64], null: int) -> Numbers:
    distinct = _distinct(keys, LARGE, null)
    if distinct is None:
        return _hashed(graph, tensor, keys, null)
    labels = {key: number for number, key in enumerate((*distinct.tolist(), null))}
    return _labelled(graph, tensor, labels, keys, distinct, null)


def _distinct(keys: NDArray[np.int64], most: int, null: int) -> NDArray[np.int64] | None:
    """The distinct keys but for null, ascending; None where there are more than `most`."""
    distinct = np.empty(0, np.int64)
    for place in places(keys):
        distinct = np.union1d(distinct, keys[place])
        distinct = distinct[distinct != null]
        if len(distinct) > most:
            return None
    return distinct


def _labelled(
    graph: GraphBuilder,
    tensor: str,
    labels: Mapping[Any, int],
    keys: NDArray[np.int64],
    distinct: NDArray[np.int64],
    null: int,
) -> Numbers:
    """A dictionary as a LabelEncoder: keys by their order, then null, then what was not fitted."""
    size = len(distinct)
    rows = graph.array(keys.shape, "int64")
    for place in places(keys):
        rows[place] = np.where(keys[place] == null, size, np.searchsorted(distinct, keys[place]))
    return Numbers(graph.label_encode(tensor, labels, size + 1), rows, size, size + 1)


def _hashed(graph: GraphBuilder, tensor: str, keys: NDArray[np.int64], null: int) -> Numbers:
    """A dictionary as a perfect hash: keys by their places, then what was not fitted."""
    made = build(graph, keys, null)

    def upper(product: str, values: int) -> str:
        """The upper bits of a product, enough to tell so many values apart."""
        shift = graph.scalar(65 - values.bit_length(), "uint64")
        shifted = graph.add("BitShift", graph.cast(product, "int64", "uint64"), shift, direction="RIGHT")
        return graph.cast(shifted, "uint64", "int64")

    size = len(made.keys)
    moved = graph.add("Add", tensor, graph.scalar(made.offset, "int64"))
    first = graph.constant(np.array(FIRST).astype(np.int64))
    bucket = upper(graph.add("Mul", moved, first), len(made.multipliers))
    multiplier = graph.add("Gather", graph.constant(made.multipliers), bucket, axis=0)
    place = upper(graph.add("Mul", moved, multiplier), size)
    known = graph.add("Equal", graph.add("Gather", graph.constant(made.keys), place, axis=0), tensor)
    number = graph.add("Where", known, place, graph.scalar(size, "int64"))
    return Numbers(number, made.rows, made.null, size)


def _whole(graph: GraphBuilder, tensor: str, dtype: str) -> str:
    """A numeric column as int64 keys: null and what is not a whole number become keys of their own."""
    if dtype not in ("float32", "float64"):
        return graph.cast(tensor, dtype, "int64")
    null = graph.add("IsNaN", tensor)
    whole = graph.add(
        "And",
        graph.add("Equal", tensor, graph.add("Floor", tensor)),
        graph.add("Less", graph.add("Abs", tensor), graph.scalar(EXACT, dtype)),
    )
    safe = graph.add("Where", whole, tensor, graph.scalar(0, dtype))
    number = graph.add("Where", whole, graph.cast(safe, dtype, "int64"), graph.scalar(NO_KEY, "int64"))
    return graph.add("Where", null, graph.scalar(NULL_KEY, "int64"), number)

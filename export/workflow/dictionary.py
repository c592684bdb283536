"""Keys to numbers: which row of a fitted table a served row belongs to.

A set of keys becomes a dictionary that numbers them; every table of the same keys shares it. Up to LARGE keys it is a
LabelEncoder, which ONNX Runtime makes a hash map of for every instance. Beyond, it is a hash table in files that are
memory-mapped, so that instances share it and loading costs nothing:

    buckets[hash(key)] -> where the bucket begins in `keys`, which holds the keys of a bucket side by side

A look-up compares the key with as many neighbours as the fullest bucket holds, and the place where it is found is its
number. The hash is the upper bits of the product with an odd number (Knuth, The Art of Computer Programming 6.4).
Several key columns become one whole number first, from the number of each column's value.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import NULL_STRING
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.fitted import CHUNK, EXACT, NO_KEY, NULL_KEY, NULL_TEXT_KEY, FittedTable
from tristage.export.workflow.values import NotCompilable, Value, materialise
from tristage.fingerprint import DERIVED

__all__ = ["LARGE", "Numbers", "number_rows", "settled"]

LARGE = 1 << 16  # keys; above, a dictionary lies in files
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xC2B2AE3D27D4EB4F, 0xFF51AFD7ED558CCD)
_WIDE = 24  # neighbours compared; where a bucket holds more, the next multiplier is tried
_PART = 1 << 21  # keys of a hash table that are sorted at once


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
        return _column(graph, columns[0], table, names[0])
    if any(column.length is not None for column in columns):
        raise NotCompilable("a list column cannot be part of a key of several columns")
    each = [_column(graph, column, table, name) for column, name in zip(columns, names, strict=True)]
    combined, null, most = each[0].tensor, each[0].null, each[0].unseen + 1
    keys = graph.array((table.rows,), "int64")
    for place in _places(keys):
        keys[place] = each[0].at(place)
    for key in each[1:]:
        size = key.unseen + 1
        most *= size
        if most > EXACT:
            raise NotCompilable(f"the key {', '.join(names)} has more combinations than 64 bits can tell apart")
        combined = graph.add("Add", graph.add("Mul", combined, graph.scalar(size, "int64")), key.tensor)
        null = null * size + key.null
        for place in _places(keys):
            keys[place] = keys[place] * size + key.at(place)
    return _numbers(graph, combined, keys, null)


def settled(graph: GraphBuilder, number: Numbers) -> Numbers:
    """Numbers that are places in a fitted table, where it is large: then its statistics are written as they come."""
    if number.unseen <= LARGE:
        return number
    assert number.rows is not None
    order = graph.array((number.unseen + 1,), "int32")
    for place in _places(order):
        order[place] = len(number.rows)
    for place in _places(number.rows):
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
    raw = column.part is None and graph.is_input(tensor)
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
    for place in _places(keys):
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
    for place in _places(keys):
        rows[place] = np.where(keys[place] == null, size, np.searchsorted(distinct, keys[place]))
    return Numbers(graph.label_encode(tensor, labels, size + 1), rows, size, size + 1)


def _hashed(graph: GraphBuilder, tensor: str, keys: NDArray[np.int64], null: int) -> Numbers:
    """A dictionary as a hash table: keys by their buckets, then what was not fitted."""
    for multiplier in _MULTIPLIERS:
        table = _hash_table(graph, keys, null, multiplier)
        if table.width <= _WIDE:
            break
    product = graph.add("Mul", tensor, graph.constant(np.array(table.multiplier).astype(np.int64)))
    bits = graph.cast(product, "int64", "uint64")
    bucket = graph.add("BitShift", bits, graph.scalar(table.shift, "uint64"), direction="RIGHT")
    begin = graph.add("Gather", graph.constant(table.buckets), graph.cast(bucket, "uint64", "int64"), axis=0)
    last = graph.constant(np.array([-1], np.int64))
    near = graph.add("Add", graph.add("Unsqueeze", begin, last), graph.constant(np.arange(table.width, dtype=np.int32)))
    found = graph.add(
        "Equal", graph.add("Gather", graph.constant(table.keys), near, axis=0), graph.add("Unsqueeze", tensor, last)
    )
    size = graph.scalar(table.size, "int32")
    least = graph.add("ReduceMin", graph.add("Where", found, near, size), last, keepdims=1)
    # not Squeeze: ONNX Runtime reduces nothing where there are no rows
    number = graph.add("Gather", least, graph.scalar(0, "int64"), axis=-1)
    return Numbers(graph.cast(number, "int32", "int64"), table.rows, table.null, table.size)


@dataclass(frozen=True)
class _HashTable:
    """A hash table, and what it makes of the fitted keys.

    Attributes:
        multiplier: odd; a key times it, its upper bits, is the key's bucket.
        shift: how far the product is shifted for that.
        buckets: where each bucket begins in `keys`.
        keys: the distinct keys and null, by bucket, and `width` more that are never looked at twice.
        width: keys in the fullest bucket.
        size: distinct keys, null among them.
        rows: the number of every fitted key.
        null: null's.
    """

    multiplier: np.uint64
    shift: int
    buckets: NDArray[np.int32]
    keys: NDArray[np.int64]
    width: int
    size: int
    rows: NDArray[np.int64]
    null: int


def _hash_table(graph: GraphBuilder, keys: NDArray[np.int64], null: int, odd: int) -> _HashTable:
    """Build a hash table, a part of its buckets at a time, so that no more than a part is in memory."""
    count = len(keys) + 1
    if count >= 2**31:
        raise NotCompilable(f"a key column with {len(keys):,} fitted rows; a dictionary holds 2**31 at most")
    bits = max(4, (count - 1).bit_length())  # about one key a bucket
    shift, multiplier = 64 - bits, np.uint64(odd)
    parts = min(-(-count // _PART), 1 << bits)
    edges = np.linspace(0, 1 << bits, parts + 1).astype(np.int64)
    buckets, ordered = graph.array((1 << bits,), "int32"), graph.array((count,), "int64")
    rows = graph.array(keys.shape, "int64")
    size = width = number_of_null = 0

    def bucket(of: NDArray[np.int64]) -> NDArray[np.int64]:
        return ((of.view(np.uint64) * multiplier) >> np.uint64(shift)).astype(np.int64)

    for low, high in itertools.pairwise(edges):
        at = [np.empty(0, np.int64)]
        for place in _places(keys):
            of = bucket(np.array(keys[place]))
            at.append(np.flatnonzero((of >= low) & (of < high)) + place.start)
        index = np.concatenate(at)
        nulls = np.full(int(low <= bucket(np.array([null]))[0] < high), null)
        distinct, inverse = np.unique(np.concatenate([keys[index], nulls]), return_inverse=True)
        of = bucket(distinct)
        order = np.argsort(of, kind="stable")
        numbers = np.empty(len(order), np.int64)
        numbers[order] = size + np.arange(len(order))
        rows[index] = numbers[inverse[: len(index)]]
        if len(nulls):
            number_of_null = int(numbers[inverse[-1]])
        held = np.bincount(of - low, minlength=high - low)
        buckets[low:high] = size + np.cumsum(held) - held
        ordered[size : size + len(order)] = distinct[order]
        size, width = size + len(order), max(width, int(held.max(initial=0)))
    stored = graph.array((size + width,), "int64")
    for place in _places(stored[:size]):
        stored[place] = ordered[place]
    stored[size:] = ordered[0]
    return _HashTable(multiplier, shift, buckets, stored, width, size, rows, number_of_null)


def _places(array: NDArray[Any]) -> Iterator[slice]:
    for start in range(0, len(array), CHUNK):
        yield slice(start, min(start + CHUNK, len(array)))


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

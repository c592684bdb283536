"""Perfect hashes of millions of keys, built a part at a time.

    bucket = (key + offset) * FIRST >> ...                 about four keys a bucket
    place  = (key + offset) * multipliers[bucket] >> ...   each bucket's was chosen so that no two keys meet

The upper bits of a product with an odd number are a hash (Dietzfelbinger et al., A Reliable Randomized Algorithm for
the Closest-Pair Problem, 1997), if the key is not 0 nor a multiple of a large power of two, which the offset sees to.
Choosing a function for every bucket, the fullest first, is hash and displace (Belazzougui, Botelho, Dietzfelbinger,
Hash, Displace, and Compress, 2009).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow.fitted import CHUNK

__all__ = ["FIRST", "PerfectHash", "build", "places"]

FIRST = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio
_PART = 1 << 21  # keys that are in memory at once
_BUCKET, _LOAD = 4, 0.7  # keys a bucket, and keys a place, at most
_FREE, _TAKEN = -1, -2
_PATIENCE = 100_000  # multipliers tried for a bucket


@dataclass(frozen=True)
class PerfectHash:
    """A perfect hash, and where it puts the keys it was built of.

    Attributes:
        offset: what is added to a key.
        multipliers: every bucket's, a power of two of them.
        keys: the key at every place, a power of two of them; where there is none, one of another place.
        rows: the place of every key that was given.
        null: null's place.
    """

    offset: int
    multipliers: NDArray[np.int64]
    keys: NDArray[np.int64]
    rows: NDArray[np.int64]
    null: int


class _Stuck(Exception):
    """A bucket whose keys always meet others."""


def build(graph: GraphBuilder, keys: NDArray[np.int64], null: int) -> PerfectHash:
    """Build the perfect hash of some keys and of null; what is large lies in the graph's files.

    Args:
        graph: has room for large arrays.
        keys: [keys], some of them more than once.
        null: the key of a null, whether or not it is among them.
    """
    for attempt in itertools.count(1):
        offset = int(_multiplier(-1 - attempt).view(np.int64))  # that of -1 is 1, which moves nothing far
        try:
            return _build(graph, keys, null, offset)
        except _Stuck:
            continue
    raise AssertionError


def _build(graph: GraphBuilder, keys: NDArray[np.int64], null: int, offset: int) -> PerfectHash:
    moved = graph.array(keys.shape, "int64")
    for part in places(keys):
        moved[part] = keys[part] + np.int64(offset)
    by_bucket = _sort(graph, moved, int((np.array([null]) + offset)[0]))
    bits = max(3, int(np.ceil(np.log2(len(by_bucket.keys) / _LOAD))))
    multipliers, of = _displace(graph, by_bucket, bits)
    stored, rows = graph.array((1 << bits,), "int64"), graph.array(keys.shape, "int64")
    for part in places(stored):
        stored[part] = by_bucket.keys[:1] - np.int64(offset)  # of an array: it wraps around without a warning
    for part in places(of):
        stored[of[part]] = by_bucket.keys[part] - np.int64(offset)
    for part in places(rows):
        rows[part] = of[by_bucket.rows[part]]
    return PerfectHash(offset, multipliers, stored, rows, int(of[by_bucket.null]))


def places(array: NDArray[Any]) -> Iterator[slice]:
    """An array, chunk by chunk."""
    for start in range(0, len(array), CHUNK):
        yield slice(start, min(start + CHUNK, len(array)))


@dataclass(frozen=True)
class _ByBucket:
    """Distinct keys sorted by bucket, how many each bucket holds, and where the keys that were given went."""

    keys: NDArray[np.int64]
    held: NDArray[np.int32]
    rows: NDArray[np.int64]
    null: int


def _sort(graph: GraphBuilder, keys: NDArray[np.int64], null: int) -> _ByBucket:
    """Sort keys by bucket, a range of buckets at a time."""
    count = len(keys) + 1
    bits = max(2, int(np.ceil(np.log2(count / _BUCKET))))
    edges = np.linspace(0, 1 << bits, min(-(-count // _PART), 1 << bits) + 1).astype(np.int64)
    held, ordered = graph.array((1 << bits,), "int32"), graph.array((count,), "int64")
    rows = graph.array(keys.shape, "int64")
    size = number_of_null = 0
    for low, high in itertools.pairwise(edges.tolist()):
        inside = [np.empty(0, np.int64)]
        for part in places(keys):
            bucket = _hash(keys[part], FIRST, bits)
            inside.append(np.flatnonzero((bucket >= low) & (bucket < high)) + part.start)
        index = np.concatenate(inside)
        nulls = np.full(int(low <= _hash(np.array([null]), FIRST, bits)[0] < high), null)
        distinct, inverse = np.unique(np.concatenate([keys[index], nulls]), return_inverse=True)
        bucket = _hash(distinct, FIRST, bits)
        order = np.argsort(bucket, kind="stable")
        numbers = np.empty(len(order), np.int64)
        numbers[order] = size + np.arange(len(order))
        rows[index] = numbers[inverse[: len(index)]]
        if len(nulls):
            number_of_null = int(numbers[inverse[-1]])
        held[low:high] = np.bincount(bucket - low, minlength=high - low)
        ordered[size : size + len(order)] = distinct[order]
        size += len(order)
    return _ByBucket(ordered[:size], held, rows, number_of_null)


def _displace(graph: GraphBuilder, keys: _ByBucket, bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose every bucket's multiplier, the fullest first; returns them and the place of every key."""
    multipliers, of = graph.array(keys.held.shape, "int64"), graph.array(keys.keys.shape, "int64")
    holder = graph.array((1 << bits,), "int32")
    for part in places(holder):
        holder[part] = _FREE
    begin = graph.array(keys.held.shape, "int64")
    begin[:] = np.cumsum(keys.held) - keys.held
    multipliers[:] = int(_multiplier(0).view(np.int64))  # of buckets that hold nothing
    for width in range(int(keys.held.max()), 0, -1):
        buckets = np.flatnonzero(keys.held == width)
        for start in range(0, len(buckets), max(1, _PART // (8 * width))):
            block = buckets[start : start + max(1, _PART // (8 * width))]
            _place(block, begin[block][:, None] + np.arange(width), keys.keys, holder, multipliers, of, bits)
    return multipliers, of


def _place(
    buckets: NDArray[np.int64],
    index: NDArray[np.int64],
    keys: NDArray[np.int64],
    holder: NDArray[np.int32],
    multipliers: NDArray[np.int64],
    of: NDArray[np.int64],
    bits: int,
) -> None:
    """Find places for some buckets of one width: each takes the first multiplier whose places are free."""
    held = keys[index]
    todo = np.arange(len(buckets), dtype=np.int32)
    for number in itertools.count():
        if not len(todo):
            return
        if number == _PATIENCE:
            raise _Stuck
        multiplier = _multiplier(number)
        to = _hash(held[todo], multiplier, bits)
        apart = (np.diff(np.sort(to, axis=1), axis=1) != 0).all(axis=1)
        free = apart & (holder[to] == _FREE).all(axis=1)
        asks, to = todo[free], to[free]
        holder[to] = asks[:, None]  # of several that ask for a place the last has it
        gets = (holder[to] == asks[:, None]).all(axis=1)
        lost = to[~gets]
        holder[to[gets]] = _TAKEN
        holder[lost[holder[lost] != _TAKEN]] = _FREE
        of[index[asks[gets]]] = to[gets]
        multipliers[buckets[asks[gets]]] = multiplier.view(np.int64)
        left = np.ones(len(buckets), bool)
        left[asks[gets]] = False
        todo = todo[left[todo]]


def _hash(keys: NDArray[np.int64], multiplier: np.uint64, bits: int) -> NDArray[np.int64]:
    product = np.ascontiguousarray(keys).view(np.uint64) * multiplier
    return (product >> np.uint64(64 - bits)).astype(np.int64)


def _multiplier(number: int) -> np.uint64:
    """The n-th of a row of odd numbers that look random: splitmix64 (Steele, Lea, Flood, 2014)."""
    mask = 2**64 - 1
    mixed = (number + 1) * int(FIRST) & mask
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
    return np.uint64((mixed ^ mixed >> 31) | 1)

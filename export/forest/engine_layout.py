"""Nodes laid out as serving/forest/packed.h describes: ranks for thresholds, complete trees in heaps and units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.export.forest.engine_nodes import EngineRefusal, Nodes
from tristage.serving.forest.packed import HEAP, LANES, LINKED, LOWER, NODE, ROOT, SEARCH, UNIT

__all__ = ["Columns", "Layout", "lay_out", "rank_nodes"]

FAN, SPARE = 16, 7  # as in packed.h
DEEPEST = 8  # levels of a tree in heaps; deeper ones are linked
KEYS = 32766  # thresholds in one look-up: ranks have 15 bits, the highest is NaN's
ALWAYS, NEVER = 32766, 32767  # ranks of a node that sends all but NaN left, and of one that sends all left
COLUMNS = 65536 // LANES


@dataclass(frozen=True)
class Columns:
    """The columns that nodes read, and the look-ups that fill them.

    Attributes:
        count: how many columns there are.
        searches: the look-ups, SEARCH.
        keys: their keys.
        column: of each node, times LANES.
        rank: of each node.
    """

    count: int
    searches: NDArray[Any]
    keys: NDArray[np.float32]
    column: NDArray[np.uint16]
    rank: NDArray[np.uint16]


@dataclass(frozen=True)
class Layout:
    """The sections that hold trees; `values` has an entry for each of `nodes`."""

    uppers: NDArray[Any]
    units: NDArray[Any]
    nodes: NDArray[Any]
    values: NDArray[np.float32]
    roots: NDArray[Any]


def rank_nodes(nodes: Nodes) -> Columns:
    """Turn every node's bound into a column and a rank.

    Raises:
        EngineRefusal: there are more columns than the layout has numbers for.
    """
    column, rank = np.zeros(len(nodes.left), np.uint16), np.full(len(nodes.left), NEVER, np.uint16)
    inner = np.flatnonzero(nodes.left >= 0)
    if not len(inner):  # one column that nothing asks for: padding must read something
        return Columns(1, np.zeros(1, SEARCH), np.full(FAN, np.nan, np.float32), column, rank)
    ordered = inner[np.lexsort((nodes.always[inner], nodes.bound[inner], nodes.feature[inner]))]
    feature, bound, always = nodes.feature[ordered], nodes.bound[ordered], nodes.always[ordered]
    starts = np.r_[True, feature[1:] != feature[:-1]]
    fresh = ~always & (starts | np.r_[True, bound[1:] != bound[:-1]])
    seen = np.cumsum(fresh)
    before = np.maximum.accumulate(np.where(starts, seen - fresh, 0))  # distinct bounds of the features before
    position = np.where(always, 0, seen - before - 1)
    part = position // KEYS  # a feature of too many thresholds takes several look-ups
    rank[ordered] = np.where(always, ALWAYS, position % KEYS)

    # one search for each feature and part, one column for each search and side of NaN
    wanted, search = np.unique(feature << 32 | part, return_inverse=True)
    sides, side = np.unique(search << 1 | ~nodes.nan_left[ordered], return_inverse=True)
    count = len(sides) + (len(sides) < 2 * len(wanted))  # a search with one side writes the other one to the last
    if count > COLUMNS:
        raise EngineRefusal(f"the engine takes {COLUMNS} columns, two for a feature that may be missing, not {count}")
    column[ordered] = side * LANES
    searches = np.zeros(len(wanted), SEARCH)
    searches["feature"] = wanted >> 32
    searches["low"] = searches["high"] = count - 1
    high = sides & 1 == 1
    searches["low"][sides[~high] >> 1] = np.flatnonzero(~high)
    searches["high"][sides[high] >> 1] = np.flatnonzero(high)
    searches["count"] = np.bincount(search[fresh], minlength=len(wanted))
    levels: list[NDArray[np.float32]] = []
    at = 0
    for number, own in enumerate(np.split(bound[fresh], np.cumsum(searches["count"])[:-1])):
        searches[number]["key"] = at
        for level in _key_levels(own):
            levels.append(level)
            at += len(level)
    return Columns(int(count), searches, np.concatenate(levels), column, rank)


def _key_levels(keys: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Sorted keys, then every 16th of them, and so on; each level padded with NaN, at least one."""
    while True:
        level = np.full((len(keys) // FAN + 1) * FAN, np.nan, np.float32)
        level[: len(keys)] = keys
        yield level
        if len(keys) <= FAN:
            return
        keys = keys[FAN - 1 :: FAN]


def lay_out(nodes: Nodes, columns: Columns, slots: NDArray[Any]) -> Layout:
    """Place all trees, and write into `slots` where and how their trees lie.

    Raises:
        EngineRefusal: there are more trees than the layout has numbers for.
    """
    levels = list(_levels(nodes))
    depth = np.zeros(len(nodes.root), np.int64)
    for level, (tree, _, _) in enumerate(levels):
        depth[tree] = level
    deepest = np.zeros(len(slots), np.int64)
    np.maximum.at(deepest, nodes.slot, depth)
    slots["upper"] = np.where(deepest > DEEPEST, LINKED, np.maximum(deepest - LOWER, 0))
    slots["trees"] = np.bincount(nodes.slot, minlength=len(slots))
    upper = slots["upper"][nodes.slot].astype(np.int64)  # of each tree, as all below
    linked = upper == LINKED
    units = np.where(linked, 0, 1 << upper)
    uppers = np.where(linked | (upper == 0), 0, 1)
    first_unit, first_upper, first_root = (
        np.cumsum(sizes) - sizes for sizes in (units, uppers, linked.astype(np.int64))
    )
    at = np.searchsorted(nodes.slot, np.arange(len(slots)))  # each slot's first tree
    some = slots["trees"] > 0
    slots["first_upper"][some] = first_upper[at[some]]
    slots["first"][some] = np.where(linked, first_root, first_unit)[at[some]]
    if int(units.sum()) + (SPARE << LOWER) >= 1 << 32:
        raise EngineRefusal("the engine takes 4,294,967,295 units of four levels, and these trees need more")
    filled = _fill(nodes, columns, levels, upper, (first_upper, int(uppers.sum())), (first_unit, int(units.sum())))
    return Layout(*filled, *_link(nodes, columns, levels, linked, depth))


_Level = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _levels(nodes: Nodes) -> Iterator[_Level]:
    """Level by level, (tree, node, path) of the nodes there; a path has a bit for each level, 1 for right."""
    tree, node, path = np.arange(len(nodes.root)), nodes.root, np.zeros(len(nodes.root), np.int64)
    while len(node):
        yield tree, node, path
        inner = nodes.left[node] >= 0
        tree = np.repeat(tree[inner], 2)
        path = (path[inner, None] << 1 | np.arange(2)).reshape(-1)
        node = np.stack([nodes.left[node[inner]], nodes.right[node[inner]]], axis=1).reshape(-1)


def _fill(
    nodes: Nodes,
    columns: Columns,
    levels: Sequence[_Level],
    upper: NDArray[np.int64],
    of_uppers: tuple[NDArray[np.int64], int],
    of_units: tuple[NDArray[np.int64], int],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Trees of at most DEEPEST levels, padded until they are complete: (uppers, units)."""
    (first_upper, uppers_count), (first_unit, units_count) = of_uppers, of_units
    uppers, units = np.zeros(uppers_count + SPARE, HEAP), np.zeros(units_count + (SPARE << LOWER), UNIT)
    uppers["rank"], units["rank"] = NEVER, NEVER  # padding goes left
    for level, (tree, node, path) in enumerate(levels[: DEEPEST + 1]):
        leaf, complete = nodes.left[node] < 0, upper[tree] != LINKED
        t, n, p = (part[leaf & complete] for part in (tree, node, path))
        p = p << (upper[t] + LOWER - level)  # where going left from there ends
        units["leaf"][first_unit[t] + (p >> LOWER), p & 15] = nodes.value[n]
        top = ~leaf & complete & (level < upper[tree])
        t, n, p = (part[top] for part in (tree, node, path))
        where = (first_upper[t], (1 << level) + p)
        uppers["column"][where], uppers["rank"][where] = columns.column[n], columns.rank[n]
        t, n, p = (part[~leaf & complete & ~top] for part in (tree, node, path))
        below = level - upper[t]
        where = (first_unit[t] + (p >> below), (1 << below) + (p & ((1 << below) - 1)))
        units["column"][where], units["rank"][where] = columns.column[n], columns.rank[n]
    return uppers, units


def _link(
    nodes: Nodes, columns: Columns, levels: Sequence[_Level], linked: NDArray[np.bool_], depth: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[Any]]:
    """Deeper trees, one after another, each level by level: (nodes, values, roots)."""
    parts = [(tree[linked[tree]], node[linked[tree]]) for tree, node, _ in levels]
    tree = np.concatenate([np.empty(0, np.int64), *(tree for tree, _ in parts)])
    if not len(tree):
        return np.empty(0, NODE), np.empty(0, np.float32), np.empty(0, ROOT)
    node = np.concatenate([node for _, node in parts])
    node = node[np.argsort(tree, kind="stable")]  # siblings stay side by side
    if len(node) + 1 >= 1 << 32:
        raise EngineRefusal("the engine takes 4,294,967,295 nodes, and these trees have more")
    position = np.zeros(len(nodes.left), np.int64)
    position[node] = np.arange(len(node))
    leaf = nodes.left[node] < 0
    out, values = np.zeros(len(node) + 1, NODE), np.zeros(len(node) + 1, np.float32)  # so that every node has a next
    out["rank"] = NEVER
    out["column"][:-1], out["rank"][:-1] = columns.column[node], columns.rank[node]
    out["next"][:-1] = np.where(leaf, np.arange(len(node)), position[nodes.left[node]])
    values[:-1] = np.where(leaf, nodes.value[node], 0)
    roots = np.zeros(int(linked.sum()), ROOT)
    roots["node"], roots["levels"] = position[nodes.root[linked]], depth[linked]
    return out, values, roots

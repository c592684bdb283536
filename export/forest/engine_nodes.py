"""Treelite's trees as flat arrays of nodes that all compare alike: left if a float32 value is below a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError

__all__ = ["EngineRefusal", "Nodes", "Tree", "bounds", "join", "read_trees"]

_LT, _LE, _GT, _GE = 2, 3, 4, 5  # Treelite's comparisons, "go left if value OP threshold"


class EngineRefusal(ArtifactError):
    """The engine's layout cannot take a forest that other engines may take."""


@dataclass(frozen=True)
class Tree:
    """One tree as Treelite holds it, and the slot its leaves are added to."""

    slot: int
    left: NDArray[Any]
    right: NDArray[Any]
    feature: NDArray[Any]
    nan_left: NDArray[Any]
    operator: NDArray[Any]
    threshold: NDArray[Any]
    value: NDArray[Any]


@dataclass(frozen=True)
class Nodes:
    """All nodes of all trees; `left` and `right` are positions in these arrays, -1 for leaves.

    A row goes left if its value is below `bound`, or if it is no NaN and `always`; NaN goes left if `nan_left`.
    """

    root: NDArray[np.int64]  # of each tree, ordered by slot
    slot: NDArray[np.int64]  # of each tree
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    feature: NDArray[np.int64]
    nan_left: NDArray[np.bool_]
    bound: NDArray[np.float32]
    always: NDArray[np.bool_]
    value: NDArray[np.float32]


def read_trees(model: Any, first: int) -> list[Tree]:
    """A model's trees, those of class k for the slot `first` + k; one for each class where leaves are vectors.

    Raises:
        EngineRefusal: the model has several targets or categorical splits.
    """
    header = model.get_header_accessor()
    trees: list[Tree] = []
    if int(header.get_field("num_target")[0]) != 1:
        raise EngineRefusal("the engine takes forests of one target each")
    width = int(header.get_field("num_class")[0])
    vector = int(header.get_field("leaf_vector_shape").prod()) > 1
    classes = np.asarray(header.get_field("class_id"))
    for number in range(model.num_tree):
        get = model.get_tree_accessor(number).get_field
        if get("has_categorical_split")[0]:
            raise EngineRefusal("the engine takes no categorical splits")
        left = get("cleft").astype(np.int64)
        tree = Tree(
            slot=first + max(int(classes[number]), 0),
            left=left,
            right=get("cright").astype(np.int64),
            feature=get("split_index").astype(np.int64),
            nan_left=get("default_left") != 0,
            operator=get("cmp"),
            threshold=get("threshold").astype(np.float64),
            value=get("leaf_value"),
        )
        if not vector or classes[number] >= 0:
            trees.append(tree)
            continue
        values, begin = get("leaf_vector"), get("leaf_vector_begin").astype(np.int64)
        for kind in range(width):
            value = np.zeros(len(left), values.dtype)
            value[left < 0] = values[begin[left < 0] + kind]
            trees.append(replace(tree, slot=first + kind, value=value))
    return trees


def join(trees: Sequence[Tree], features: int) -> Nodes:
    """All trees in one; of rows with `features` columns.

    Raises:
        EngineRefusal: a tree compares in a way, reads a column or ends in a leaf that the engine does not know.
    """
    ordered = sorted(trees, key=lambda tree: tree.slot)  # stable: sums keep the order of trees
    sizes = np.array([len(tree.left) for tree in ordered], np.int64)
    root = np.cumsum(sizes) - sizes
    shift = np.repeat(root, sizes)

    def whole(name: str, dtype: Any) -> NDArray[Any]:
        parts: list[NDArray[Any]] = [np.empty(0, dtype), *(getattr(tree, name) for tree in ordered)]
        joined: NDArray[Any] = np.concatenate(parts).astype(dtype)
        return joined

    left, right = whole("left", np.int64), whole("right", np.int64)
    inner = left >= 0
    feature, threshold, operator = (
        whole("feature", np.int64),
        whole("threshold", np.float64),
        whole("operator", np.int8),
    )
    if not np.isin(operator[inner], (_LT, _LE, _GT, _GE)).all():
        raise EngineRefusal("the engine compares with <, <=, > and >= only")
    if np.isnan(threshold[inner]).any():
        raise EngineRefusal("the engine takes no threshold that is NaN")
    if inner.any() and int(feature[inner].max()) >= features:
        raise EngineRefusal(f"a forest reads column {int(feature[inner].max())}, but rows have {features}")
    with np.errstate(over="ignore", invalid="ignore"):
        value = whole("value", np.float64).astype(np.float32)
    if not np.isfinite(value[~inner]).all():
        raise EngineRefusal("the engine takes no leaf beyond float32")
    left, right = np.where(inner, left + shift, -1), np.where(inner, right + shift, -1)
    nan_left = whole("nan_left", np.bool_)
    turned = np.isin(operator, (_GT, _GE))  # x > t goes left: what is not x <= t does
    left, right = np.where(turned, right, left), np.where(turned, left, right)
    bound, always = bounds(threshold, np.isin(operator, (_LE, _GT)))
    return Nodes(
        root=root,
        slot=np.array([tree.slot for tree in ordered], np.int64),
        left=left,
        right=right,
        feature=feature,
        nan_left=nan_left ^ turned,
        bound=bound,
        always=always,
        value=value,
    )


def bounds(threshold: NDArray[np.float64], equal: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Float32 bounds b so that for every float32 x, x < b means x < threshold, or x <= threshold where `equal`.

    No b says so where even infinity is to pass; those are returned as the second array.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        near = threshold.astype(np.float32)
        inf = np.float32(np.inf)
        above = np.where(near < threshold, np.nextafter(near, inf), near)  # the first float32 not below it
        below = np.where(near > threshold, np.nextafter(near, -inf), near)  # the last float32 not above it
        bound = np.where(equal, np.nextafter(below, inf), above)
    return bound + np.float32(0), equal & (below == inf)  # adding 0 makes one zero of two

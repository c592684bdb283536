"""Treelite's trees as the flat lists that ONNX's TreeEnsembleRegressor takes.

A forest of float64 thresholds and leaves (LightGBM's, CatBoost's, scikit-learn's) stays one: rounded thresholds would
send rows the other way, and sums in float32 would be off by more than 1e-6. A float32 one (XGBoost's) stays float32.

A categorical split becomes comparisons. The categories of one side are intervals of numbers, whose ends a small binary
tree of ordinary nodes searches. Several of its ends lead to the same subtree: ONNX Runtime takes that for a node's true
branch (it reads onnxmltools' conversion of LightGBM so), but wants every false branch to itself, so a false branch gets
a node of its own whose test always holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from tristage.export.forest.model import Forest

__all__ = ["LARGEST_CATEGORY", "edges", "join_attributes", "tree_attributes"]

LARGEST_CATEGORY = 2**24 - 1  # float32 tells whole numbers apart up to here

# Treelite's comparison operators, "go left if value OP threshold"
_LT, _LE, _GT, _GE = 2, 3, 4, 5
_MODES = {0: "LEAF", _LT: "BRANCH_LT", _LE: "BRANCH_LEQ", _GT: "BRANCH_GT", _GE: "BRANCH_GTE"}
_TINY = float(np.finfo(np.float32).tiny)  # a processor that flushes denormal numbers takes smaller ones for 0
_UP, _DOWN = np.float32(np.inf), np.float32(-np.inf)
_FIELDS = ("feature", "value", "mode", "true", "false", "missing")  # of a node; a leaf's mode is 0


def tree_attributes(forest: Forest) -> dict[str, Any]:
    """The attributes of a TreeEnsembleRegressor: one entry a node, one weight for each leaf and output.

    Its input must have the dtype `forest.model.input_type`.
    """
    model = forest.model
    header = model.get_header_accessor()
    sizes = np.asarray(header.get_field("num_class"))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    targets, classes = (np.asarray(header.get_field(name)) for name in ("target_id", "class_id"))
    vectors = int(np.prod(header.get_field("leaf_vector_shape"))) > 1
    share = _shares(header, targets, classes, starts)
    nodes: dict[str, list[Any]] = {name: [] for name in ("tree", "node", *_FIELDS)}
    leaves: dict[str, list[Any]] = {name: [] for name in ("tree", "node", "target", "weight")}
    for number in range(model.num_tree):
        accessor = model.get_tree_accessor(number)
        tree, spare = _tree(accessor, forest)
        count = len(tree["mode"])
        nodes["tree"].append(np.full(count, number))
        nodes["node"].append(np.arange(count))
        for name in _FIELDS:
            nodes[name].append(tree[name])
        at = np.flatnonzero(np.asarray(accessor.get_field("cleft")) < 0)
        if vectors:
            columns = np.arange(starts[-1])
            begin = np.asarray(accessor.get_field("leaf_vector_begin"))[at].astype(np.int64)
            weights = np.asarray(accessor.get_field("leaf_vector"))[begin[:, None] + columns]
        else:
            columns = np.array([starts[targets[number]] + classes[number]])
            weights = np.asarray(accessor.get_field("leaf_value"))[at][:, None]
        leaves["node"] += [np.repeat(at, len(columns)), spare]
        leaves["target"] += [np.tile(columns, len(at)), np.zeros(len(spare), np.int64)]
        leaves["weight"] += [(weights * share[columns]).ravel(), np.zeros(len(spare))]
        leaves["tree"].append(np.full(len(at) * len(columns) + len(spare), number))
    flat = {name: np.concatenate(parts) for name, parts in nodes.items()}
    ends = {name: np.concatenate(parts) for name, parts in leaves.items()}
    attributes = {
        "nodes_treeids": flat["tree"].tolist(),
        "nodes_nodeids": flat["node"].tolist(),
        "nodes_featureids": flat["feature"].tolist(),
        "nodes_modes": [_MODES[mode] for mode in flat["mode"].tolist()],
        "nodes_truenodeids": flat["true"].tolist(),
        "nodes_falsenodeids": flat["false"].tolist(),
        "nodes_missing_value_tracks_true": flat["missing"].tolist(),
        "target_treeids": ends["tree"].tolist(),
        "target_nodeids": ends["node"].astype(np.int64).tolist(),
        "target_ids": ends["target"].tolist(),
    }
    for name, values in (
        ("nodes_values", flat["value"]),
        ("target_weights", ends["weight"]),
        ("base_values", np.asarray(header.get_field("base_scores")).ravel()),
    ):
        if model.input_type == "float64":
            attributes[f"{name}_as_tensor"] = numpy_helper.from_array(values.astype(np.float64), name)
        else:
            attributes[name] = values.astype(np.float32).tolist()
    return attributes


def join_attributes(parts: Sequence[dict[str, Any]], widths: Sequence[int]) -> dict[str, Any]:
    """The attributes of several forests as one's, whose outputs lie side by side.

    Args:
        parts: what `tree_attributes` says of each; all of one dtype.
        widths: outputs of each.
    """
    trees = np.cumsum([0, *(max(part["nodes_treeids"]) + 1 for part in parts)]).tolist()
    outputs = np.cumsum([0, *widths]).tolist()
    joined: dict[str, Any] = {}
    for name in parts[0]:
        if name.endswith("_as_tensor"):
            values = np.concatenate([numpy_helper.to_array(part[name]) for part in parts])
            joined[name] = numpy_helper.from_array(values, name.removesuffix("_as_tensor"))
            continue
        shifts = trees if name.endswith("treeids") else outputs if name == "target_ids" else None
        joined[name] = [
            value if shifts is None else value + shifts[number]
            for number, part in enumerate(parts)
            for value in part[name]
        ]
    return joined


def _shares(header: Any, targets: NDArray[Any], classes: NDArray[Any], starts: NDArray[Any]) -> NDArray[np.float64]:
    """What a tree's answer counts for in each output: 1, or one over that output's trees where they are averaged."""
    share = np.ones(starts[-1])
    if header.get_field("average_tree_output")[0]:
        for target in range(len(starts) - 1):
            for column in range(starts[target], starts[target + 1]):
                mine = np.isin(targets, (-1, target)) & np.isin(classes, (-1, column - starts[target]))
                share[column] = 1 / mine.sum()
    return share


def _tree(accessor: Any, forest: Forest) -> tuple[dict[str, Any], list[int]]:
    """A tree's nodes, field by field, and those of its leaves that no row reaches."""
    left = np.asarray(accessor.get_field("cleft"))
    inner = left >= 0
    fields = {
        "feature": np.where(inner, accessor.get_field("split_index"), 0),
        "value": np.where(inner, accessor.get_field("threshold"), 0),
        "mode": np.where(inner, accessor.get_field("cmp"), 0),
        "true": np.where(inner, left, 0),
        "false": np.where(inner, accessor.get_field("cright"), 0),
        "missing": np.where(inner, accessor.get_field("default_left"), 0),
    }
    if not accessor.get_field("has_categorical_split")[0]:
        return fields, []
    # one comparison in all nodes is what ONNX Runtime is fastest with: XGBoost's, or that of all others
    mode = _LT if forest.model.input_type == "float32" else _LE
    search = _Search({name: values.tolist() for name, values in fields.items()}, forest.categories, mode)
    lists = accessor.get_field("category_list")
    begins, ends = accessor.get_field("category_list_begin"), accessor.get_field("category_list_end")
    on_right = accessor.get_field("category_list_right_child")
    for node in np.flatnonzero(np.asarray(accessor.get_field("node_type")) == 2):
        categories = np.unique(lists[int(begins[node]) : int(ends[node])]).astype(np.int64)
        search.replace(int(node), categories, bool(on_right[node]))
    return search.nodes, search.spare


def edges(categories: NDArray[np.int64], rule: str, mode: int) -> NDArray[np.float32]:
    """Thresholds between numbers that are no such category and numbers that are, by turns, ascending.

    Args:
        categories: distinct whole numbers, ascending, at most LARGEST_CATEGORY.
        rule: `Forest.categories`.
        mode: the comparison that the thresholds are for, 2 for `x < t`, 3 for `x <= t`.
    """
    values = categories.astype(np.float32)
    if rule == "exact":
        # [c, next after c): the last number before c, and c itself
        before = np.where(values == 0, -_TINY, np.nextafter(values, _DOWN))
        after = np.where(values == 0, _TINY, np.nextafter(values, _UP))
        low, high = (values, after) if mode == _LT else (before, values)
        return np.asarray(np.stack([low, high], axis=1), np.float32).ravel()
    first = categories[np.diff(categories, prepend=-2) > 1].astype(np.float32)
    end = categories[np.diff(categories, append=2**32) > 1].astype(np.float32) + 1
    low = first if mode == _LT else np.where(first == 0, -_TINY, np.nextafter(first, _DOWN))
    if rule == "trunc":  # what lies between -1 and 0 is 0 as well
        low = np.where(first == 0, np.nextafter(np.float32(-1), _UP) if mode == _LT else np.float32(-1), low)
    high = end if mode == _LT else np.nextafter(end, _DOWN)
    return np.asarray(np.stack([low, high], axis=1), np.float32).ravel()


class _Search:
    """Replaces categorical nodes of one tree by searches for the interval that a value lies in.

    Attributes:
        nodes: the tree's nodes, field by field; it grows.
        spare: leaves that were added and that no row reaches.
    """

    def __init__(self, nodes: dict[str, list[Any]], rule: str, mode: int) -> None:
        self.nodes, self._rule, self._mode = nodes, rule, mode
        self.spare: list[int] = []

    def replace(self, node: int, categories: NDArray[np.int64], on_right: bool) -> None:
        """Make a categorical node the root of a search; `on_right`: its categories go to the false child."""
        nodes = self.nodes
        children = (nodes["true"][node], nodes["false"][node])
        other, chosen = children if on_right else children[::-1]
        missing_to_chosen = bool(nodes["missing"][node]) != on_right
        ends = edges(categories, self._rule, self._mode)
        if len(ends):
            self._place(node, 0, len(ends), ends, (other, chosen), 1 if missing_to_chosen else len(ends))
        else:  # no category: only a missing value can go to `chosen`
            self._set(node, nodes["feature"][node], float("nan"), self._mode, chosen, other, int(missing_to_chosen))

    def _place(
        self, at: int, low: int, high: int, ends: NDArray[np.float32], children: tuple[int, int], home: int
    ) -> None:
        """Make `at` the root of a search through the intervals low to high, which count from 0.

        Those with an odd number are children[1]'s, and a missing value goes to interval `home`. The last interval is
        children[0]'s: false branches alone lead there, so it needs no node between, and infinity never meets one.
        """
        feature = self.nodes["feature"][at]
        middle = (low + high) // 2
        true = children[low % 2] if low == middle else self._new()
        false = children[0] if middle + 1 == high == len(ends) else self._new()
        self._set(at, feature, float(ends[middle]), self._mode, true, false, int(home <= middle))
        if low < middle:
            self.nodes["feature"][true] = feature
            self._place(true, low, middle, ends, children, home)
        if middle + 1 < high:
            self.nodes["feature"][false] = feature
            self._place(false, middle + 1, high, ends, children, home)
        elif high < len(ends):
            spare = self._new()
            self.spare.append(spare)
            self._set(false, feature, float("inf"), self._mode, children[high % 2], spare, 1)

    def _new(self) -> int:
        for name in _FIELDS:
            self.nodes[name].append(0)
        return len(self.nodes["mode"]) - 1

    def _set(self, node: int, *values: Any) -> None:
        for name, value in zip(_FIELDS, values, strict=True):
            self.nodes[name][node] = value

"""A step's forests as one Treelite checkpoint that Triton's FIL backend answers right, on the CPU and on the GPU.

FIL of Triton 24.10 has three engines that read the same file (legacy FIL on the GPU, its "experimental optimizations"
and Treelite's own on the CPU) and differ in what they take for granted. What is written here suits all of them:

- one target; a column for each forest of a bag, target and class. Several targets end the server.
- tree i adds to column i modulo the columns, as many trees in each: the GPU and the fast CPU engine count so.
- one column, or three and more: the GPU refuses two. One is asked for as a probability, which FIL answers beside its
  complement: alone it would come without its dimension, or with one that is declared end the server.
- base scores of zero, folded into each column's first tree: unequal ones end the server.
- no averaging: leaves are divided instead.
- `x < threshold` and nothing else, in float32: mixed comparisons are mixed up silently, float64 is rounded.
- identity or sigmoid, and a task that is not called multi-class: of one, FIL makes a softmax to get probabilities.

Groups have their trees in the same columns, below two comparisons of one more feature, the group's number: a row meets
its own group's trees, and two nodes at most of the others'.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.forest.engine_nodes import bounds
from tristage.export.forest.model import Forest, ForestSet, postprocessor_of

__all__ = ["Merged", "merge", "write_checkpoint"]

_NUMERICAL, _CATEGORICAL = 1, 2  # Treelite's kinds of node; a leaf is 0
_LT, _LE, _GT, _GE = 2, 3, 4, 5  # its comparisons, "go left if value OP threshold"
_REGRESSOR = 1  # its task that no engine treats in a way of its own
_LIST = ("category_list", "category_list_begin", "category_list_end")


@dataclass(frozen=True)
class Merged:
    """Merged forests.

    Attributes:
        model: the treelite.Model.
        columns: how many columns of its answer mean something; those after them are padding.
        first: where they begin: of one alone FIL answers the complement before it.
        width: all columns of FIL's answer.
        features: columns of a row, the group's number last where there are groups.
        probabilities: whether it answers sigmoids of margins; else margins.
    """

    model: Any
    columns: int
    first: int
    width: int
    features: int
    probabilities: bool


@dataclass(frozen=True)
class _Tree:
    """A tree as the checkpoint holds it: nodes with their children, leaves with -1 for both."""

    left: NDArray[np.int32]
    right: NDArray[np.int32]
    kind: NDArray[np.int8]
    feature: NDArray[np.int32]
    nan_left: NDArray[np.uint8]
    bound: NDArray[np.float32]
    leaf: NDArray[np.float32]
    on_right: NDArray[np.uint8]
    lists: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def write_checkpoint(forests: ForestSet, folder: Path) -> tuple[str, Merged]:
    """Merge a step's forests into a checkpoint in a folder; returns its file's name, which tells its content.

    Raises:
        ArtifactError: as `merge`.
    """
    merged = merge(forests)
    content = bytes(merged.model.serialize_bytes())
    name = f"forest-{hashlib.sha256(content).hexdigest()[:16]}.tl"
    (folder / name).write_bytes(content)
    return name, merged


def merge(forests: ForestSet) -> Merged:
    """Merge a step's forests into one model.

    Its columns are, for each forest of a bag in turn, the targets' classes side by side: column
    (bag * targets + target) * classes + class.

    Raises:
        ArtifactError: groups have bags of unequal sizes, or a forest has what FIL has not.
    """
    bags = {len(bag) for bag in forests.forests.values()}
    if len(bags) > 1:
        raise ArtifactError(
            f"bags of {' and '.join(map(str, sorted(bags)))} forests in one step do not fit into one checkpoint of "
            "FIL; train bags of one size, or export for pip-cpu"
        )
    first = forests.all()[0]
    classes, targets = first.margin_columns, len(forests.targets)
    if any(forest.margin_columns != classes for forest in forests.all()):
        raise ArtifactError("forests of unequal numbers of classes do not fit into one checkpoint of FIL")
    groups = None if forests.groups == (None,) else len(forests.groups)
    columns = bags.pop() * targets * classes
    width = columns if columns == 1 else max(columns, 3)
    trees: dict[int, list[_Tree]] = defaultdict(list)
    for number, group in enumerate(forests.groups):
        for at, target in enumerate(forests.targets):
            for bag, forest in enumerate(forests.forests[group, target]):
                for column, of_column in enumerate(_columns(forest, classes)):
                    added = trees[(bag * targets + at) * classes + column]
                    added += (
                        of_column
                        if groups is None
                        else [_only_in_group(tree, number, first.features) for tree in of_column]
                    )
    most = max(map(len, trees.values()))
    padded = [trees[column] + [_leaf(0.0)] * (most - len(trees[column])) for column in range(width)]
    ways = {postprocessor_of(forest) for forest in forests.all()}
    averaged = forests.average == "predictions" or forests.all() == [first]
    probabilities = ways <= {("sigmoid", 1.0, 1.0), ("multiclass_ova", 1.0, 1.0)} and averaged and not forests.margins
    features = first.features + (groups is not None)
    ordered = [padded[column][tree] for tree in range(most) for column in range(width)]
    alone = width == 1
    return Merged(
        _model(ordered, width, features, probabilities), columns, int(alone), width + alone, features, probabilities
    )


def _columns(forest: Forest, classes: int) -> list[list[_Tree]]:
    """A forest's trees for each column of its margins, which their leaves add up to."""
    header = forest.model.get_header_accessor()
    several_targets = int(header.get_field("num_target")[0]) > 1
    ids = np.asarray(header.get_field("target_id" if several_targets else "class_id"))
    columns: list[list[_Tree]] = [[] for _ in range(classes)]
    for number in range(forest.model.num_tree):
        for column, tree in _trees(forest.model.get_tree_accessor(number), int(ids[number]), classes, forest):
            columns[column].append(tree)
    bases = np.broadcast_to(np.asarray(header.get_field("base_scores"), np.float64).reshape(-1), (classes,))
    mean = bool(header.get_field("average_tree_output")[0])
    made = []
    for trees, base in zip(columns, bases, strict=True):
        share = 1 / max(len(trees), 1) if mean else 1.0
        leaves = [tree.leaf.astype(np.float64) * share for tree in trees]
        whole = trees or [_leaf(0.0)]
        leaves = leaves or [np.zeros(1)]
        leaves[0] = np.where(whole[0].left < 0, leaves[0] + base, 0)
        made.append([replace(t, leaf=v.astype(np.float32)) for t, v in zip(whole, leaves, strict=True)])
    return made


def _trees(accessor: Any, column: int, classes: int, forest: Forest) -> Iterator[tuple[int, _Tree]]:
    """A Treelite tree, once for each column that its leaves add to."""
    get = accessor.get_field
    left, right = get("cleft").astype(np.int32), get("cright").astype(np.int32)
    inner, operator = left >= 0, get("cmp")
    categorical = get("node_type") == _CATEGORICAL
    threshold = np.where(inner & ~categorical, get("threshold"), 0).astype(np.float64)
    if np.isnan(threshold).any() or not np.isin(operator[inner & ~categorical], (_LT, _LE, _GT, _GE)).all():
        raise ArtifactError("a forest of it compares in a way that FIL does not know")
    bound, always = bounds(threshold, np.isin(operator, (_LE, _GT)))
    always &= inner & ~categorical
    turned = (np.isin(operator, (_GT, _GE)) & inner & ~categorical) ^ always
    nan_left = (get("default_left") != 0) ^ turned
    tree = _Tree(
        left=np.where(turned, right, left),
        right=np.where(turned, left, right),
        kind=np.where(inner, np.where(categorical, _CATEGORICAL, _NUMERICAL), 0).astype(np.int8),
        feature=np.where(inner, get("split_index"), -1).astype(np.int32),
        nan_left=(inner & nan_left).astype(np.uint8),
        # whatever is below a bound of infinity but infinity itself: what always goes left goes right of -infinity
        bound=np.where(always, -np.inf, np.where(inner & ~categorical, bound, 0)).astype(np.float32),
        leaf=np.zeros(0, np.float32),
        on_right=get("category_list_right_child").astype(np.uint8).copy(),
        lists=(get(_LIST[0]).copy(), get(_LIST[1]).copy(), get(_LIST[2]).copy()),
    )
    if len(get("leaf_vector")) == 0:
        values = [(max(column, 0), np.where(inner, 0, get("leaf_value")))]
    else:
        vector, begin = get("leaf_vector"), np.where(inner, 0, get("leaf_vector_begin")).astype(np.int64)
        wanted = range(classes) if column < 0 else [column]
        values = [(k, np.where(inner, 0, vector[begin + (k if column < 0 else 0)])) for k in wanted]
    for number, value in values:
        with np.errstate(over="ignore"):
            rounded = value.astype(np.float32)
        if not np.isfinite(rounded).all():
            raise ArtifactError("a forest of it has a leaf beyond float32, which FIL computes in")
        yield number, replace(tree, leaf=value)


def _leaf(value: float) -> _Tree:
    none = np.array([-1], np.int32)
    zero = np.zeros(1, np.uint8)
    empty = (np.zeros(0, np.uint32), np.zeros(1, np.uint64), np.zeros(1, np.uint64))
    return _Tree(
        none,
        none,
        zero.astype(np.int8),
        none,
        zero,
        np.zeros(1, np.float32),
        np.full(1, value, np.float32),
        zero,
        empty,
    )


def _only_in_group(tree: _Tree, group: int, feature: int) -> _Tree:
    """A tree that adds 0 to rows of other groups; `feature` holds a row's group.

    Node 0: below group + 0.5? Else leaf 1. Node 2: below group - 0.5? Then leaf 3, else the tree, from 4 on.
    """
    begins, ends = (np.concatenate([np.zeros(4, np.uint64), array]) for array in tree.lists[1:])

    def shifted(children: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.where(children >= 0, children + 4, -1).astype(np.int32)

    def before(head: Sequence[float], array: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.array(head, array.dtype), array])

    return _Tree(
        left=before([2, -1, 3, -1], shifted(tree.left)),
        right=before([1, -1, 4, -1], shifted(tree.right)),
        kind=before([_NUMERICAL, 0, _NUMERICAL, 0], tree.kind),
        feature=before([feature, -1, feature, -1], tree.feature),
        nan_left=before([0, 0, 0, 0], tree.nan_left),
        bound=before([group + 0.5, 0, group - 0.5, 0], tree.bound),
        leaf=before([0, 0, 0, 0], tree.leaf),
        on_right=before([0, 0, 0, 0], tree.on_right),
        lists=(tree.lists[0], begins, ends),
    )


def _model(trees: Sequence[_Tree], width: int, features: int, probabilities: bool) -> Any:
    """A treelite.Model of trees that add to the columns in turn."""
    from treelite.model_builder import Metadata, ModelBuilder, PostProcessorFunc, TreeAnnotation

    one = width == 1
    name = ("sigmoid" if one else "multiclass_ova") if probabilities else ("identity" if one else "identity_multiclass")
    builder = ModelBuilder(
        threshold_type="float32",
        leaf_output_type="float32",
        metadata=Metadata(
            num_feature=features,
            task_type="kRegressor" if one else "kMultiClf",
            average_tree_output=False,
            num_target=1,
            num_class=[width],
            leaf_vector_shape=(1, 1),
        ),
        tree_annotation=TreeAnnotation(
            num_tree=len(trees), target_id=[0] * len(trees), class_id=[tree % width for tree in range(len(trees))]
        ),
        postprocessor=PostProcessorFunc(name),
        base_scores=[0.0] * width,
    )
    for _ in trees:  # the builder takes node after node: one leaf each, whose place whole arrays take below
        builder.start_tree()
        builder.start_node(0)
        builder.leaf(0.0)
        builder.end_node()
        builder.end_tree()
    model = builder.commit()
    model.get_header_accessor().set_field("task_type", np.array([_REGRESSOR], np.uint8))
    for number, tree in enumerate(trees):
        _fill(model.get_tree_accessor(number), tree)
    return model


def _fill(accessor: Any, tree: _Tree) -> None:
    count = len(tree.left)
    categories, begins, ends = tree.lists
    for name, value in {
        "num_nodes": np.array([count], np.int32),
        "has_categorical_split": np.array([(tree.kind == _CATEGORICAL).any()], np.uint8),
        "node_type": tree.kind,
        "cleft": tree.left,
        "cright": tree.right,
        "split_index": tree.feature,
        "default_left": tree.nan_left,
        "leaf_value": tree.leaf,
        "threshold": tree.bound,
        "cmp": np.where(tree.kind == _NUMERICAL, _LT, 0).astype(np.int8),
        "category_list_right_child": tree.on_right,
        "leaf_vector_begin": np.zeros(count, np.uint64),
        "leaf_vector_end": np.zeros(count, np.uint64),
        "category_list": categories.astype(np.uint32),
        "category_list_begin": begins.astype(np.uint64),
        "category_list_end": ends.astype(np.uint64),
    }.items():
        accessor.set_field(name, np.ascontiguousarray(value))

"""Forests in oneDAL, through daal4py: built from flat arrays of nodes when they are opened.

`forest-HASH.npz` holds the nodes of all trees: `left` and `right` (positions, -1 for leaves), `feature`, `threshold`
(left if the value is not above it), `nan_left`, `value`; of every tree its `root`, ordered by sum; of every sum how
many `trees` it has, its `base`, the `scale` of what its trees add up to, and whether oneDAL adds in `double`. A forest
has a sum for each of its margins; the recipe of the same name beside the file says how the margins become answers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import daal4py
import numpy as np
from numpy.typing import NDArray

from tristage.serving.forest.engine import ForestError
from tristage.serving.forest.members import MemberForests
from tristage.serving.forest.recipe import Recipe

__all__ = ["open_onedal"]

Ask = Callable[[NDArray[Any]], NDArray[Any]]


def open_onedal(path: Path, threads: int = 1) -> MemberForests:
    """Open what `tristage.export.forest.to_onedal` wrote.

    Raises:
        ForestError: a file is missing or damaged.
    """
    recipe = Recipe.read(path.with_suffix(".json"))
    daal4py.daalinit(threads)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        sums = _sums(arrays, recipe.features)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise ForestError(f"{path} cannot be read: {error!r}; tune the repository again") from error
    asks, first = [], 0
    for member in recipe.members():
        asks.append(_member(sums[first : first + member.columns]))
        first += member.columns
    return MemberForests(recipe, asks)


def _member(sums: Sequence[Ask]) -> Ask:
    return lambda rows: np.stack([each(rows) for each in sums], axis=1)


def _sums(arrays: dict[str, NDArray[Any]], features: int) -> list[Ask]:
    nodes = {
        name: arrays[name].tolist() for name in ("left", "right", "feature", "threshold", "nan_left", "value", "root")
    }
    sums: list[Ask] = []
    first = 0
    for trees, base, scale, double in zip(
        *(arrays[name].tolist() for name in ("trees", "base", "scale", "double")), strict=True
    ):
        roots = nodes["root"][first : first + trees]
        first += trees
        sums.append(_ask(_build(nodes, roots, features) if roots else None, base, scale, double))
    return sums


def _build(nodes: dict[str, list[Any]], roots: Sequence[int], features: int) -> Any:
    builder = daal4py.gbt_reg_model_builder(n_features=features, n_iterations=len(roots))
    left, right = nodes["left"], nodes["right"]
    for root in roots:
        count, reached = 0, [root]
        while reached:
            node = reached.pop()
            count += 1
            if left[node] >= 0:
                reached += (left[node], right[node])
        tree = builder.create_tree(count)
        waiting: list[tuple[int, dict[str, int]]] = [(root, {})]
        while waiting:
            node, place = waiting.pop()
            if left[node] < 0:
                builder.add_leaf(tree_id=tree, response=nodes["value"][node], cover=0.0, **place)
                continue
            at = builder.add_split(
                tree_id=tree,
                feature_index=nodes["feature"][node],
                feature_value=nodes["threshold"][node],
                default_left=nodes["nan_left"][node],
                cover=0.0,
                **place,
            )
            waiting.append((right[node], {"parent_id": at, "position": 1}))
            waiting.append((left[node], {"parent_id": at, "position": 0}))
    return builder.model(base_score=0.0)


def _ask(model: Any, base: float, scale: float, double: bool) -> Ask:
    kind = "double" if double else "float"

    def ask(rows: NDArray[Any]) -> NDArray[Any]:
        if model is None:
            return np.full(len(rows), base)
        try:
            total = daal4py.gbt_regression_prediction(fptype=kind).compute(rows, model).prediction[:, 0]
        except RuntimeError as error:
            raise ForestError(f"oneDAL refuses the rows: {error}") from error
        return np.asarray(total * scale + base)

    return ask

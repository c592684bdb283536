"""Trees, as a repository's recipes and checkpoints hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import RepositoryError
from tristage.export.size.work import Work, total
from tristage.serving.forest import ForestError
from tristage.serving.forest.recipe import Recipe

__all__ = ["checkpoint_work", "recipe_work"]


def recipe_work(path: Path) -> Work:
    """The trees that a recipe names: a row meets those of its group, of every target and bag.

    Raises:
        RepositoryError: the recipe, or a file that it names, cannot be read.
    """
    try:
        recipe = Recipe.read(path)
    except ForestError as error:
        raise RepositoryError(str(error)) from error
    counted = {file: _work(_model(path.parent / file)) for file in recipe.files()}
    groups = [total([counted[member.file] for bag in bags for member in bag]) for bags in recipe.bags]
    most = max(groups, key=lambda work: work.trees)
    return Work(
        trees_met=most.trees,
        trees=sum(group.trees for group in groups),
        node_visits=most.node_visits,
        estimated=most.estimated,
    )


def checkpoint_work(path: Path) -> Work:
    """The trees of a checkpoint of FIL: a row meets them all, those of other groups for a node or two."""
    return _work(_model(path))


def _model(path: Path) -> Any:
    import treelite

    try:
        if path.suffix == ".ubj":
            return treelite.frontend.load_xgboost_model(path, format_choice="ubjson", allow_unknown_field=True)
        return treelite.Model.deserialize(path)
    except (treelite.TreeliteError, OSError) as error:
        raise RepositoryError(
            f"{path} cannot be read by Treelite {treelite.__version__} ({error}); export the stack again"
        ) from error


def _work(model: Any) -> Work:
    visits, estimated = 0.0, True
    for number in range(model.num_tree):
        get = model.get_tree_accessor(number).get_field
        left, right = get("cleft").astype(np.int64), get("cright").astype(np.int64)
        depth = _depths(left, right)
        leaves = left < 0
        weight = next((found for found in (get("sum_hess"), get("data_count")) if len(found) == len(left)), None)
        if weight is None or not weight[leaves].sum() > 0:
            visits, estimated = visits + float(depth.max(initial=0)), False
        else:
            visits += float(np.average(depth[leaves], weights=weight[leaves].astype(np.float64)))
    return Work(trees_met=model.num_tree, trees=model.num_tree, node_visits=visits, estimated=estimated)


def _depths(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many comparisons lead to each node, [nodes]."""
    depth = np.zeros(len(left), np.int64)
    level, at = 0, np.zeros(min(len(left), 1), np.int64)
    while len(at):
        depth[at] = level
        inner = at[left[at] >= 0]
        at, level = np.concatenate([left[inner], right[inner]]), level + 1
    return depth

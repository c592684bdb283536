"""Treelite forests as flat arrays of nodes that oneDAL is built from; see `tristage.serving.forest.onedal`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.export.forest.engine_nodes import EngineRefusal, Nodes, Tree, join, read_trees
from tristage.export.forest.model import ForestSet
from tristage.export.forest.to_engine import slots_of
from tristage.serving.forest.packed import SLOT

__all__ = ["onedal_arrays"]

_LARGEST = 1 << 24  # nodes, of some twenty bytes; oneDAL lays every tree out complete, down to its deepest leaf


def onedal_arrays(forests: ForestSet) -> dict[str, NDArray[Any]]:
    """The arrays of `forest-HASH.npz`.

    Raises:
        EngineRefusal: oneDAL cannot take one of the forests.
    """
    trees: list[Tree] = []
    slots: list[tuple[Any, ...]] = []
    try:
        for forest in forests.all():
            own = read_trees(forest.model, len(slots))
            slots += slots_of(forest.model, [tree.slot - len(slots) for tree in own])
            trees += own
        nodes = join(trees, forests.all()[0].features)
    except EngineRefusal as error:
        raise EngineRefusal(str(error).replace("the engine", "oneDAL")) from None
    sums = np.array(slots, SLOT)
    inner = nodes.left >= 0
    if (nodes.bound[inner & ~nodes.always] == -np.inf).any():
        raise EngineRefusal("oneDAL cannot tell -inf from what lies below a threshold of -inf")
    complete = int((2.0 ** (_depths(nodes) + 1)).sum())
    if complete > _LARGEST:
        raise EngineRefusal(
            f"oneDAL lays trees out complete, down to their deepest leaf, and these would take {complete:.0e} nodes"
        )
    # left if not above the last float32 below the bound
    threshold = np.where(nodes.always, np.float32(np.inf), np.nextafter(nodes.bound, np.float32(-np.inf)))
    return {
        "left": nodes.left,
        "right": nodes.right,
        "feature": nodes.feature,
        "threshold": np.where(inner, threshold, np.float32(0)),
        "nan_left": nodes.nan_left.astype(np.uint8),
        "value": nodes.value,
        "root": nodes.root,
        "trees": np.bincount(nodes.slot, minlength=len(sums)),
        "base": sums["start"] * sums["scale"] + sums["offset"],
        "scale": sums["scale"],
        "double": sums["single"] == 0,
    }


def _depths(nodes: Nodes) -> NDArray[np.float64]:
    """Levels below each tree's root."""
    depths = np.zeros(len(nodes.root))
    tree, level, below = np.arange(len(nodes.root)), nodes.root, 0
    while len(level):
        depths[tree] = below
        inner = nodes.left[level] >= 0
        tree, level = np.tile(tree[inner], 2), np.concatenate([nodes.left[level[inner]], nodes.right[level[inner]]])
        below += 1
    return depths

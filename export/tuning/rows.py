"""Rows that a forest's trees have the hardest time with: on their thresholds, beside them, missing, infinite."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tristage.export.forest import ForestSet
from tristage.export.forest.trees import LARGEST_CATEGORY

__all__ = ["draw"]

_ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38, 1e-45, -1e-45], np.float32)
_MOST = 4096  # values of a feature that are drawn from
_CATEGORICAL = 2  # Treelite's node type


def draw(forests: ForestSet, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Rows drawn around the forests' own thresholds and categories, the same every time.

    Returns:
        [count, features], and where groups have forests of their own the rows' groups [count], some of none (-1).
    """
    random = np.random.default_rng(0)
    numbers, categories = _values(forests)
    rows = random.normal(size=(count, forests.all()[0].features)).astype(np.float32)
    for feature in range(rows.shape[1]):
        if feature in categories:
            known = np.unique(categories[feature])
            unseen = [min(float(known.max(initial=0)) + 1, LARGEST_CATEGORY), np.nan]
            rows[:, feature] = random.choice(np.append(known, unseen).astype(np.float32), count)
        elif feature in numbers:
            exact = np.unique(numbers[feature])
            near = random.choice(exact, min(len(exact), _MOST), replace=False)
            sides = [np.nextafter(near, np.float32(np.inf)), near, np.nextafter(near, np.float32(-np.inf))]
            rows[:, feature] = random.choice(np.concatenate(sides), count)
    odd = random.random(rows.shape) < 0.15
    odd[:, sorted(categories)] = False
    rows[odd] = random.choice(_ODD, int(odd.sum()))
    groups = None if forests.groups == (None,) else random.integers(-1, len(forests.groups), count)
    return rows, groups


def _values(forests: ForestSet) -> tuple[dict[int, NDArray[np.float32]], dict[int, NDArray[np.float32]]]:
    """Thresholds and categories that the trees name, by feature."""
    pieces: tuple[dict[int, list[NDArray[np.float32]]], ...] = ({}, {})
    for forest in forests.all():
        for number in range(forest.model.num_tree):
            get = forest.model.get_tree_accessor(number).get_field
            features, inner = get("split_index"), get("cleft") >= 0
            by_category = get("node_type") == _CATEGORICAL
            with np.errstate(over="ignore"):
                thresholds = get("threshold").astype(np.float32)
            for feature in np.unique(features[inner & ~by_category]).tolist():
                mine = inner & ~by_category & (features == feature)
                pieces[0].setdefault(feature, []).append(np.unique(thresholds[mine]))
            for node in np.flatnonzero(inner & by_category).tolist():
                begin, end = int(get("category_list_begin")[node]), int(get("category_list_end")[node])
                named = get("category_list")[begin:end].astype(np.float32)
                pieces[1].setdefault(int(features[node]), []).append(named)
    numbers, categories = ({feature: np.concatenate(each) for feature, each in kind.items()} for kind in pieces)
    return numbers, categories

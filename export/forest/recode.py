"""Categories as a library means them: the lists in Treelite's categorical splits, rewritten.

A forest trained on a DataFrame's categories names codes, which are places in the list of categories. XGBoost (from 3.1)
and LightGBM keep that list with the model, and look a DataFrame's values up in it: here the trees are made to name the
values, so that a column of values is what they read. scikit-learn sends a category that training never saw where it
sends a missing value: here the side it is sent to is made the one that names no categories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.errors import ArtifactError
from tristage.export.forest.trees import LARGEST_CATEGORY

__all__ = ["check_values", "recode", "send_unknown_with_missing"]

_CATEGORICAL = 2  # Treelite's node type


def check_values(values: Mapping[int, Sequence[Any]], names: Sequence[str], what: str) -> None:
    """Check that categories are whole numbers that a float32 column can hold.

    Args:
        values: feature -> its categories' values, in the order of their codes.
        names: the features' names.
        what: what the model is called in messages.

    Raises:
        ArtifactError: a category is text, a fraction, negative or too large; the message names the feature.
    """
    for feature, categories in values.items():
        for category in categories:
            whole = isinstance(category, (int, float)) and not isinstance(category, bool) and category == int(category)
            if not whole or not 0 <= category <= LARGEST_CATEGORY:
                raise ArtifactError(
                    f"{what}: feature {names[feature]} has the category {category!r}; a forest reads numbers, and "
                    f"categories from 0 to {LARGEST_CATEGORY}: number them (nvtabular's Categorify does) and train on "
                    "the numbers"
                )


def recode(model: Any, values: Mapping[int, Sequence[Any]]) -> None:
    """Replace the codes in a treelite.Model's categorical splits by the categories' values, in place.

    Args:
        model: the treelite.Model.
        values: feature -> its categories' values, in the order of their codes; other features are left alone.
    """
    tables = {feature: np.array(categories, np.uint32) for feature, categories in values.items()}

    def by_value(feature: int, codes: NDArray[Any], tree: Any, node: int) -> NDArray[Any]:
        return tables[feature][codes] if feature in tables else codes

    _rewrite(model, by_value)


def send_unknown_with_missing(model: Any, values: Mapping[int, Sequence[Any]]) -> None:
    """Make a treelite.Model send a category that is not among `values` where it sends a missing value, in place.

    Args:
        model: the treelite.Model; its lists name what goes left.
        values: categorical feature -> every category that training saw.
    """
    known = {feature: np.array(categories, np.uint32) for feature, categories in values.items()}

    def other_side(feature: int, categories: NDArray[Any], tree: Any, node: int) -> NDArray[Any]:
        if not tree.get_field("default_left")[node]:
            return categories
        tree.get_field("category_list_right_child")[node] = 1  # the field itself: accessors hand out views
        return np.setdiff1d(known[feature], categories)

    _rewrite(model, other_side)


def _rewrite(model: Any, change: Callable[[int, NDArray[Any], Any, int], NDArray[Any]]) -> None:
    """Replace every categorical node's list by change(feature, list, tree, node)."""
    for number in range(model.num_tree):
        tree = model.get_tree_accessor(number)
        if not tree.get_field("has_categorical_split")[0]:
            continue
        begins, ends = tree.get_field("category_list_begin"), tree.get_field("category_list_end")
        features, lists = tree.get_field("split_index"), tree.get_field("category_list").copy()
        parts: list[NDArray[Any]] = []
        length = 0
        for node in range(len(features)):
            part = lists[int(begins[node]) : int(ends[node])]
            if tree.get_field("node_type")[node] == _CATEGORICAL:
                part = np.sort(change(int(features[node]), part, tree, node)).astype(np.uint32)
            begins[node], ends[node] = length, length + len(part)
            length += len(part)
            parts.append(part)
        tree.set_field("category_list", np.concatenate(parts))

"""Forests in XGBoost itself: `Booster.inplace_predict`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.serving.forest.engine import ForestError
from tristage.serving.forest.members import MemberForests
from tristage.serving.forest.recipe import Member, Recipe

__all__ = ["encode", "open_xgboost"]


def open_xgboost(path: Path, threads: int = 1) -> MemberForests:
    """Open the boosters that a recipe names.

    Raises:
        ForestError: a file is missing or damaged.
    """
    recipe = Recipe.read(path)
    return MemberForests(recipe, [_ask(path.parent / member.file, member, threads) for member in recipe.members()])


def _ask(path: Path, member: Member, threads: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    import xgboost

    try:
        booster = xgboost.Booster(model_file=path)
    except xgboost.core.XGBoostError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ForestError(f"XGBoost {xgboost.__version__} cannot read {path}: {reason}") from error
    booster.set_param({"nthread": threads})

    def ask(rows: NDArray[Any]) -> NDArray[Any]:
        try:
            margins = booster.inplace_predict(
                encode(rows, member.codes), validate_features=False, predict_type="margin"
            )
        except xgboost.core.XGBoostError as error:
            raise ForestError(f"XGBoost refuses the rows: {str(error).strip().splitlines()[-1]}") from error
        return np.asarray(margins).reshape(len(rows), member.columns)

    return ask


def encode(rows: NDArray[Any], codes: Mapping[int, Sequence[int]]) -> NDArray[Any]:
    """Categories' values replaced by codes; what is no category gets a code that no tree knows.

    XGBoost looks categories up in a DataFrame only, and raises for one that training never saw.

    Args:
        rows: [rows, features].
        codes: feature -> its categories' values, in the order of their codes.
    """
    if not codes:
        return rows
    coded = rows.copy()
    for feature, values in codes.items():
        order = np.argsort(values)
        sorted_values = np.asarray(values, np.float32)[order]
        place = np.minimum(np.searchsorted(sorted_values, rows[:, feature]), len(values) - 1)
        known = sorted_values[place] == rows[:, feature]
        coded[:, feature] = np.where(known, order[place], len(values))
        coded[np.isnan(rows[:, feature]), feature] = np.nan
    return coded

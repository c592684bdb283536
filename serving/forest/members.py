"""Answers of a step whose forests are asked one by one: groups taken apart, bags averaged, targets side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.serving.forest.engine import ForestError
from tristage.serving.forest.postprocess import POSTPROCESS
from tristage.serving.forest.recipe import Member, Recipe

__all__ = ["MemberForests", "by_group"]

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class MemberForests:
    """Forests of a recipe, each of which answers its margins.

    Attributes:
        recipe: how they are put together.
        ask: for every forest, in the order of `Recipe.members`: rows [n, features] -> margins [n, columns].
    """

    recipe: Recipe
    ask: Sequence[Callable[[Rows], NDArray[Any]]]

    @property
    def features(self) -> int:
        """Columns of a row."""
        return self.recipe.features

    @property
    def outputs(self) -> int:
        """Columns of an answer."""
        return self.recipe.outputs

    def predict(self, rows: Rows, groups: NDArray[np.int64] | None = None) -> Rows:
        """Answer rows; see `tristage.serving.forest.engines.OpenForest`."""
        return by_group(self, len(self.recipe.bags), rows, groups, self._answer)

    def _answer(self, rows: Rows, group: int) -> Rows:
        first = sum(len(bag) for bags in self.recipe.bags[:group] for bag in bags)
        answers, margins = [], []
        for bag in self.recipe.bags[group]:
            asked = [ask(rows) for ask in self.ask[first : first + len(bag)]]
            first += len(bag)
            if self.recipe.margins:
                margins.append(_mean(asked))
            if self.recipe.average == "margins":
                answers.append(_postprocess(bag[0], _mean(asked)))
            else:
                answers.append(_mean([_postprocess(member, each) for member, each in zip(bag, asked, strict=True)]))
        return np.concatenate([*answers, *margins], axis=1, dtype=np.float32)


def by_group(
    forest: Any,
    count: int,
    rows: Rows,
    groups: NDArray[np.int64] | None,
    answer: Callable[[Rows, int], NDArray[Any]],
) -> Rows:
    """Answer the rows of each group together, so that they meet their own group's trees only.

    Args:
        forest: says how many `features` a row and how many `outputs` an answer has.
        count: how many groups there are, numbered from 0.
        rows: [rows, features].
        groups: [rows], the number of each row's group; a row of none is answered with NaN. None: group 0.
        answer: (rows, group) -> [rows, outputs]; is never given no rows.

    Returns:
        [rows, outputs].

    Raises:
        ForestError: shapes do not fit.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    if rows.ndim != 2 or rows.shape[1] != forest.features:
        raise ForestError(f"rows have shape {rows.shape}, not [rows, {forest.features}]")
    if groups is not None and groups.shape != (len(rows),):
        raise ForestError(f"groups have shape {groups.shape}, which does not fit {len(rows)} rows")
    if groups is None and len(rows):
        return np.ascontiguousarray(answer(rows, 0), np.float32)
    answers = np.full((len(rows), forest.outputs), np.nan, np.float32)
    if groups is None or not len(rows):
        return answers
    order = np.argsort(groups, kind="stable")
    numbers, starts = np.unique(groups[order], return_index=True)
    for number, members in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        if 0 <= number < count:
            answers[members] = answer(rows[members], number)
    return answers


def _mean(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return values[0] if len(values) == 1 else np.asarray(np.mean(values, axis=0, dtype=np.float64))


def _postprocess(member: Member, margins: NDArray[Any]) -> NDArray[Any]:
    return POSTPROCESS[member.postprocessor](margins.astype(np.float64), member.alpha, member.ratio)

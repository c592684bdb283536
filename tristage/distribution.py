"""How a column's values are distributed, and how far others are from that: the population stability index.

A distribution is the shares of a few bins: ten quantiles of numbers, the most frequent values of texts and codes, the
lengths of lists; what is null has a bin of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tristage.columns import NULL_STRING, Column

__all__ = ["Distribution", "count", "describe", "psi"]

_BINS = 10
_VALUES = 20  # most frequent values that have a bin each
_CODES = 50  # a whole-number column of so many different values or fewer is one of codes
_LEAST = 1e-4  # share that an empty bin counts as, since the index has logarithms


@dataclass(frozen=True)
class Distribution:
    """A column's shares.

    Attributes:
        kind: "numbers", "values" or "lengths".
        bounds: of numbers and lengths the bins' inner edges, a bin includes its upper one; of values the values.
        shares: of each bin; of values then of all others; and last of nulls. They add up to 1.
    """

    kind: str
    bounds: tuple[float | int | str, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Distribution:
        """Read what `dataclasses.asdict` made of one."""
        return cls(str(raw["kind"]), tuple(raw["bounds"]), tuple(map(float, raw["shares"])))


def describe(column: Column, values: NDArray[Any]) -> Distribution:
    """The distribution of a column's values as they travel: [rows, 1], or of a list [rows, length]."""
    numbers, texts = _simplify(column, values)
    kind = "lengths" if _varies(column) else "numbers"
    bounds: tuple[float | int | str, ...]
    if texts is not None:
        kind = "values"
        common = Counter(text for text in texts if text != NULL_STRING).most_common(_VALUES)
        bounds = tuple(sorted(text for text, _ in common))
    else:
        known = numbers[~np.isnan(numbers)]
        distinct = np.unique(known)
        if not column.dtype.startswith("float") and kind == "numbers" and len(distinct) <= _CODES:
            kind, bounds = "values", tuple(map(int, distinct))
        else:
            at = np.linspace(0, 1, _BINS + 1)[1:-1]
            edges = np.unique(np.quantile(known, at, method="lower")) if len(known) else distinct
            bounds = tuple(map(float, edges[np.isfinite(edges)]))
    empty = Distribution(kind, bounds, (0.0,) * (len(bounds) + 2))
    counts = count(empty, column, values)
    return Distribution(kind, bounds, tuple(float(share) for share in counts / max(counts.sum(), 1)))


def count(distribution: Distribution, column: Column, values: NDArray[Any]) -> NDArray[np.int64]:
    """How many of a column's values lie in each of a distribution's bins."""
    numbers, texts = _simplify(column, values)
    bins = len(distribution.bounds) + 2
    if texts is not None:
        found = Counter(texts)
        counts = [found.pop(str(text), 0) for text in distribution.bounds]
        null = found.pop(NULL_STRING, 0)
        return np.array([*counts, sum(found.values()), null], np.int64)
    bounds = np.asarray(distribution.bounds, np.float64)
    place = np.searchsorted(bounds, numbers, side="left")  # NaN lies behind all
    if distribution.kind == "values":
        inside = np.minimum(place, max(len(bounds) - 1, 0))
        known = (place < len(bounds)) & (bounds[inside] == numbers if len(bounds) else np.zeros(len(numbers), bool))
        place = np.where(known, place, len(bounds))
    place = np.where(np.isnan(numbers), bins - 1, place)
    return np.bincount(place, minlength=bins)


def psi(distribution: Distribution, counts: NDArray[Any]) -> float:
    """The population stability index of counted values: 0 where the shares are the same.

    By custom below 0.1 is stable, and above 0.25 is another population. Source: Siddiqi, Credit Risk Scorecards (2006).
    """
    expected = np.maximum(np.asarray(distribution.shares), _LEAST)
    actual = np.maximum(np.asarray(counts, np.float64) / max(float(np.sum(counts)), 1.0), _LEAST)
    return float(((actual - expected) * np.log(actual / expected)).sum())


def _varies(column: Column) -> bool:
    return column.length is not None and column.pad is not None


def _simplify(column: Column, values: NDArray[Any]) -> tuple[NDArray[np.float64], list[str] | None]:
    """A column as numbers (of a list how many elements are no pads, of one that is always full all), or as texts."""
    if _varies(column):
        if column.dtype == "string":
            pad = str(column.pad)
            given = np.array([[_text(value) != pad for value in row] for row in values.tolist()], bool)
        elif isinstance(column.pad, float) and np.isnan(column.pad):
            given = ~np.isnan(values)
        else:
            given = values != column.pad
        return given.reshape(len(values), -1).sum(axis=1).astype(np.float64), None
    if column.dtype == "string":
        return np.empty(0), [_text(value) for value in values.ravel().tolist()]
    return values.ravel().astype(np.float64), None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

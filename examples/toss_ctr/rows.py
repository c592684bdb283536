"""Synthetic rows of ads that were shown: 118 anonymous columns, a click, and something in them to learn.

The columns are as the challenge's: five that name something, families of numbers, and a sequence of integers whose
length has a heavy tail. A row is drawn from a few hidden traits; each family of numbers is a noisy mixture of them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from examples.toss_ctr.sizes import Sizes

__all__ = ["CODES", "COLUMNS", "DAY", "FAMILIES", "NUMBERS", "SEQUENCE", "awkward_rows", "draw"]

DAY = "day_of_week"
CODES = ("gender", "age_group", "inventory_id", DAY, "hour")
SEQUENCE = "seq"
FAMILIES = {
    "l_feat": 27,
    "feat_a": 18,
    "feat_b": 6,
    "feat_c": 8,
    "feat_d": 6,
    "feat_e": 10,
    "history_a": 7,
    "history_b": 30,
}
NUMBERS = tuple(f"{family}_{number}" for family, count in FAMILIES.items() for number in range(1, count + 1))
COLUMNS = (*CODES, SEQUENCE, *NUMBERS)  # 118; the click is the 119th
_TRAITS = 6
_WORLD = 11  # how traits mix and what they do is the same whatever rows are drawn
_MEDIAN, _SPREAD = 60, 1.4  # of a sequence's length: a lognormal, whose one row in 3,000 is beyond 6590
_REPEATS = 0.7  # of a sequence's steps: what was met before is met again at once
_FEWER = 1.6  # an item's rank to the power of this is how seldom it is


def draw(sizes: Sizes) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """Rows, and whether each was clicked.

    Returns:
        `rows + held` rows of COLUMNS: gender (text, may be null), age_group and inventory_id (int64), day_of_week and
        hour (text), the numbers (float32, NaN where unknown), and seq (lists of int64, the newest first, none empty,
        one of them as long as the longest may be); and 0 or 1 for each.
    """
    rows = sizes.rows + sizes.held
    random, world = np.random.default_rng(sizes.seed), np.random.default_rng(_WORLD)
    traits = random.normal(size=(rows, _TRAITS)).astype(np.float32)
    numbers = _numbers(traits, random, world)
    gender, age = random.integers(0, 3, rows), random.integers(1, 9, rows)
    inventory = np.minimum(random.geometric(0.12, rows), sizes.inventory)
    day, hour = random.integers(1, 8, rows), random.integers(0, 24, rows)
    sequences, newest = _sequences(rows, sizes, random)
    logit = (
        traits @ world.normal(size=_TRAITS)
        + traits[:, 0] * traits[:, 1]
        + world.normal(size=sizes.inventory + 1)[inventory]
        + world.normal(scale=0.4, size=(8, 24))[day, hour]
        + 0.5 * ((age > 5) & (gender == 0))
        + 0.3 * (newest <= 3)
    )
    clicked = random.random(rows) < 1 / (1 + np.exp(-logit - _shift(logit, sizes.rate)))
    drawn = {
        "gender": np.array(["f", "m", None], object)[gender],
        "age_group": age,
        "inventory_id": 30_000_000 + inventory,
        DAY: np.array([str(one) for one in range(8)], object)[day],
        "hour": np.array([f"{one:02}" for one in range(24)], object)[hour],
        SEQUENCE: sequences,
        **dict(zip(NUMBERS, numbers.T, strict=True)),
    }
    return pd.DataFrame(drawn, columns=list(COLUMNS)), clicked.astype(np.float32)


def _numbers(
    traits: NDArray[np.float32], random: np.random.Generator, world: np.random.Generator
) -> NDArray[np.float32]:
    """All families side by side, [rows, numbers]: of three kinds, and some with more unknown than others."""
    parts = []
    for place, count in enumerate(FAMILIES.values()):
        values = 0.5 * traits @ world.normal(size=(_TRAITS, count)) + random.normal(size=(len(traits), count))
        if place % 3:
            values = np.exp(values / 2)  # amounts, with a tail
        if place % 3 == 2:
            values = np.floor(values)  # counts
        parts.append(np.where(random.random(values.shape) < 0.02 * place, np.nan, values))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _sequences(
    rows: int, sizes: Sizes, random: np.random.Generator
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Sequences of a few integers, most of them repeated at once, and the newest of each."""
    lengths = np.clip(random.lognormal(np.log(_MEDIAN), _SPREAD, rows).astype(np.int64), 1, sizes.longest)
    lengths[random.integers(rows)] = sizes.longest
    starts = np.cumsum(lengths) - lengths
    chances = 1 / np.arange(1, sizes.items + 1) ** _FEWER
    other = np.searchsorted(np.cumsum(chances / chances.sum())[:-1], random.random(lengths.sum())) + 1
    moves = random.random(len(other)) >= _REPEATS
    moves[starts] = True
    items = other[np.maximum.accumulate(np.where(moves, np.arange(len(other)), 0))]
    return np.split(items, starts[1:]), items[starts]


def _shift(logit: NDArray[np.float64], rate: float) -> float:
    """What is added to logits so that `rate` of the rows are clicked, by halving."""
    low, high = -30.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(1 / (1 + np.exp(-logit - middle))) < rate else (low, middle)
    return low


def awkward_rows(rows: pd.DataFrame, sizes: Sizes) -> pd.DataFrame:
    """The first rows, each spoilt in a way of its own; three dozen or more are needed."""
    frame = rows.head(48).reset_index(drop=True).copy()
    spoilt: list[tuple[str, object]] = [
        *[(column, value) for column in ("gender", DAY, "hour") for value in (None, "", "nobody knows", "ü" * 300)],
        *[(column, value) for column in ("age_group", "inventory_id") for value in (0, -1, 2**62)],
        *[(column, value) for column in ("l_feat_1", "history_b_30") for value in (np.nan, 0.0, -1.0, np.inf, -np.inf)],
    ]
    for row, (column, value) in enumerate(spoilt):
        frame.loc[row, column] = value
    long, known = sizes.longest, rows[SEQUENCE].iloc[0]
    lists = [[], [999_999], [-1], [1] * long, list(range(1, long + 1)), known[:1], [2] * sizes.length]
    lists += [[3] * (sizes.length + 1), [4] * sizes.short, [5] * (sizes.short + 1)]
    sequences = list(frame[SEQUENCE])
    sequences[len(spoilt) : len(spoilt) + len(lists)] = [np.asarray(one, np.int64) for one in lists]
    frame[SEQUENCE] = sequences
    nothing = len(spoilt) + len(lists)  # one row of which nothing is known
    frame.loc[nothing, ["gender", DAY, "hour", *NUMBERS]] = [None, None, None, *[np.nan] * len(NUMBERS)]
    return frame

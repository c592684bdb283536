"""Synthetic rows: clicks of users on items, and histories of items, with something in them to learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

__all__ = ["FIRST_ITEM", "GENRES", "NUMBERS", "awkward_clicks", "awkward_histories", "clicks", "histories"]

FIRST_ITEM = 70_000_000  # ids as a shop has them: float32 cannot tell neighbours apart
GENRES = 30
NUMBERS = ("price", "age")
_DEVICES = ("phone", "tablet", "desktop", "tv")
_LATENT = 4


def clicks(rows: int, users: int, items: int, hot: int, seed: int) -> pd.DataFrame:
    """Rows of (user, item) pairs; every user and item is there where there are as many rows.

    Args:
        rows: how many.
        users: different users.
        items: different items.
        hot: genres that an item has at most; it may have none.
        seed: of the draw.

    Returns:
        user and device (text, may be null), item (int64), genres (lists of int64), price and age (float64, NaN where
        unknown) and click (float32, 0 or 1).
    """
    random = np.random.default_rng(seed)
    user, item = random.permutation(np.arange(rows) % users), random.permutation(np.arange(rows) % items)
    tastes = random.normal(size=(users, _LATENT)).astype(np.float32)
    traits = random.normal(size=(items, _LATENT)).astype(np.float32)
    device = random.integers(0, len(_DEVICES), rows)
    price = random.lognormal(2, 1, rows)
    age = random.uniform(16, 80, rows)
    logit = (tastes[user] * traits[item]).sum(1) - np.log(price) / 2 + (device == 0) + (age < 30)
    count = random.integers(0, hot + 1, rows)
    genres = np.split(random.integers(1, GENRES + 1, count.sum()), np.cumsum(count)[:-1])
    return pd.DataFrame(
        {
            "user": pd.Series([f"u{one}" for one in user], dtype=object),
            "device": pd.Series([_DEVICES[one] if one < len(_DEVICES) else None for one in device], dtype=object),
            "item": FIRST_ITEM + item,
            "genres": list(genres),
            "price": np.where(random.random(rows) < 0.1, np.nan, price),
            "age": np.where(random.random(rows) < 0.1, np.nan, age),
            "click": (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32),
        }
    )


def awkward_clicks(rows: pd.DataFrame, hot: int) -> pd.DataFrame:
    """The first rows, each spoilt in a way of its own; two dozen or more are needed."""
    frame = rows.head(64).reset_index(drop=True).copy()
    genres = list(frame["genres"])
    spoilt: list[tuple[str, object]] = [
        ("user", None),
        ("user", "nobody"),
        ("user", ""),
        ("user", "ü" * 300),
        ("device", None),
        ("device", "toaster"),
        ("item", 0),
        ("item", -1),
        ("item", 2**62),
        *[(column, value) for column in NUMBERS for value in (np.nan, 0.0, -1.0, 1e30, np.inf, -np.inf)],
    ]
    for row, (column, value) in enumerate(spoilt):
        frame.loc[row, column] = value
    wholes: Sequence[Sequence[int]] = [[], [999_999], [1] * hot, [2] * (hot + 5), [3, 999_999]]
    for row, value in enumerate(wholes, len(spoilt)):
        genres[row] = np.array(value, np.int64)
    for row, column in enumerate(("user", "device", *NUMBERS), len(spoilt) + len(wholes)):  # nothing known at all
        genres[row] = np.array([], np.int64)
        frame.loc[row, ["user", "device", *NUMBERS]] = [None, None, np.nan, np.nan]
        frame.loc[row, column] = rows[column].iloc[-1]
    frame["genres"] = genres
    return frame


def histories(rows: int, items: int, length: int, seed: int) -> pd.DataFrame:
    """Rows of what a user has met, the newest last, and what came next: a neighbour of it in one of a few circles.

    Args:
        rows: how many.
        items: different items; all are met where there are as many rows.
        length: items that a history has at most, and one at least.
        seed: of the draw.

    Returns:
        items (lists of int64, no item twice) and next (int64).
    """
    random = np.random.default_rng(seed)
    start = random.permutation(np.arange(rows) % items)
    count = random.integers(1, min(length, items // 2) + 1, rows)
    steps = random.integers(1, 3, rows)  # a session walks by ones, or by twos
    lists = [
        FIRST_ITEM + (first + step * np.arange(many)) % items
        for first, many, step in zip(start, count, steps, strict=True)
    ]
    return pd.DataFrame({"items": lists, "next": FIRST_ITEM + (start + steps * count) % items})


def awkward_histories(rows: pd.DataFrame, items: int, length: int) -> pd.DataFrame:
    """A few rows as they are, and histories that are empty, unknown, of one item over and over, too long, or of all."""
    every = FIRST_ITEM + np.arange(items)
    lists = [
        *rows["items"].head(8),
        *([], [0], [-1], [2**62, -(2**62)], [FIRST_ITEM + items], [FIRST_ITEM] * length, [FIRST_ITEM]),
        *(every, every[::-1], every[: length + 1], every[:length], np.concatenate([every[:-1], [5]])),
        *([5, FIRST_ITEM, 5, FIRST_ITEM + 1], [FIRST_ITEM + items - 1, 5]),
    ]
    return pd.DataFrame({"items": [np.asarray(one, np.int64) for one in lists]})

"""A synthetic shop: items with facts, users with tastes, and visits; for systems that find items themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from examples.compact.rows import FIRST_ITEM

__all__ = ["CATEGORIES", "REGIONS", "Shop", "awkward_visits", "draw_shop", "draw_visits"]

REGIONS = ("north", "east", "south", "west")
CATEGORIES = 8
_LATENT = 6


@dataclass(frozen=True)
class Shop:
    """Items, and what users and items have in them that makes them meet.

    Attributes:
        items: a row each: item (int64), region (where it is sold; null for everywhere), min_age (float64), category
            (int64), price and popularity (float64).
        tastes: of users, [users, latent].
        traits: of items, [items, latent].
    """

    items: pd.DataFrame
    tastes: np.ndarray
    traits: np.ndarray


def draw_shop(users: int, items: int, seed: int) -> Shop:
    """Draw items and users."""
    random = np.random.default_rng(seed)
    category = random.integers(0, CATEGORIES, items)
    centres = random.normal(size=(CATEGORIES, _LATENT))
    region = random.integers(0, 2 * len(REGIONS), items)  # half of them are sold everywhere
    facts = pd.DataFrame(
        {
            "item": FIRST_ITEM + random.permutation(items),
            "region": pd.Series([REGIONS[one] if one < len(REGIONS) else None for one in region], dtype=object),
            "min_age": random.choice([0.0, 0.0, 0.0, 16.0, 18.0], items),
            "category": category,
            "price": random.lognormal(2, 1, items).round(2),
            "popularity": random.exponential(1, items),
        }
    )
    traits = centres[category] + 0.5 * random.normal(size=(items, _LATENT))
    return Shop(facts, random.normal(size=(users, _LATENT)), traits)


def draw_visits(shop: Shop, rows: int, seen: int, seed: int) -> pd.DataFrame:
    """Visits, of every user where there are as many: what a user has seen, was shown, and did.

    Args:
        shop: the shop.
        rows: how many.
        seen: items that a user has seen at most.
        seed: of the draw.

    Returns:
        user and region (text, may be null), age (float64, NaN where unknown), seen (lists of int64, items that suit the
        user), shown (int64, one of the items that suit the user most) and click (float32, 0 or 1).
    """
    random = np.random.default_rng(seed)
    user = random.permutation(np.arange(rows) % len(shop.tastes))
    most = np.empty((rows, seen + 1), np.int64)
    for some in np.array_split(np.arange(rows), max(1, rows // 256)):
        met = random.choice(len(shop.items), min(len(shop.items), 2_000), replace=False)  # users see a part of a shop
        suits = shop.tastes[user[some]] @ shop.traits[met].T + random.gumbel(size=(len(some), len(met)))
        most[some] = random.permuted(met[np.argpartition(-suits, seen, axis=1)[:, : seen + 1]], axis=1)
    ids = shop.items["item"].to_numpy()
    count = random.integers(0, seen + 1, rows)
    shown = most[:, seen]
    region = random.integers(0, len(REGIONS) + 1, rows)
    age = random.uniform(12, 70, rows).round()
    facts = shop.items.iloc[shown]
    logit = (shop.tastes[user] * shop.traits[shown]).sum(1) / 4 - np.log(facts["price"].to_numpy()) / 2
    logit += facts["popularity"].to_numpy() / 2 + (age < 30)
    return pd.DataFrame(
        {
            "user": pd.Series([f"u{one}" for one in user], dtype=object),
            "region": pd.Series([REGIONS[one] if one < len(REGIONS) else None for one in region], dtype=object),
            "age": np.where(random.random(rows) < 0.1, np.nan, age),
            "seen": [ids[its[:many]] for its, many in zip(most, count, strict=True)],
            "shown": ids[shown],
            "click": (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32),
        }
    )


def awkward_visits(rows: pd.DataFrame, shop: Shop, seen: int) -> pd.DataFrame:
    """The first rows, each spoilt in a way of its own; two dozen or more are needed."""
    frame = rows.head(40).reset_index(drop=True).copy()
    spoilt: list[tuple[str, object]] = [
        *[("user", value) for value in (None, "nobody", "", "ü" * 300)],
        *[("region", value) for value in (None, "moon", "")],
        *[("age", value) for value in (np.nan, 0.0, -1.0, 15.999, 16.0, 18.0, 1e30, np.inf, -np.inf)],
    ]
    for row, (column, value) in enumerate(spoilt):
        frame.loc[row, column] = value
    every = shop.items["item"].to_numpy()
    lists: Sequence[Sequence[int]] = [
        [],
        [-1],
        [0, 5, 2**62],
        [int(every[0])] * seen,
        every[:seen].tolist(),
        every.tolist(),  # more than a request may hold
    ]
    wholes = list(frame["seen"])
    for row, value in enumerate(lists, len(spoilt)):
        wholes[row] = np.array(value, np.int64)
    frame["seen"] = wholes
    last = len(spoilt) + len(lists)
    frame.loc[last, ["user", "region", "age"]] = [None, None, np.nan]
    return frame

"""Rows that nobody trains on: no past at all, empty and overlong tweets, unknown tokens and users, odd numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from examples.microparade import TARGETS
from examples.microparade.rows import engaged, past_tokens
from examples.microparade.sizes import Sizes

__all__ = ["awkward_rows"]


def awkward_rows(rows: pd.DataFrame, sizes: Sizes) -> pd.DataFrame:
    """The first rows, each spoilt in a way of its own; they need not be many, and are taken over and over."""
    lists, scalars = _spoilt_lists(sizes), _spoilt_scalars()
    frame = rows.iloc[np.arange(len(lists) + len(scalars)) % len(rows)].reset_index(drop=True)
    for row, (column, value) in enumerate(scalars):
        frame.at[row, column] = value
    for row, columns in enumerate(lists, len(scalars)):
        for column, values in columns.items():
            frame.at[row, column] = np.asarray(values, np.int64)
    return frame


def _spoilt_scalars() -> list[tuple[str, Any]]:
    made: list[tuple[str, Any]] = [
        *(("a_user_id", text) for text in (None, "nobody", "")),
        ("b_user_id", "ü" * 300),
        *(("media", text) for text in (None, "", "Hologram", "\t".join(["Photo"] * 40))),
        *(("tweet_type", text) for text in (None, "Thread")),
        *(("language", text) for text in (None, "tlh")),
        *(("language_before", text) for text in (None, "tlh")),
        *(("hashtags", text) for text in (None, "", "\t", "a\t", "\t".join("abcdefghijklmnopqrstuvwxyz"))),
        *(("timestamp", number) for number in (0, -1, 2**40)),
    ]
    for column in ("a_follower_count", "b_following_count"):
        made += [(column, number) for number in (0, -1, 2**40)]
    for column in ("b_follower_count_before", "timestamp_before"):
        made += [(column, number) for number in (np.nan, 0.0, -1.0, 1e30, np.inf, -np.inf)]
    return made


def _spoilt_lists(sizes: Sizes) -> Sequence[Mapping[str, Sequence[int]]]:
    """What takes the place of some list columns, row by row."""
    past, most, long = past_tokens(sizes.past), sizes.past, sizes.tokens
    hist = ["interaction_time_hist", *map(engaged, TARGETS)]
    word = 200
    nothing = _same([*past, "mask_hist", *hist], [])
    unknown = [-1, sizes.vocabulary, 2**62, -(2**62), word]
    return [
        {"text_tokens": []},
        {"text_tokens": [word]},
        {"text_tokens": [word] * long},
        {"text_tokens": [word + one for one in range(long + 1)]},
        {"text_tokens": [word] * (9 * long)},
        {"text_tokens": unknown},
        {"text_tokens": [0, word, 0, word]},  # padding between words, and before them
        {"text_tokens": [101, word, 102, 103]},  # BERT's own
        nothing,  # no past tweet at all
        nothing | {"text_tokens": []},
        nothing | {"mask_hist": [0] * most},
        {"mask_hist": [0] * most},  # past tweets that the mask hides
        {"mask_hist": [1] * most} | _same(past, []),  # past tweets without text
        {"mask_hist": [1] * most, "text_tokens": []} | _same(past, []),
        {"mask_hist": [1] * most} | _same(past, [word, word + 1]),
        {"mask_hist": [1] * most} | _same(past, [word] * (long + 5)),
        {"mask_hist": [1] * most} | _same(past, unknown),
        {"mask_hist": [0] * (most - 1) + [1], past[-1]: [word]},  # a gap before the only one
        {"mask_hist": [1, 0] * (most // 2)} | _same(past, [word]),
        {"mask_hist": [1], past[0]: [word]},
        {"mask_hist": [1] * (most + 3)} | _same(hist, [1] * (most + 3)),
        {"mask_hist": [7, -1] * (most // 2)},
        {"interaction_time_hist": []},
        {"interaction_time_hist": [-1, 86_399] * (most // 2), "mask_hist": [1] * most},
        {"interaction_time_hist": [2**62, -(2**62)] * (most // 2), "mask_hist": [1] * most},
        {"mask_hist": [1] * most} | {engaged(target): [1] * most for target in TARGETS},
        {"mask_hist": [1] * most} | {engaged(target): [2, -1] for target in TARGETS},
    ]


def _same(columns: Sequence[str], values: Sequence[int]) -> dict[str, Sequence[int]]:
    return dict.fromkeys(columns, values)

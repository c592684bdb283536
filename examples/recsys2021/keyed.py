"""Workflows of keyed look-ups alone: what each model of the original looked up for itself.

In the original no two models shared statistics: XGB2 encoded targets in another fashion than XGB1, XGB3 took sums and
counts, stage 2 statistics of newer rows, and each net had its own vocabulary of users. `past` is fitted on weeks 1 and
2 like `features`, `newer` on weeks 2 and 3. Together the three make 77 keyed look-ups a row:

=========  ==========================================================  =========================  ========
columns    what                                                        read by                    look-ups
=========  ==========================================================  =========================  ========
features:
`TE_`      target encodings of 10 keys                                 XGB1, XGB5                       10
`s_`       counts and sums of 4 keys                                   XGB3, XGB4, nets                  4
codes      2 users, language, tweet type, media, up to 8 hashtags      nets                             13
past:
`x2_`      target encodings of 11 keys, another smoothing              XGB2                             11
`x3_`      counts and sums of 2 keys, counts of 3                      XGB3, XGB4                        5
codes      readers for NN2, both users for NN3                         NN2, NN3                          3
newer:
`x4_`      target encodings of 6 keys                                  XGB4                              6
`x5_`      target encodings of 11 keys                                 XGB5                             11
`rev_`     the author's encodings by the reader's id, and in reverse   XGB5                              2
`ce_`      counts of 12 fields                                         XGB5                             12
=========  ==========================================================  =========================  ========
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from examples.recsys2021 import TARGETS
from examples.recsys2021.features import ENCODED_KEYS, fit_graph

__all__ = ["NEWER", "PAST", "fit_newer", "fit_past"]

Keys = Sequence[str | list[str]]

PAST, NEWER = "past", "newer"
ELEVEN_KEYS: Keys = (*ENCODED_KEYS, ["language", "present_media"])
SUMMED_KEYS: Keys = (["a_user_id", "language"], ["b_user_id", "language"])
COUNTED_KEYS: Keys = (["a_user_id", "tweet_type"], ["b_user_id", "tweet_type"], ["tweet_type", "present_media"])
STAGE_2_KEYS: Keys = (*SUMMED_KEYS, *COUNTED_KEYS, ["a_user_id", "present_media"])
COUNTED_FIELDS = (
    "a_user_id",
    "b_user_id",
    "tweet_type",
    "language",
    "present_media",
    "present_domains",
    "hashtags",
    "a_follower_count",
    "a_following_count",
    "b_follower_count",
    "a_account_creation",
    "b_account_creation",
)
SMOOTHING = 20


def fit_past(rows: pd.DataFrame, folder: Path) -> None:
    """Fit the workflow of XGB2, XGB3, NN2 and NN3 on the rows of weeks 1 and 2, and save it in `folder`."""
    from nvtabular import ColumnSelector, ops

    store = str(folder)
    reader = ["b_user_id"] >> ops.Categorify(out_path=store) >> ops.Rename(name="nn2_b_user")
    both = ColumnSelector([("a_user_id", "b_user_id")]) >> ops.Categorify(out_path=store)
    both = both >> ops.Rename(f=lambda name: "nn3_" + name.replace("_id", ""))
    sums = _sums(SUMMED_KEYS, TARGETS, "x3_", store) + _sums(COUNTED_KEYS, (), "x3_", store)
    fit_graph(reader + both + _encoded(ELEVEN_KEYS, 2 * SMOOTHING, "x2_", store) + sums, rows, folder)


def fit_newer(rows: pd.DataFrame, folder: Path) -> None:
    """Fit the workflow of XGB4 and XGB5 on the rows of weeks 2 and 3, and save it in `folder`."""
    from nvtabular import ops

    store = str(folder)
    fields = list(COUNTED_FIELDS) >> ops.Rename(f=lambda name: "ce_" + name)  # else their files are the encodings'
    turned = _turned(rows, "a", "b") + _turned(rows, "b", "a")
    counts = _sums(fields, (), "", store)
    stage2 = _encoded(STAGE_2_KEYS, SMOOTHING, "x4_", store) + _encoded(ELEVEN_KEYS, SMOOTHING, "x5_", store)
    fit_graph(stage2 + turned + counts, rows, folder)


def _encoded(keys: Keys, smoothing: float, prefix: str, folder: str) -> Any:
    """Four target encodings of each key."""
    from nvtabular import ops

    encoded = list(keys) >> ops.TargetEncoding(list(TARGETS), kfold=1, p_smooth=smoothing, out_path=folder)
    return encoded >> ops.Rename(f=lambda name: prefix + name)


def _sums(keys: Any, targets: Sequence[str], prefix: str, folder: str) -> Any:
    """The rows that a key had, and the engagements; a count is the sum of ones, as in `features`."""
    from nvtabular import ops

    ones = ["tweet_timestamp"] >> ops.LambdaOp(lambda col: col * 0 + 1) >> ops.Rename(name="rows")
    cont = ones + list(targets) if targets else ones
    keys = list(keys) if isinstance(keys, tuple) else keys
    joined = keys >> ops.JoinGroupby(cont_cols=cont, stats=["sum"], out_path=folder)
    return joined >> ops.FillMissing() >> ops.Rename(f=lambda name: prefix + name)


def _turned(rows: pd.DataFrame, whose: str, read_by: str) -> Any:
    """The target encodings of one side's ids, found with the other side's."""
    from nvtabular import ops

    grouped = rows.groupby(f"{whose}_user_id", sort=True)[list(TARGETS)].agg(["sum", "count"])
    encoded = pd.DataFrame(
        {
            f"rev_{whose}_{target}": (
                (grouped[target, "sum"] + SMOOTHING * rows[target].mean()) / (grouped[target, "count"] + SMOOTHING)
            ).astype("float32")
            for target in TARGETS
        }
    )
    names = list(encoded.columns)
    table = encoded.reset_index().rename(columns={f"{whose}_user_id": f"{read_by}_user_id"})
    return ([f"{read_by}_user_id"] >> ops.JoinExternal(table, on=f"{read_by}_user_id"))[names]

"""The NVTabular workflow: raw fields to the columns every model of the stack reads.

One workflow serves all models. It is fitted on weeks 1 and 2; stage 1's forests and NN2, which read target encodings,
learn from week 3 and stage 2 from week 4, so that no row's own target is in its encodings (the time-split strategy).

Names of its columns:

==========================  ============================================================================
`a_...`, `b_...`            the author's and the reader's raw numbers, nulls filled, ages in days
`a_user`, `b_user`          user codes of one joint vocabulary; rare users share a code
`c_...`, `author_group`     categories as small integers, [rows] each
`r_...`                     ratios
`TE_<keys>_<target>`        target encodings
`s_<key>_...`               raw counts and sums of a key, so that a forest learns the smoothing itself
`n_...`, `i_...`            numbers for the nets: about zero mean and unit width; indicators 0.0 or 1.0
`text_tokens`, `hashtags`   lists, cut where the nets read no further
`text_tokens_...`           the number of tokens, and of mentions among them
==========================  ============================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.dataframe
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from examples.recsys2021 import AUTHOR_CUTS, MENTION, TARGETS
from examples.recsys2021.sizes import Sizes

__all__ = ["ENCODED_KEYS", "fit_graph", "fit_workflow", "load_workflow", "matrix", "padded", "transform"]

ENCODED_KEYS: tuple[str | list[str], ...] = (
    "a_user_id",
    "b_user_id",
    "tweet_type",
    "language",
    "present_media",
    ["a_user_id", "language", "tweet_type"],
    ["b_user_id", "language", "tweet_type"],
    ["language", "tweet_type", "present_media"],
    ["b_user_id", "present_media"],
    ["a_user_id", "b_user_id"],
)
SUMMED_KEYS = ("a_user_id", "b_user_id", "present_media")
SUMMED_PAIR = ("language", "tweet_type")
FLAGS = ["a_is_verified", "b_is_verified", "a_follows_b"]
COUNTS = ["a_follower_count", "a_following_count", "b_follower_count", "b_following_count"]


def fit_workflow(rows: pd.DataFrame, sizes: Sizes, folder: Path) -> Any:
    """Fit the workflow on the rows of the earlier weeks and save it in `folder`.

    Loading it imports `operators.py`.

    Args:
        rows: raw fields and targets.
        sizes: how large everything is.
        folder: where `Workflow.load` will find it.

    Returns:
        The fitted `nvtabular.Workflow`.
    """
    return fit_graph(_graph(sizes, str(folder)), rows, folder)


def fit_graph(graph: Any, rows: pd.DataFrame, folder: Path) -> Any:
    """Fit a graph of operators whose files lie in `folder`, and save it there; returns the workflow."""
    with _quiet():
        import nvtabular

        folder.mkdir(parents=True, exist_ok=True)
        workflow = nvtabular.Workflow(graph)
        # a name of our own: Dask would make one by pickling every list
        data = dask.dataframe.from_pandas(rows, npartitions=1, sort=False, name="recsys2021-rows")
        workflow.fit(nvtabular.Dataset(data, cpu=True))
        workflow.save(folder)
    return workflow


def load_workflow(folder: Path) -> Any:
    """The workflow that was saved in a folder."""
    with _quiet():
        import nvtabular

        return nvtabular.Workflow.load(str(folder))


def transform(workflow: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """What the workflow makes of raw rows (their targets included: target encoding asks for the columns)."""
    with _quiet():
        return pd.DataFrame(workflow.transform(rows).reset_index(drop=True))


def matrix(features: pd.DataFrame, names: Sequence[str], dtype: str = "float32") -> NDArray[Any]:
    """Scalar columns side by side: [rows, names]."""
    made = np.empty((len(features), len(names)), dtype)
    for index, name in enumerate(names):
        made[:, index] = features[name].to_numpy()
    return made


def padded(column: pd.Series, length: int) -> NDArray[np.int64]:
    """A list column cut to `length` and filled up with 0: [rows, length]."""
    lists = pa.array(column, pa.list_(pa.int64()))
    sizes = np.diff(lists.offsets.to_numpy())
    inside = np.arange(length) < sizes[:, None]
    made = np.zeros((len(lists), length), np.int64)
    place = lists.offsets.to_numpy()[:-1, None] + np.arange(length)
    made[inside] = lists.values.to_numpy()[place[inside]]
    return made


def _graph(sizes: Sizes, folder: str) -> Any:
    """The operators. Lambdas hold arithmetic only, so that the workflow can be compiled as well as run."""
    from nvtabular import ColumnSelector, ops

    from examples.recsys2021.operators import SplitTabs, TokenCounts

    users = ColumnSelector([("a_user_id", "b_user_id")]) >> ops.Categorify(
        freq_threshold=sizes.user_threshold, out_path=folder
    )
    users = users >> ops.Rename(f=lambda name: name.replace("_id", ""))
    hashtags = ["hashtags"] >> SplitTabs(sizes.list_hashtags) >> ops.Categorify(out_path=folder)
    tokens = ["text_tokens"] >> SplitTabs(sizes.tokens, "int64")
    counts = tokens >> TokenCounts(MENTION)
    encoded = list(ENCODED_KEYS) >> ops.TargetEncoding(list(TARGETS), kfold=1, p_smooth=20, out_path=folder)
    # a count is the sum of ones: JoinGroupby's own count cannot be transformed once a key is new
    ones = ["tweet_timestamp"] >> ops.LambdaOp(lambda col: col * 0 + 1) >> ops.Rename(name="rows")
    sums = _sums(ones, folder) >> ops.FillMissing() >> ops.LambdaOp(lambda col: col * 1.0)
    numbers = _numbers()
    return (
        users
        + hashtags
        + tokens
        + counts
        + numbers
        + _categories(numbers, sums, folder)
        + encoded
        + sums
        + _net_numbers(numbers, sums, counts)
    )


def _sums(ones: Any, folder: str) -> Any:
    """Rows and engagements a key had.

    The single keys go by another name: NVTabular keeps one file of statistics for a key's name, and TargetEncoding's
    on the same keys would overwrite it.
    """
    from nvtabular import ColumnSelector, ops

    named = ops.Rename(f=lambda name: "s_" + name)
    counted = {"cont_cols": ones + list(TARGETS), "stats": ["sum"], "out_path": folder}
    single = list(SUMMED_KEYS) >> named >> ops.JoinGroupby(**counted)
    pair = ColumnSelector([SUMMED_PAIR]) >> ops.JoinGroupby(**counted) >> named
    return single + pair


def _derive(source: str, name: str, f: Any, *needs: str) -> Any:
    """A column `name` that `f` makes of the column `source` and of the columns `needs`."""
    from nvtabular import ops

    return [source] >> ops.LambdaOp(f, dependency=list(needs) or None) >> ops.Rename(name=name)


def _numbers() -> Any:
    """Raw numbers without nulls, ages in days, ratios."""
    from nvtabular import ops

    def age(col: Any, df: Any) -> Any:
        return (df["tweet_timestamp"] - col) / 86400.0

    def ratio(other: str) -> Any:
        return lambda col, df: col / (df[other] + 1.0)

    counts = ["a_follower_count", "a_following_count", "b_follower_count"] >> ops.FillMissing()
    with_null = ["b_following_count"] >> ops.FillMissing(add_binary_cols=True)
    ages = _derive("a_account_creation", "a_age", age, "tweet_timestamp")
    ages = ages + _derive("b_account_creation", "b_age", age, "tweet_timestamp")
    ratios = (
        _derive("a_follower_count", "r_a", ratio("a_following_count"), "a_following_count")
        + _derive("b_follower_count", "r_b", ratio("b_following_count"), "b_following_count")
        + _derive("a_follower_count", "r_followers", ratio("b_follower_count"), "b_follower_count")
        + _derive("a_following_count", "r_following", ratio("b_following_count"), "b_following_count")
    )
    return counts + with_null + ages + (ratios >> ops.FillMissing(fill_val=-1))


def _categories(numbers: Any, sums: Any, folder: str) -> Any:
    """Twenty categories as small integers."""
    from nvtabular import ops

    kinds = ["language", "tweet_type", "present_media"] >> ops.Categorify(out_path=folder)
    kinds = kinds >> ops.Rename(f=lambda name: "c_" + name.replace("present_", ""))
    flags = FLAGS >> ops.LambdaOp(lambda col: col * 1) >> ops.Rename(f=lambda name: "c_" + name)
    times = (
        _derive("tweet_timestamp", "c_hour", lambda col: (col // 3600) % 24)
        + _derive("tweet_timestamp", "c_weekday", lambda col: (col // 86400 + 3) % 7)
        + _derive("tweet_timestamp", "c_quarter", lambda col: (col // 21600) % 4)
    )
    group = numbers["a_follower_count"] >> ops.Bucketize(list(AUTHOR_CUTS)) >> ops.Rename(name="author_group")
    cuts: dict[str, list[float]] = {
        "a_following_count": [150, 300, 600, 1200],
        "b_follower_count": list(AUTHOR_CUTS),
        "b_following_count": [150, 300, 600, 1200],
        "a_age": [800, 1600, 2400, 3200],
        "b_age": [800, 1600, 2400, 3200],
        "r_a": [0.5, 1.0, 2.0, 8.0],
        "r_b": [0.0, 0.5, 1.0, 2.0, 8.0],
        "r_followers": [0.1, 0.5, 1.0, 2.0, 10.0],
        "r_following": [0.0, 0.5, 1.0, 2.0],
    }
    buckets = numbers[list(cuts)] >> ops.Bucketize(cuts) >> ops.Rename(f=lambda name: "c_" + name)
    seen = sums["s_b_user_id_rows_sum"] >> ops.Bucketize([1, 5, 20, 50]) >> ops.Rename(name="c_b_seen")
    return kinds + flags + times + group + buckets + seen


def _net_numbers(numbers: Any, sums: Any, counts: Any) -> Any:
    """27 numbers for the nets and nine indicators."""
    from nvtabular import ops

    to_n = ops.Rename(f=lambda name: "n_" + name)

    def older(col: Any, df: Any) -> Any:
        return (df["b_account_creation"] - col) / 1e8

    long_tailed = [*COUNTS, "r_a", "r_b", "r_followers", "r_following"]
    seen = sums[[f"s_{key}_rows_sum" for key in (*SUMMED_KEYS, "_".join(SUMMED_PAIR))]]
    logs = numbers[long_tailed] + seen + counts
    scaled = (logs >> ops.Clip(min_value=0) >> ops.LogOp()) + numbers["a_age", "b_age"]
    flags = FLAGS + numbers["b_following_count_filled"] >> ops.LambdaOp(lambda col: col * 1.0)
    turns = (
        _derive("tweet_timestamp", "n_day", lambda col: (col % 86400) / 86400.0 - 0.5)
        + _derive("tweet_timestamp", "n_weekend", lambda col: ((col // 86400 + 3) % 7 >= 5) * 1.0)
        + _derive("tweet_timestamp", "n_day_sin", lambda col: np.sin((col % 86400) * (np.pi / 43200.0)))
        + _derive("tweet_timestamp", "n_day_cos", lambda col: np.cos((col % 86400) * (np.pi / 43200.0)))
        + _derive("tweet_timestamp", "n_week_sin", lambda col: np.sin((col % 604800) * (np.pi / 302400.0)))
        + _derive("tweet_timestamp", "n_week_cos", lambda col: np.cos((col % 604800) * (np.pi / 302400.0)))
        + _derive("a_account_creation", "n_older", older, "b_account_creation")
    )
    indicators = (
        _derive("b_follower_count", "i_b_240", lambda col: (col >= 240) * 1.0)
        + _derive("b_follower_count", "i_b_588", lambda col: (col >= 588) * 1.0)
        + _derive("b_follower_count", "i_b_1331", lambda col: (col >= 1331) * 1.0)
        + _derive("b_follower_count", "i_b_3996", lambda col: (col >= 3996) * 1.0)
        + _derive("tweet_timestamp", "i_morning", lambda col: ((col // 21600) % 4 == 1) * 1.0)
        + _derive("tweet_timestamp", "i_afternoon", lambda col: ((col // 21600) % 4 == 2) * 1.0)
        + _derive("tweet_timestamp", "i_evening", lambda col: ((col // 21600) % 4 == 3) * 1.0)
        + _derive(
            "a_follower_count", "i_larger", lambda col, df: (col > df["b_follower_count"]) * 1.0, "b_follower_count"
        )
        + _derive(
            "a_following_count",
            "i_follows_more",
            lambda col, df: (col > df["b_following_count"]) * 1.0,
            "b_following_count",
        )
    )
    return (scaled >> ops.Normalize() >> to_n) + (flags >> to_n) + turns + indicators


class _quiet:
    """NVTabular's own warnings say nothing to a reader of the training's progress; Dask runs in this thread."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._dask = dask.config.set(scheduler="synchronous")
        self._dask.__enter__()

    def __exit__(self, *error: object) -> None:
        self._dask.__exit__(*error)
        self._warnings.__exit__(None, None, None)

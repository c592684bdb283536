"""The NVTabular workflow: the 51 features that join what the encoder answers.

The text's table of features names 44 of its 51: codes of three kinds, the users' numbers, values that a text holds
(`..._count_t`), rows that a key had (`..._count`), target encodings of five folds (`TE_...`), the time's parts, and
differences to the reader's row before (`..._DiffLag`). The other seven here are of fields that the challenge has: ages,
ratios, the day of the week, the seconds since the reader's row before, and how many media there are.

`DifferenceLag` subtracts another row of the data frame, and a served row has no neighbours: so each row brings what the
row before it held, and a `LambdaOp` subtracts it, to the same number.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from examples.compact.features import fit_workflow, transform
from examples.microparade import TARGETS
from examples.microparade.rows import BEFORE

__all__ = ["FEATURES", "KEYS", "RAW", "answers", "fit", "learned"]

KEYS = ("media", "tweet_type", "language", "a_user_id", "b_user_id")
FOLDS = 5
_USERS = [f"{side}_{name}" for side in "ab" for name in ("follower_count", "following_count")]
_FLAGS = ["a_is_verified", "b_is_verified", "b_follows_a"]
_TEXTS = {name: f"{name}_count_t" for name in ("hashtags", "domains", "links", "media")}
_MOST = 16  # values that are counted in a text
_TIMES = ("hour", "minute", "second", "weekday")

RAW = [
    *("media", "tweet_type", "language", "hashtags", "domains", "links", "timestamp"),
    *(f"{side}_{name}" for side in "ab" for name in ("user_id", "account_creation")),
    *_USERS,
    *_FLAGS,
    *(f"{name}_before" for name in BEFORE),
]
"""The raw columns that the workflow reads."""

FEATURES: tuple[str, ...] = (
    *("media", "tweet_type", "language"),
    *_USERS,
    *_FLAGS,
    *_TEXTS.values(),
    *(f"{key}_count" for key in KEYS),
    *(f"TE_{key}_{target}" for key in KEYS for target in TARGETS),
    *_TIMES,
    *(f"{name}_DiffLag" for name in BEFORE),
    *("a_age", "b_age", "a_ratio", "b_ratio"),
)
"""The workflow's columns that a net reads, in order."""


def fit(rows: pd.DataFrame, folder: Path) -> Any:
    """The workflow, fitted on rows to learn from; what it fits lies in a folder."""
    return fit_workflow(_graph(str(folder)), rows[[*RAW, *TARGETS]], folder)


def learned(workflow: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """The features of the rows that it was fitted on: each row's target encodings are of the other folds' rows."""
    return transform(workflow, rows[[*RAW, *TARGETS]])


def answers(workflow: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """The features of any rows, as they are answered: target encodings are of all rows that it was fitted on."""
    from merlin.dag.node import iter_nodes
    from nvtabular.ops import TargetEncoding

    workflow = copy.deepcopy(workflow)
    for node in iter_nodes([workflow.output_node]):
        if isinstance(node.op, TargetEncoding):
            node.op.kfold = 1
    return transform(workflow, rows[RAW].assign(**dict.fromkeys(TARGETS, 0.0)))  # it asks for targets, and reads none


def _graph(folder: str) -> Any:
    """The operators. Lambdas hold arithmetic only, so that the workflow can be compiled as well as run."""
    from nvtabular import ColumnSelector, ops

    kinds = ["media", "tweet_type"] >> ops.Categorify(out_path=folder)
    languages = ColumnSelector([("language", "language_before")]) >> ops.Categorify(out_path=folder)
    codes = (kinds["media"] >> ops.LambdaOp(lambda col: (col > 1) * 1)) + kinds["tweet_type"] + languages["language"]
    # over folds NVTabular counts a null key 0 times in all and some times in a fold, and may divide by 0
    keys = list(KEYS) >> ops.FillMissing(fill_val="")
    encoded = keys >> ops.TargetEncoding(list(TARGETS), kfold=FOLDS, p_smooth=20, out_path=folder)
    flags = _FLAGS >> ops.LambdaOp(lambda col: col * 1)
    numbers = codes + flags + _times() + _differences(languages) + _ages() + encoded
    return (numbers >> ops.Normalize()) + _counts(folder)


def _counts(folder: str) -> Any:
    """Numbers of no upper end, as logarithms: followers, values in a text, rows of a key."""
    from nvtabular import ops

    from examples.microparade.operators import CountTabs

    held = list(_TEXTS) >> CountTabs(_MOST) >> ops.Rename(f=_TEXTS.__getitem__)
    # a count is the sum of ones: JoinGroupby's own count cannot be transformed once a key is new. The keys go by other
    # names, since NVTabular keeps one file for a key's name, and TargetEncoding's would overwrite it
    ones = ["timestamp"] >> ops.LambdaOp(lambda col: col * 0 + 1) >> ops.Rename(name="rows")
    seen = list(KEYS) >> ops.Rename(f=lambda name: f"n_{name}")
    seen = seen >> ops.JoinGroupby(cont_cols=ones, stats=["sum"], out_path=folder) >> ops.FillMissing()
    seen = seen >> ops.Rename(f=lambda name: name.removeprefix("n_").replace("_rows_sum", "_count"))
    logs = (_USERS + held + seen) >> ops.Clip(min_value=0) >> ops.LogOp()
    # not to unit width: where a key's counts hardly differ, that would make much of a logarithm's rounding
    return logs >> ops.LambdaOp(lambda col: col / 4.0 - 1.0)


def _times() -> Any:
    """The parts of the time; Monday is day 0."""
    return (
        _derive("timestamp", "hour", lambda col: (col // 3600) % 24)
        + _derive("timestamp", "minute", lambda col: (col // 60) % 60)
        + _derive("timestamp", "second", lambda col: col % 60)
        + _derive("timestamp", "weekday", lambda col: (col // 86400 + 3) % 7)
    )


def _differences(languages: Any) -> Any:
    """What changed since the reader's row before: 0 where there is none, as where DifferenceLag's null is filled."""
    from nvtabular import ops

    def less(before: str) -> Any:
        return lambda col, df: col - df[before]

    names = [name for name in BEFORE if name != "language"]
    plain = [_derive(name, f"{name}_DiffLag", less(f"{name}_before"), f"{name}_before") for name in names]
    # a language may be null in a row before that there is
    both = languages + ["timestamp_before"]  # noqa: RUF005 - a graph's node, and no list
    codes = both >> ops.LambdaOp(lambda col, df: (col - df["language_before"]) * df["timestamp_before"].notna())
    # the square of what a client may send must stay a float32: LayerNorm takes it
    numbers = sum(plain[1:], plain[0]) >> ops.FillMissing() >> ops.Clip(min_value=-1e12, max_value=1e12)
    return numbers + (codes["language"] >> ops.Rename(name="language_DiffLag"))


def _ages() -> Any:
    """Ages of accounts in days, and followers for each that is followed."""
    from nvtabular import ops

    def age(col: Any, df: Any) -> Any:
        return (df["timestamp"] - col) / 86400.0

    def ratio(other: str) -> Any:
        return lambda col, df: col / (np.abs(df[other]) + 1.0)

    ages = [_derive(f"{side}_account_creation", f"{side}_age", age, "timestamp") for side in "ab"]
    ratios = [
        _derive(f"{side}_follower_count", f"{side}_ratio", ratio(f"{side}_following_count"), f"{side}_following_count")
        for side in "ab"
    ]
    return sum(ages[1:], ages[0]) + (sum(ratios[1:], ratios[0]) >> ops.FillMissing())


def _derive(source: str, name: str, f: Any, *needs: str) -> Any:
    """A column `name` that `f` makes of the column `source` and of the columns `needs`."""
    from nvtabular import ops

    return [source] >> ops.LambdaOp(f, dependency=list(needs) or None) >> ops.Rename(name=name)

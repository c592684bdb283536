"""The XGBoost forests of both stages: per target, in bags or per author group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from examples.recsys2021 import TARGETS

__all__ = ["columns_of", "fit", "predict"]

Floats = NDArray[np.float32]
Boosters = Sequence[Sequence[xgboost.Booster]]

BINS = 64
PARAMETERS = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "max_bin": BINS,
    "nthread": 1,
    "subsample": 0.8,
    "min_child_weight": 8,
}


def columns_of(step: str, columns: Sequence[str]) -> list[str]:
    """The workflow's columns that a step's forests read, in the workflow's order."""
    start = {
        "raw": ("a_f", "b_f", "a_age", "b_age", "c_", "author_group", "n_day", "text_tokens_"),
        "ratio": ("r_",),
        "encoded": ("TE_",),
        "sums": ("s_",),
    }
    kinds = {
        "xgb1": ("raw", "encoded"),
        "xgb2": ("raw", "encoded", "ratio"),
        "xgb3": ("raw", "ratio", "sums"),
        "xgb4": ("raw", "encoded", "sums"),
        "xgb5": ("raw", "encoded", "ratio"),
    }
    every = {"xgb1": ["r_a", "r_followers"], "xgb4": ["r_a", "r_followers"]}
    # the last two are for nets: a tree cuts hours and counts by itself
    dropped = {"n_day_sin", "n_day_cos", "c_quarter", "c_a_following_count"}
    wanted = tuple(prefix for kind in kinds[step] for prefix in start[kind])
    return [
        name for name in columns if name not in dropped and (name.startswith(wanted) or name in every.get(step, []))
    ]


def fit(
    folder: Path,
    values: Floats,
    names: Sequence[str],
    targets: NDArray[Any],
    *,
    trees: Sequence[int],
    labels: Sequence[str],
    parts: Sequence[NDArray[np.bool_]],
    parameters: dict[str, Any],
    seed: int,
    threads: int,
    step: Callable[[], None],
) -> list[list[xgboost.Booster]]:
    """Train a set of forests and save them as `<folder>/<target><label>.ubj`.

    Args:
        folder: made here.
        values: [rows, names].
        names: the features' names.
        targets: [rows, 4], 0 or 1.
        trees: per target.
        labels: one per forest of a target: "" or "-<bag>" or "-<group>".
        parts: per label, which rows its forests learn from.
        parameters: XGBoost's, beside PARAMETERS.
        seed: of the first forest; each further one adds 1.
        threads: forests trained at the same time, each in one thread.
        step: called after each forest.

    Returns:
        Per target, one forest per label.
    """
    folder.mkdir()

    def train(job: tuple[int, int]) -> xgboost.Booster:
        target, label = job
        part = parts[label]
        rows = xgboost.QuantileDMatrix(
            values[part], targets[part, target], feature_names=list(names), max_bin=BINS, nthread=1
        )
        booster = xgboost.train(
            {**PARAMETERS, **parameters, "seed": seed + target * len(labels) + label}, rows, trees[target]
        )
        booster.save_model(folder / f"{TARGETS[target]}{labels[label]}.ubj")
        step()
        return booster

    jobs = [(target, label) for target in range(len(TARGETS)) for label in range(len(labels))]
    with ThreadPoolExecutor(threads) as pool:
        made = list(pool.map(train, jobs))
    return [made[at : at + len(labels)] for at in range(0, len(made), len(labels))]


def predict(boosters: Boosters, values: Floats, group: NDArray[Any] | None = None) -> Floats:
    """Probabilities [rows, 4]: the mean of a target's bags, or with `group` [rows] the forest of the row's group."""
    made = np.zeros((len(values), len(TARGETS)), np.float32)
    for target, forests in enumerate(boosters):
        if group is None:
            made[:, target] = np.mean([_answers(forest, values) for forest in forests], axis=0, dtype=np.float32)
            continue
        for index, forest in enumerate(forests):
            rows = group == index
            if rows.any():
                made[rows, target] = _answers(forest, values[rows])
    return made


def _answers(forest: xgboost.Booster, values: Floats) -> Floats:
    return np.asarray(forest.inplace_predict(values, validate_features=False), np.float32)

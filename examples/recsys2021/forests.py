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
from examples.recsys2021.kept import aside

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
}
PREFIXES = {
    "raw": ("a_f", "b_f", "a_age", "b_age", "c_", "author_group", "n_day", "text_tokens_"),
    "spare": (),
    "ratio": ("r_",),
    "encoded": ("TE_",),
    "sums": ("s_",),
    "more sums": ("x3_",),
    "xgb2's": ("x2_",),
    "xgb4's": ("x4_",),
    "xgb5's": ("x5_", "rev_", "ce_"),
}
SPARE = {"n_day_sin", "c_quarter", "c_a_following_count"}
DROPPED = {"n_day_cos", *SPARE}  # for nets: a tree cuts hours and counts by itself
TWO_RATIOS = ("r_a", "r_followers")
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "xgb1": (("raw", "encoded"), TWO_RATIOS),
    "xgb2": (("raw", "encoded", "ratio"), ()),
    "xgb3": (("raw", "ratio", "sums"), ()),
    "xgb4": (("raw", "encoded", "sums"), TWO_RATIOS),
    "xgb5": (("raw", "encoded", "ratio"), ()),
}
OWN_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "xgb1": (("raw", "encoded"), TWO_RATIOS),  # 70 columns
    "xgb2": (("raw", "spare", "ratio", "xgb2's"), ()),  # 79
    "xgb3": (("raw", "spare", "ratio", "sums", "more sums"), ()),  # 68
    "xgb4": (("raw", "spare", "sums", "more sums", "xgb4's"), TWO_RATIOS),  # 90, and 24 predictions
    "xgb5": (("raw", "encoded", "xgb5's"), TWO_RATIOS),  # 134, and 20 predictions
}


def columns_of(step: str, columns: Sequence[str], own: bool = False) -> list[str]:
    """The workflows' columns that a step's forests read, in the workflows' order.

    Args:
        step: its name.
        columns: all there are.
        own: whether each family of forests has statistics of its own (`Sizes.own_statistics`).
    """
    kinds, ratios = OWN_KINDS[step] if own else KINDS[step]
    wanted = tuple(prefix for kind in kinds for prefix in PREFIXES[kind])
    dropped = DROPPED - (SPARE if "spare" in kinds else set())
    return [name for name in columns if name not in dropped and (name.startswith(wanted) or name in ratios)]


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
    """Train a set of forests and save them as `<folder>/<target><label>.ubj`; those that are there are read.

    Args:
        folder: made here, if it is not there.
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
    folder.mkdir(exist_ok=True)

    def train(job: tuple[int, int]) -> xgboost.Booster:
        target, label = job
        file = folder / f"{TARGETS[target]}{labels[label]}.ubj"
        if file.is_file():
            step()
            return xgboost.Booster(model_file=file, params={"nthread": 1})
        part = parts[label]
        rows = xgboost.QuantileDMatrix(
            values[part], targets[part, target], feature_names=list(names), max_bin=BINS, nthread=1
        )
        booster = xgboost.train(
            {**PARAMETERS, **parameters, "seed": seed + target * len(labels) + label}, rows, trees[target]
        )
        with aside(file) as part:
            booster.save_model(part)
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

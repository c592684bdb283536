"""XGBoost, level by level and leaf by leaf, and CatBoost: trained on log loss, stopped by the held fold's AUC."""

from __future__ import annotations

from typing import Any

import catboost
import numpy as np
import xgboost
from numpy.typing import NDArray

from examples.toss_ctr.folds import Features, Fold
from examples.toss_ctr.rows import CODES, NUMBERS
from examples.toss_ctr.sizes import Sizes

__all__ = ["ask", "catboost_trees", "depthwise", "lossguide"]

NAMES = [*CODES, *NUMBERS]
BINS = 128


def depthwise(sizes: Sizes, fold: Fold, clicked: NDArray[np.float32], seed: int) -> xgboost.Booster:
    """XGBoost, all leaves of a level split together."""
    return _xgboost(sizes, fold, clicked, {"grow_policy": "depthwise", "max_depth": sizes.depth, "seed": seed})


def lossguide(sizes: Sizes, fold: Fold, clicked: NDArray[np.float32], seed: int) -> xgboost.Booster:
    """XGBoost, always the leaf that gains most: trees of any depth."""
    grow = {"grow_policy": "lossguide", "max_depth": 0, "max_leaves": sizes.leaves}
    return _xgboost(sizes, fold, clicked, {**grow, "seed": seed})


def _xgboost(sizes: Sizes, fold: Fold, clicked: NDArray[np.float32], grow: dict[str, Any]) -> xgboost.Booster:
    """Trained with the weight of clicks that makes them as heavy as all else, and no row left out."""
    values = fold.features.of_forest(fold.learn)
    learn = xgboost.QuantileDMatrix(values, clicked[fold.learn], feature_names=NAMES, max_bin=BINS)
    held = xgboost.QuantileDMatrix(
        fold.features.of_forest(fold.held), clicked[fold.held], feature_names=NAMES, ref=learn, max_bin=BINS
    )
    parameters = {
        "objective": "binary:logistic",
        "eval_metric": "auc",
        "tree_method": "hist",
        "max_bin": BINS,
        "nthread": sizes.threads,
        "learning_rate": sizes.learning_rate,
        "subsample": 0.8,
        "colsample_bytree": 0.6,
        "scale_pos_weight": _weight(clicked),
        **grow,
    }
    booster = xgboost.train(
        parameters, learn, sizes.trees, evals=[(held, "held")], early_stopping_rounds=sizes.stop, verbose_eval=False
    )
    return booster[: booster.best_iteration + 1]


def catboost_trees(sizes: Sizes, fold: Fold, clicked: NDArray[np.float32], seed: int) -> catboost.CatBoostClassifier:
    """CatBoost, every level of a tree with one split."""
    model = catboost.CatBoostClassifier(
        iterations=sizes.trees,
        learning_rate=sizes.learning_rate,
        depth=sizes.depth,
        border_count=BINS,
        thread_count=sizes.threads,
        scale_pos_weight=_weight(clicked),
        eval_metric="AUC",
        early_stopping_rounds=sizes.stop_catboost,
        random_seed=seed,
        logging_level="Silent",
        allow_writing_files=False,
    )
    learn, held = (
        catboost.Pool(fold.features.of_forest(rows), clicked[rows], feature_names=NAMES)
        for rows in (fold.learn, fold.held)
    )
    return model.fit(learn, eval_set=held)


def ask(forest: Any, features: Features, rows: Any = slice(None)) -> NDArray[np.float32]:
    """The library's own answer: the logit of a click, [rows]."""
    values = features.of_forest(rows)
    if isinstance(forest, xgboost.Booster):
        answers = forest.inplace_predict(values, predict_type="margin", validate_features=False)
    else:
        answers = forest.predict(values, prediction_type="RawFormulaVal")
    return np.asarray(answers, np.float32)


def _weight(clicked: NDArray[np.float32]) -> float:
    return float((clicked == 0).sum() / (clicked > 0).sum())

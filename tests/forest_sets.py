"""Steps' forests of every kind, trained with the libraries: what every engine is tried on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas as pd
import xgboost
from forest_parity import rows_of
from sklearn import ensemble

from tristage.export.forest import ForestSet, read_forests

WIDTH = 6
ROWS = rows_of(7, 400, WIDTH)
FULL = np.nan_to_num(ROWS)
LABELS = (FULL[:, 0] + FULL[:, 1] ** 2 + np.random.default_rng(7).normal(size=400) > 0.5).astype(np.float32)
CATEGORIES = np.where(np.arange(WIDTH) == 2, np.arange(400)[:, None] * 7 % 13, ROWS).astype(np.float32)
FRAME = pd.DataFrame(ROWS, columns=list("abcdef")).assign(c=pd.Categorical(np.arange(400) * 7 % 13 * 5))


def booster(seed: int = 0, rounds: int = 12, labels: Any = LABELS, **options: Any) -> xgboost.Booster:
    options = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1, "seed": seed, "subsample": 0.7, **options}
    return xgboost.train(options, xgboost.DMatrix(ROWS, labels), rounds)


def categorical(rows: Any = CATEGORIES, **options: Any) -> xgboost.Booster:
    kinds = {} if isinstance(rows, pd.DataFrame) else {"feature_types": ["q", "q", "c", "q", "q", "q"]}
    data = xgboost.DMatrix(rows, LABELS, enable_categorical=True, **kinds)
    return xgboost.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1, **options}, data, 12)


def one(model: Any, **options: Any) -> ForestSet:
    return read_forests("f", model, (), grouped=False, **options)


def of_targets(**options: Any) -> ForestSet:
    bags = {"like": [booster(1), booster(2, 5)], "reply": [booster(3), booster(4), booster(5)]}
    return read_forests("f", bags, ("reply", "like"), grouped=False, **options)


def of_groups(**options: Any) -> ForestSet:
    groups = {str(group): {"like": [booster(group), booster(group + 9)]} for group in (2, 7, 11)}
    return read_forests("f", groups, ("like",), grouped=True, **options)


def lightgbm_of(**options: Any) -> Any:
    labels = options.pop("labels", LABELS)
    data = lightgbm.Dataset(CATEGORIES, labels, categorical_feature=options.pop("categorical", []), free_raw_data=False)
    return lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1, **options}, data, 12)


THREE = np.arange(400) * 7 // 3 % 3

SETS: dict[str, Callable[[], ForestSet]] = {
    "binary": lambda: one(booster()),
    "regression": lambda: one(booster(objective="reg:squarederror", base_score=1e3)),
    "poisson": lambda: one(booster(objective="count:poisson")),
    "dart": lambda: one(booster(booster="dart", rate_drop=0.3)),
    "multiclass": lambda: one(booster(objective="multi:softprob", num_class=3, labels=THREE)),
    "labels": lambda: one(booster(objective="multi:softmax", num_class=3, labels=THREE)),
    "hinge": lambda: one(booster(objective="binary:hinge")),
    "two outputs": lambda: one(booster(objective="reg:squarederror", labels=FULL[:, :2])),
    "no rounds": lambda: one(xgboost.XGBClassifier(n_estimators=1, max_depth=1, gamma=1e9).fit(ROWS, LABELS)),
    "stopped": lambda: one(
        xgboost.XGBClassifier(n_estimators=30, early_stopping_rounds=2, n_jobs=1).fit(
            ROWS[:200], LABELS[:200], eval_set=[(ROWS[200:], LABELS[200:])], verbose=False
        )
    ),
    "categories": lambda: one(categorical()),
    "categories of a frame": lambda: one(categorical(FRAME)),
    "margins": lambda: one(booster(), margins=True),
    "targets": of_targets,
    "targets, mean margins": lambda: of_targets(average="margins", margins=True),
    "groups": of_groups,
    "groups, margins": lambda: of_groups(margins=True),
    "lightgbm": lambda: one(lightgbm_of()),
    "lightgbm multiclass": lambda: one(lightgbm_of(objective="multiclass", num_class=3, labels=THREE)),
    "lightgbm categories": lambda: one(lightgbm_of(categorical=[2], min_data_per_group=5)),
    "catboost": lambda: one(catboost.CatBoostClassifier(12, verbose=0, allow_writing_files=False).fit(ROWS, LABELS)),
    "random forest": lambda: one(ensemble.RandomForestClassifier(12, random_state=0).fit(FULL, LABELS)),
    "random forest of three": lambda: one(ensemble.RandomForestClassifier(12, random_state=0).fit(FULL, THREE)),
    "isolation forest": lambda: one(ensemble.IsolationForest(n_estimators=12, random_state=0).fit(FULL)),
    "libraries": lambda: read_forests("f", {"like": [booster(), lightgbm_of()]}, ("like",), grouped=False),
}

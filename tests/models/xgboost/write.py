"""Writes the model files of this folder, with the XGBoost versions whose files tristage reads, and what they answer.

`python tests/models/xgboost/write.py` makes an environment for each version and runs itself in it. The files are kept
in git, so that the tests need none of these environments.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
# XGBoost -> what is installed with it
VERSIONS = {
    "1.7.6": ["xgboost==1.7.6", "numpy==1.26.4", "scipy==1.14.1", "scikit-learn==1.2.2"],
    "2.1.4": ["xgboost-cpu==2.1.4", "numpy==1.26.4", "scipy==1.14.1", "scikit-learn==1.5.2"],
    "3.0.5": ["xgboost-cpu==3.0.5", "numpy==1.26.4", "scipy==1.14.1", "scikit-learn==1.5.2"],
    "3.2.0": ["xgboost-cpu==3.2.0", "numpy==1.26.4", "scipy==1.14.1", "scikit-learn==1.5.2"],
}
NAMES = ["user", "n_age", "kind", "n_ratio"]
KIND = 2  # the column of whole numbers that are categories


def make_rows(count: int, seed: int) -> np.ndarray:
    """Rows with missing values; from the second 50 on, categories that training did not see."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, len(NAMES))).astype(np.float32)
    rows[random.random(rows.shape) < 0.15] = np.nan
    rows[:, KIND] = random.integers(0, 12, count)
    return rows


def short(answers: np.ndarray) -> Any:
    """float32 values as lists of the shortest numbers that are they."""
    texts = [np.format_float_scientific(value) for value in answers.astype(np.float32).ravel()]
    return np.array(texts, float).reshape(answers.shape).tolist()


def write(folder: Path) -> None:
    """Train small models with the XGBoost that is installed; write them, and their answers to the rows of rows.npy."""
    import xgboost

    folder.mkdir(exist_ok=True)
    rows, asked = make_rows(300, 1), np.load(HERE / "rows.npy")
    random = np.random.default_rng(2)
    label = (np.nan_to_num(rows[:, 0]) + (rows[:, KIND] % 3 == 1) + random.normal(size=300) / 3 > 0.7).astype(
        np.float32
    )
    classes = random.integers(0, 3, 300)
    answers: dict[str, Any] = {}

    def booster(file: str, labels: Any = label, names: Any = NAMES, types: Any = None, **options: Any) -> None:
        options = {"max_depth": 2, "nthread": 1, "tree_method": "hist", **options}
        more = {"feature_names": names, "feature_types": types, "enable_categorical": types is not None}
        model = xgboost.train(options, xgboost.DMatrix(rows, labels, **more), num_boost_round=3)
        model.save_model(folder / file)
        answers[file] = short(model.predict(xgboost.DMatrix(asked, **more)))

    categorical = ["q", "q", "c", "q"]
    booster("binary.ubj", objective="binary:logistic")
    booster("binary.json", objective="binary:logistic", base_score=0.2, names=None)
    booster("softprob.ubj", labels=classes, objective="multi:softprob", num_class=3)
    booster("softmax.json", labels=classes, objective="multi:softmax", num_class=3)
    booster("regression.json", labels=label * 100 + 1000, objective="reg:squarederror")
    booster("poisson.ubj", objective="count:poisson")
    booster("ranking.ubj", objective="rank:pairwise")
    booster("dart.ubj", objective="binary:logistic", booster="dart", rate_drop=0.5)
    booster("forest.ubj", objective="binary:logistic", num_parallel_tree=3, subsample=0.5)
    booster("two_targets.ubj", labels=np.stack([label, classes], 1), objective="reg:squarederror")
    booster("one_hot.ubj", objective="binary:logistic", types=categorical, max_cat_to_onehot=50)
    booster("categories.json", objective="binary:logistic", types=categorical, max_cat_to_onehot=1)
    stopped = xgboost.XGBClassifier(n_estimators=25, max_depth=2, n_jobs=1, early_stopping_rounds=5)
    noise = random.integers(0, 2, 300)
    stopped.fit(rows[:200], noise[:200], eval_set=[(rows[200:], noise[200:])], verbose=False)
    assert stopped.best_iteration + 1 < stopped.get_booster().num_boosted_rounds()
    for file in ("stopped.ubj", "stopped.json"):
        stopped.save_model(folder / file)
        answers[file] = short(stopped.predict_proba(asked)[:, 1])
    (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")


def main() -> None:
    """Write every version's models."""
    sys.path.append(str(HERE.parents[1]))
    from environments import python_with

    asked = make_rows(60, 3)
    asked[50:, KIND] = [-1, 12, 13, 99, 2.7, np.nan, 1e9, 3, 4, 5]
    np.save(HERE / "rows.npy", asked)
    for version, requirements in VERSIONS.items():
        subprocess.run([python_with(*requirements), __file__, HERE / version], check=True)


if __name__ == "__main__":
    write(Path(sys.argv[1])) if len(sys.argv) > 1 else main()

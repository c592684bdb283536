"""LightGBM forests: equal to lightgbm on awkward rows; what can't be equal is refused by the feature's name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from forest_parity import agree, around, awkward, rows_of

from tristage.errors import ArtifactError
from tristage.export.forest import read_forests

WIDTH = 6
RNG = np.random.default_rng(7)
ROWS = rows_of(7, 500, WIDTH)
ROWS[RNG.random(ROWS.shape) < 0.1] = 0
ROWS[:, 5] = RNG.integers(0, 40, 500)
LABELS = (np.nan_to_num(ROWS[:, 0]) + (ROWS[:, 5] % 3) + RNG.normal(size=500) > 1.2).astype(np.float32)
CLASSES = RNG.integers(0, 3, 500)
EVERY = awkward(ROWS)


def train(
    rounds: int = 8, labels: np.ndarray = LABELS, rows: Any = ROWS, data: dict[str, Any] | None = None, **options: Any
) -> lightgbm.Booster:
    options = {"verbose": -1, "num_threads": 1, "num_leaves": 15, "min_data_in_leaf": 3, **options}
    return lightgbm.train(options, lightgbm.Dataset(rows, labels, **(data or {})), rounds)


def check(booster: lightgbm.Booster, every: list[np.ndarray] = EVERY) -> Any:
    margins = lambda rows: booster.predict(rows, raw_score=True)  # noqa: E731
    return agree(booster, every, booster.predict, None if booster.params.get("boosting") == "rf" else margins)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "binary"},
        {"objective": "binary", "sigmoid": 0.7},
        {"objective": "binary", "is_unbalance": True},
        {"objective": "cross_entropy"},
        {"objective": "cross_entropy_lambda"},
        {"objective": "regression"},
        {"objective": "regression", "reg_sqrt": True, "labels": LABELS * 7},
        {"objective": "regression", "labels": LABELS * 100 + 1e4},
        {"objective": "regression_l1"},
        {"objective": "huber"},
        {"objective": "fair"},
        {"objective": "quantile", "alpha": 0.3},
        {"objective": "mape"},
        {"objective": "poisson"},
        {"objective": "gamma", "labels": LABELS + 0.5},
        {"objective": "tweedie"},
        {"objective": "multiclass", "num_class": 3, "labels": CLASSES},
        {"objective": "multiclassova", "num_class": 3, "labels": CLASSES, "sigmoid": 1.7},
        {"objective": "lambdarank", "labels": CLASSES, "data": {"group": [100] * 5}},
        {"objective": "rank_xendcg", "labels": CLASSES, "data": {"group": [100] * 5}},
        {"objective": "binary", "boosting": "dart"},
        {"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6},
        {"objective": "multiclass", "num_class": 3, "labels": CLASSES, "boosting": "rf", "bagging_freq": 1,
         "bagging_fraction": 0.6},
        {"objective": "binary", "data_sample_strategy": "goss"},
        {"objective": "binary", "extra_trees": True},
        {"objective": "binary", "use_missing": False},
        {"objective": "binary", "rows": np.nan_to_num(ROWS)},
        {"objective": "binary", "min_data_in_leaf": 10_000},
        {"objective": lambda predictions, data: (predictions - data.get_label(), np.ones_like(predictions))},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values() if isinstance(value, (str, float, int))),
)  # fmt: skip
def test_kinds(options: dict[str, Any]) -> None:
    check(train(**options))


def test_many_trees() -> None:
    check(train(400, objective="binary", learning_rate=0.02))


def test_thresholds_are_hit_exactly() -> None:
    booster = train(30, objective="regression")
    frame = booster.trees_to_dataframe()
    thresholds = pd.to_numeric(frame["threshold"].dropna())
    rows = around(thresholds, WIDTH)
    # thresholds that no float32 value equals, among them 1.0000000180025095e-35, where rounding decides
    assert (thresholds.astype(np.float32).astype(float) != thresholds).sum() > 20
    check(booster, [rows])


class TestCategories:
    @pytest.mark.parametrize("options", [{}, {"max_cat_to_onehot": 100}, {"min_data_per_group": 1, "cat_smooth": 0}])
    @pytest.mark.parametrize("nulls", [False, True])
    def test_numbers(self, options: dict[str, Any], nulls: bool) -> None:
        rows = ROWS.copy()
        rows[::7, 5] = np.nan if nulls else rows[::7, 5]
        booster = train(objective="binary", rows=rows, data={"categorical_feature": [5]}, **options)
        assert booster.trees_to_dataframe()["decision_type"].eq("==").any()
        categories = rows[:60].copy()
        categories[:, 5] = np.arange(-10, 50)  # those that training saw, and others
        fractions = categories + np.float32(0.5)
        forest = check(booster, [*EVERY, categories, fractions, categories - np.float32(1e-3)])
        assert forest.categories == "trunc"

    def test_many(self) -> None:
        rows = ROWS.copy()
        rows[:, 5] = RNG.integers(0, 3000, 500)
        labels = (rows[:, 5] % 7 < 3).astype(float)
        booster = train(
            objective="binary", rows=rows, labels=labels, data={"categorical_feature": [5]},
            min_data_per_group=1, cat_smooth=0, max_cat_threshold=1000, min_data_in_bin=1,
        )  # fmt: skip
        every = np.repeat(rows[:1], 3100, axis=0)
        every[:, 5] = np.arange(-50, 3050)
        check(booster, [every])

    def test_too_large(self) -> None:
        rows = ROWS.astype(np.float64)
        rows[:, 5] = rows[:, 5] + 2**24
        names = [*"abcde", "author"]
        booster = train(objective="binary", rows=rows, data={"categorical_feature": [5], "feature_name": names})
        with pytest.raises(
            ArtifactError, match=r"step f: feature author has the category 16777\d+; features travel as"
        ):
            read_forests("f", booster, (), grouped=False)

    def frame(self, values: list[Any]) -> pd.DataFrame:
        frame = pd.DataFrame(ROWS, columns=list("abcdef"))
        return frame.assign(f=pd.Categorical(RNG.choice(np.array(values, object), len(frame)), categories=values))

    def test_of_a_frame(self) -> None:
        frame = self.frame([3, 11, 12, 40, 7, 0])
        labels = frame["f"].isin([3, 0, 12]).to_numpy().astype(float)
        booster = train(objective="binary", rows=frame, labels=labels, min_data_per_group=1, cat_smooth=0)

        def ask(rows: np.ndarray) -> Any:
            asked = pd.DataFrame(rows, columns=list("abcdef"))
            asked["f"] = pd.Categorical(asked["f"], categories=sorted(asked["f"].dropna().unique()))
            return booster.predict(asked)

        rows = np.repeat(ROWS[:1], 50, axis=0)
        rows[:, 5] = np.arange(-5, 45)
        forest = agree(booster, [*EVERY, rows, rows + np.float32(0.5)], ask)
        assert forest.names == tuple("abcdef")
        assert forest.categories == "exact"

    @pytest.mark.parametrize("values", [["x", "y", "z"], [0.5, 1.5, 2.5], [-1, 0, 1], [True, False], [1, 2, 2**25]])
    def test_of_a_frame_refused(self, values: list[Any]) -> None:
        booster = train(objective="binary", rows=self.frame(values))
        with pytest.raises(ArtifactError, match=r"step f: feature f has the category .*number them"):
            read_forests("f", booster, (), grouped=False)

    def test_of_a_frame_beside_numbers(self) -> None:
        frame = self.frame([1, 2, 3]).assign(e=RNG.integers(0, 4, len(ROWS)))
        booster = train(objective="binary", rows=frame, data={"categorical_feature": ["e", "f"]})
        with pytest.raises(ArtifactError, match=r"step f: .*which of its categorical features \(e, f\)"):
            read_forests("f", booster, (), grouped=False)


class TestWrappers:
    def test_classifier(self) -> None:
        model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(ROWS, LABELS)
        agree(model, [ROWS], lambda rows: model.predict_proba(rows)[:, 1])

    def test_multiclass(self) -> None:
        model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(ROWS, CLASSES)
        assert agree(model, [ROWS], model.predict_proba).outputs == 3

    def test_regressor(self) -> None:
        model = lightgbm.LGBMRegressor(n_estimators=5, verbose=-1, objective="poisson").fit(ROWS, LABELS * 3)
        agree(model, [ROWS], model.predict)

    def test_ranker(self) -> None:
        model = lightgbm.LGBMRanker(n_estimators=5, verbose=-1).fit(ROWS, CLASSES, group=[100] * 5)
        agree(model, [ROWS], model.predict)

    def test_early_stopping(self, tmp_path: Path) -> None:
        noise = RNG.integers(0, 2, 500)
        model = lightgbm.LGBMClassifier(n_estimators=60, verbose=-1)
        stop = lightgbm.early_stopping(20, verbose=False)
        model.fit(ROWS[:300], noise[:300], eval_X=ROWS[300:], eval_y=noise[300:], callbacks=[stop])
        assert 0 < model.best_iteration_ < 40

        def expected(rows: np.ndarray) -> Any:
            return model.predict_proba(rows)[:, 1]

        agree(model, [ROWS], expected)
        agree(model.booster_, [ROWS], expected)
        model.booster_.save_model(tmp_path / "m.txt")
        agree(tmp_path / "m.txt", [ROWS], expected)

    def test_best_iteration_of_a_booster(self) -> None:
        booster = train(20, objective="binary")
        every = booster.predict(ROWS)
        booster.best_iteration = 5
        assert np.abs(booster.predict(ROWS) - every).max() > 0.01
        check(booster)

    def test_unfitted(self) -> None:
        with pytest.raises(ArtifactError, match=r"step f: the LGBMRegressor is not fitted"):
            read_forests("f", lightgbm.LGBMRegressor(), (), grouped=False)


def test_names(tmp_path: Path) -> None:
    assert agree(train(), [ROWS]).names is None
    names = [f"features.{number}" for number in range(WIDTH)]
    booster = train(data={"feature_name": names})
    assert agree(booster, [ROWS]).names == tuple(names)
    booster.save_model(tmp_path / "m.txt")
    assert agree(tmp_path / "m.txt", EVERY, booster.predict).names == tuple(names)


class TestRefused:
    def test_linear_leaves(self) -> None:
        booster = train(objective="regression", linear_tree=True, rows=np.nan_to_num(ROWS))
        with pytest.raises(ArtifactError, match=r"step f: its leaves are linear models; train it without linear_tree"):
            read_forests("f", booster, (), grouped=False)

    def test_zeros_for_missing_values(self) -> None:
        booster = train(objective="binary", zero_as_missing=True, data={"feature_name": list("uvwxyz")})
        with pytest.raises(
            ArtifactError, match=r"step f: feature [u-z] has zeros for missing values; .*zero_as_missing"
        ):
            read_forests("f", booster, (), grouped=False)

    def test_other_objects(self) -> None:
        with pytest.raises(ArtifactError, match=r"step f: a Dataset is no LightGBM model"):
            read_forests("f", lightgbm.Dataset(ROWS), (), grouped=False)

    @pytest.mark.parametrize(
        "content", [b"x", b"tree\nversion=v4\n", b"\x00\x01\x02", b"tree\ntree_sizes=100\n\nTree=0\n"]
    )
    def test_garbage(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.txt").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"step f: .*m\.txt is no whole model of LightGBM"):
            read_forests("f", tmp_path / "m.txt", (), grouped=False)

    def test_cut_off_anywhere(self, tmp_path: Path) -> None:
        # in a process of its own: LightGBM ends the process that reads one
        path = tmp_path / "m.txt"
        train(4, data={"categorical_feature": [5]}).save_model(path)
        whole = len(path.read_bytes()) - len(re.search(rb"\npandas_categorical.*$", path.read_bytes(), re.S).group())
        script = f"""
from pathlib import Path
from tristage.errors import ArtifactError
from tristage.export.forest import read_forests
path = Path({str(path)!r})
content = path.read_bytes()
kept = 0
for length in range(1, {whole} - 1, 13):
    path.write_bytes(content[:length])
    try:
        read_forests("f", path, (), grouped=False)
        kept += 1
    except ArtifactError as error:
        assert "m.txt is no whole model" in str(error), error
print("refused all but", kept)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "refused all but 0", done.stdout

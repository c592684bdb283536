"""scikit-learn forests: equal to scikit-learn on awkward rows; what can't be equal is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pandas as pd
import pytest
from forest_parity import ODD, agree, around, awkward, rows_of
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from tristage.errors import ArtifactError, StackError
from tristage.export.forest import read_forests

WIDTH = 6
RNG = np.random.default_rng(7)
GAPS = rows_of(7, 400, WIDTH)
ROWS = np.nan_to_num(GAPS)
LABELS = (ROWS[:, 0] + ROWS[:, 1] ** 2 + RNG.normal(size=400) > 0.5).astype(int)
CLASSES = RNG.integers(0, 3, 400)
VALUES = LABELS * 3.0 + RNG.random(400)
# what scikit-learn takes: infinity nowhere but in histograms, missing values not in GradientBoosting
FINITE, WHOLE = awkward(GAPS, ODD[~np.isinf(ODD)]), awkward(ROWS, ODD[np.isfinite(ODD)])
EVERY = awkward(GAPS)

AVERAGED = [(RandomForestClassifier, RandomForestRegressor), (ExtraTreesClassifier, ExtraTreesRegressor)]


def second(model: Any) -> Any:
    return lambda rows: model.predict_proba(rows)[:, 1]


@pytest.mark.parametrize("pair", AVERAGED, ids=["random", "extra"])
class TestAveraged:
    @pytest.mark.parametrize("rows", [ROWS, GAPS], ids=["whole", "gaps"])
    def test_two_classes(self, pair: Any, rows: np.ndarray) -> None:
        model = pair[0](n_estimators=9, random_state=0).fit(rows, LABELS)
        forest = agree(model, FINITE, second(model))
        assert forest.outputs == 1
        assert forest.margins is None

    @pytest.mark.parametrize(
        "options",
        [
            {"class_weight": "balanced"},
            {"max_depth": 1},
            {"max_leaf_nodes": 7, "bootstrap": False},
            {"n_estimators": 1},
        ],
        ids=str,
    )
    def test_options(self, pair: Any, options: dict[str, Any]) -> None:
        model = pair[0](**{"n_estimators": 9, "random_state": 0, **options}).fit(ROWS, LABELS)
        agree(model, FINITE, second(model))

    def test_classes(self, pair: Any) -> None:
        model = pair[0](n_estimators=9, random_state=0).fit(GAPS, np.array(["x", "y", "z"])[CLASSES])
        assert agree(model, FINITE, model.predict_proba).outputs == 3

    def test_two_targets_of_two_classes(self, pair: Any) -> None:
        model = pair[0](n_estimators=9, random_state=0).fit(ROWS, np.stack([LABELS, CLASSES > 0, 1 - LABELS], 1))
        forest = agree(model, FINITE, lambda rows: np.stack([p[:, 1] for p in model.predict_proba(rows)], 1))
        assert forest.outputs == 3

    def test_regression(self, pair: Any) -> None:
        model = pair[1](n_estimators=9, random_state=0).fit(GAPS, VALUES * 1000)
        agree(model, FINITE, model.predict)

    def test_two_values(self, pair: Any) -> None:
        model = pair[1](n_estimators=9, random_state=0).fit(ROWS, np.stack([VALUES, -VALUES], 1))
        assert agree(model, FINITE, model.predict).outputs == 2

    def test_many_trees(self, pair: Any) -> None:
        model = pair[1](n_estimators=300, random_state=0, n_jobs=1).fit(ROWS, VALUES)
        agree(model, WHOLE, model.predict)

    def test_thresholds_are_hit_exactly(self, pair: Any) -> None:
        model = pair[0](n_estimators=20, random_state=0).fit(ROWS, CLASSES)
        thresholds = np.concatenate([tree.tree_.threshold for tree in model.estimators_])
        assert (thresholds.astype(np.float32) != thresholds).sum() > 100
        agree(model, [around(thresholds, WIDTH)], model.predict_proba)

    def test_more_asked_for_than_trained(self, pair: Any) -> None:
        model = pair[0](n_estimators=5, random_state=0).fit(ROWS, CLASSES)
        model.set_params(n_estimators=50)
        agree(model, FINITE, model.predict_proba)

    def test_refused(self, pair: Any) -> None:
        for labels, words in (
            (np.zeros(400), "trained on one class alone"),
            (np.stack([CLASSES, LABELS], 1), "several targets of several classes; train one for each target"),
        ):
            model = pair[0](n_estimators=2).fit(ROWS, labels)
            with pytest.raises(ArtifactError, match=rf"step f: the {type(model).__name__} .*{words}"):
                read_forests("f", model, (), grouped=False)

    def test_no_margins(self, pair: Any) -> None:
        model = pair[0](n_estimators=2).fit(ROWS, LABELS)
        with pytest.raises(StackError, match=r"step f: its forests average their trees' answers and have no margins"):
            read_forests("f", model, (), grouped=False, margins=True)


class TestGradientBoosting:
    @pytest.mark.parametrize(
        "options", [{}, {"loss": "exponential"}, {"init": "zero"}, {"subsample": 0.5}, {"max_depth": 7}], ids=str
    )
    def test_two_classes(self, options: dict[str, Any]) -> None:
        model = GradientBoostingClassifier(n_estimators=9, random_state=0, **options).fit(ROWS, LABELS)
        agree(model, WHOLE, second(model), model.decision_function)

    @pytest.mark.parametrize("init", [None, "zero"])
    def test_classes(self, init: Any) -> None:
        model = GradientBoostingClassifier(n_estimators=9, random_state=0, init=init).fit(ROWS, CLASSES)
        assert agree(model, WHOLE, model.predict_proba, model.decision_function).outputs == 3

    @pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber", "quantile"])
    def test_regression(self, loss: str) -> None:
        model = GradientBoostingRegressor(n_estimators=9, random_state=0, loss=loss).fit(ROWS, VALUES)
        agree(model, WHOLE, model.predict, model.predict)

    def test_early_stopping(self) -> None:
        model = GradientBoostingRegressor(n_estimators=200, random_state=0, n_iter_no_change=2)
        model.fit(ROWS, RNG.random(400))
        assert model.n_estimators_ < 200
        agree(model, WHOLE, model.predict)

    def test_many_trees(self) -> None:
        model = GradientBoostingClassifier(n_estimators=300, random_state=0).fit(ROWS, LABELS)
        agree(model, WHOLE, second(model), model.decision_function)

    def test_thresholds_are_hit_exactly(self) -> None:
        model = GradientBoostingClassifier(n_estimators=30, random_state=0).fit(ROWS, LABELS)
        rows = around(np.concatenate([tree.tree_.threshold for tree in model.estimators_.ravel()]), WIDTH)
        agree(model, [rows], second(model))

    def test_start_of_its_own(self) -> None:
        model = GradientBoostingRegressor(n_estimators=2, init=RandomForestRegressor(n_estimators=2)).fit(ROWS, VALUES)
        with pytest.raises(ArtifactError, match=r"step f: .* starts from an estimator of its own \(RandomForestRegr"):
            read_forests("f", model, (), grouped=False)

    def test_rows_it_refuses(self) -> None:
        forest = agree(GradientBoostingRegressor(n_estimators=2).fit(ROWS, VALUES), WHOLE)
        with pytest.raises(ArtifactError, match=r"step f: scikit-learn .* refuses to answer .*NaN"):
            forest.predict(GAPS)


class TestHistograms:
    @pytest.mark.parametrize("rows", [ROWS, GAPS], ids=["whole", "gaps"])
    def test_two_classes(self, rows: np.ndarray) -> None:
        model = HistGradientBoostingClassifier(max_iter=9, random_state=0).fit(rows, LABELS)
        agree(model, EVERY, second(model), model.decision_function)

    def test_classes(self) -> None:
        model = HistGradientBoostingClassifier(max_iter=9, random_state=0).fit(GAPS, CLASSES)
        assert agree(model, EVERY, model.predict_proba, model.decision_function).outputs == 3

    @pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "gamma", "poisson", "quantile"])
    def test_regression(self, loss: str) -> None:
        options = {"quantile": 0.3} if loss == "quantile" else {}
        model = HistGradientBoostingRegressor(max_iter=9, random_state=0, loss=loss, **options).fit(GAPS, VALUES + 0.1)
        logarithmic = loss in ("gamma", "poisson")
        agree(model, EVERY, model.predict, (lambda rows: np.log(model.predict(rows))) if logarithmic else model.predict)

    def test_early_stopping(self) -> None:
        model = HistGradientBoostingRegressor(max_iter=200, random_state=0, early_stopping=True, n_iter_no_change=2)
        model.fit(GAPS, RNG.random(400))
        assert model.n_iter_ < 200
        agree(model, EVERY, model.predict)

    def test_thresholds_are_hit_exactly(self) -> None:
        model = HistGradientBoostingRegressor(max_iter=30, random_state=0).fit(GAPS.astype(np.float64) * 1.1, VALUES)
        nodes = np.concatenate([tree.nodes["num_threshold"] for trees in model._predictors for tree in trees])
        assert (nodes.astype(np.float32) != nodes).sum() > 100
        agree(model, [around(nodes, WIDTH)], model.predict)

    @pytest.mark.parametrize("nulls", [False, True])
    @pytest.mark.parametrize("start", [0, 200])
    def test_categories(self, nulls: bool, start: int) -> None:
        rows = GAPS.copy()
        rows[:, 1] = start + RNG.integers(0, 30, 400)
        rows[:, 4] = RNG.integers(0, 3, 400)
        if nulls:
            rows[::9, 1] = np.nan
        labels = (np.nan_to_num(rows[:, 1]) % 4 < 2) ^ (rows[:, 4] == 1)
        model = HistGradientBoostingClassifier(max_iter=9, random_state=0, categorical_features=[4, 1])
        model.fit(rows, labels)
        assert any(len(tree.raw_left_cat_bitsets) for trees in model._predictors for tree in trees)
        seen = np.repeat(rows[:1], 60, axis=0)
        seen[:, 1] = np.arange(start - 15, start + 45)
        odd = ODD[~np.isinf(ODD)]
        forest = agree(model, [*awkward(rows, odd), seen, seen + np.float32(0.5)], second(model))
        assert forest.categories == "exact"

    def test_categories_of_a_frame(self) -> None:
        frame = pd.DataFrame(ROWS, columns=list("abcdef")).assign(c=pd.Categorical(RNG.choice([5, 90, 7000], 400)))
        labels = frame["c"].isin([90]).to_numpy()
        model = HistGradientBoostingClassifier(max_iter=5, categorical_features="from_dtype").fit(frame, labels)
        rows = ROWS.copy()
        rows[:, 2] = RNG.choice([5, 90, 7000, 91, np.nan], 400)
        forest = agree(
            model, [rows], lambda part: model.predict_proba(pd.DataFrame(part, columns=list("abcdef")))[:, 1]
        )
        assert forest.names == tuple("abcdef")

    @pytest.mark.parametrize("values", [["x", "y", "z"], [0.5, 1.5, 2.5], [-2, -1, 3]])
    def test_categories_refused(self, values: list[Any]) -> None:
        frame = pd.DataFrame(ROWS, columns=list("abcdef")).assign(c=RNG.choice(values, 400))
        model = HistGradientBoostingClassifier(max_iter=5, categorical_features=["c"]).fit(frame, LABELS)
        with pytest.raises(ArtifactError, match=r"step f: feature c has the category .*number them"):
            read_forests("f", model, (), grouped=False)


@pytest.mark.parametrize("options", [{}, {"max_features": 0.5}, {"max_samples": 50}, {"contamination": 0.1}], ids=str)
def test_isolation(options: dict[str, Any]) -> None:
    model = IsolationForest(n_estimators=20, random_state=0, **options).fit(ROWS)
    agree(model, FINITE, lambda rows: -model.score_samples(rows))


def test_names() -> None:
    frame = pd.DataFrame(ROWS, columns=[f"features.{number}" for number in range(WIDTH)])
    for model in (
        RandomForestClassifier(2),
        HistGradientBoostingClassifier(max_iter=2),
        IsolationForest(n_estimators=2),
    ):
        assert agree(model.fit(ROWS, LABELS), [ROWS]).names is None
        assert agree(model.fit(frame, LABELS), [ROWS]).names == tuple(frame.columns)


class TestPickles:
    @pytest.mark.parametrize("name", ["m.joblib", "m.pkl", "m.pickle"])
    def test_trusted(self, tmp_path: Path, name: str) -> None:
        model = RandomForestClassifier(n_estimators=5).fit(ROWS, LABELS)
        joblib.dump(model, tmp_path / name)
        agree(tmp_path / name, FINITE, second(model))
        with pytest.raises(ArtifactError, match=rf"step f: reading .*{name} runs whatever its pickle says.*--trust"):
            read_forests("f", tmp_path / name, (), grouped=False)

    def test_of_another_library(self, tmp_path: Path) -> None:
        model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(ROWS, LABELS)
        joblib.dump(model, tmp_path / "m.joblib")
        agree(tmp_path / "m.joblib", [ROWS], second(model))

    def test_of_something_else(self, tmp_path: Path) -> None:
        joblib.dump({"model": 1}, tmp_path / "m.joblib")
        with pytest.raises(ArtifactError, match=r"step f: a dict is no forest of a known library"):
            read_forests("f", tmp_path / "m.joblib", (), grouped=False, trust=True)

    @pytest.mark.parametrize("content", [b"x", b"\x80\x04garbage"])
    def test_garbage(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.joblib").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"step f: joblib .* cannot read .*m\.joblib"):
            read_forests("f", tmp_path / "m.joblib", (), grouped=False, trust=True)


class TestRefused:
    @pytest.mark.parametrize(
        "model",
        [
            AdaBoostClassifier(n_estimators=2),
            DecisionTreeClassifier(),
            make_pipeline(StandardScaler(), IsolationForest()),
        ],
        ids=lambda model: type(model).__name__,
    )
    def test_kinds(self, model: Any) -> None:
        words = rf"step f: a {type(model).__name__} is not converted; of scikit-learn's models RandomForestClassifier, "
        with pytest.raises(ArtifactError, match=words):
            read_forests("f", model.fit(ROWS, LABELS), (), grouped=False)

    @pytest.mark.parametrize("kind", [RandomForestRegressor, GradientBoostingClassifier, HistGradientBoostingRegressor])
    def test_unfitted(self, kind: Any) -> None:
        with pytest.raises(ArtifactError, match=rf"step f: the {kind.__name__} is not fitted"):
            read_forests("f", kind(), (), grouped=False)

"""CatBoost forests: equal to catboost on awkward rows; what can't be equal is refused by the feature's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import catboost
import numpy as np
import pandas as pd
import pytest
from forest_parity import ODD, agree, around, awkward, rows_of

from tristage.errors import ArtifactError
from tristage.export.forest import read_forests

WIDTH = 5
RNG = np.random.default_rng(7)
ROWS = rows_of(7, 500, WIDTH)
LABELS = (np.nan_to_num(ROWS[:, 0]) + np.nan_to_num(ROWS[:, 1]) ** 2 + RNG.normal(size=500) > 0.5).astype(int)
CLASSES = RNG.integers(0, 3, 500)
TWO = np.stack([LABELS, 1 - LABELS * RNG.random(500)], 1)
GROUPS = np.repeat(np.arange(50), 10)
EVERY = awkward(ROWS)
OPTIONS = {"iterations": 8, "depth": 4, "logging_level": "Silent", "allow_writing_files": False, "thread_count": 1}


def train(
    labels: Any = LABELS, rows: Any = ROWS, groups: Any = None, kind: Any = catboost.CatBoost, **options: Any
) -> Any:
    cat_features = options.pop("cat_features", None)
    pool = catboost.Pool(rows, labels, group_id=groups, cat_features=cat_features)
    options = {**OPTIONS, **options}
    return (kind(options) if kind is catboost.CatBoost else kind(**options)).fit(pool)


def raw(model: Any) -> Any:
    return lambda rows: model.predict(rows, prediction_type="RawFormulaVal")


@pytest.mark.parametrize(
    "options",
    [
        {"loss_function": "Logloss"},
        {"loss_function": "CrossEntropy", "labels": LABELS * 0.7},
        {"loss_function": "Focal:focal_alpha=0.5;focal_gamma=2"},
        {"loss_function": "Logloss", "grow_policy": "Depthwise"},
        {"loss_function": "Logloss", "grow_policy": "Lossguide", "max_leaves": 9},
        {"loss_function": "Logloss", "depth": 1},
        {"loss_function": "Logloss", "depth": 8},
        {"loss_function": "Logloss", "nan_mode": "Max"},
        {"loss_function": "Logloss", "rows": np.nan_to_num(ROWS)},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values() if isinstance(value, (str, int))),
)
def test_binary(options: dict[str, Any]) -> None:
    model = train(kind=catboost.CatBoostClassifier, **options)
    agree(model, EVERY, lambda rows: model.predict_proba(rows)[:, 1], raw(model))


@pytest.mark.parametrize("loss", ["MultiClass", "MultiClassOneVsAll"])
@pytest.mark.parametrize("policy", ["SymmetricTree", "Lossguide"])
def test_classes(loss: str, policy: str) -> None:
    model = train(CLASSES, kind=catboost.CatBoostClassifier, loss_function=loss, grow_policy=policy)
    assert agree(model, EVERY, model.predict_proba, raw(model)).outputs == 3


@pytest.mark.parametrize("loss", ["MultiLogloss", "MultiCrossEntropy"])
def test_labels(loss: str) -> None:
    labels = (TWO > 0.5).astype(int) if loss == "MultiLogloss" else TWO
    model = train(labels, kind=catboost.CatBoostClassifier, loss_function=loss)
    assert agree(model, EVERY, model.predict_proba, raw(model)).outputs == 2


@pytest.mark.parametrize(
    "loss",
    ["RMSE", "MAE", "Quantile:alpha=0.3", "LogLinQuantile", "MAPE", "Huber:delta=1", "Expectile:alpha=0.3", "LogCosh",
     "Poisson", "Tweedie:variance_power=1.5", "Lq:q=2", "Cox", "MultiRMSE", "MultiQuantile:alpha=0.1,0.9"],
)  # fmt: skip
def test_regression(loss: str) -> None:
    model = train(TWO if loss == "MultiRMSE" else LABELS * 3, kind=catboost.CatBoostRegressor, loss_function=loss)
    agree(model, EVERY, model.predict, raw(model))


@pytest.mark.parametrize("loss", ["YetiRank", "QueryRMSE", "PairLogit", "QuerySoftMax", "StochasticRank:metric=NDCG"])
def test_ranking(loss: str) -> None:
    model = train(groups=GROUPS, kind=catboost.CatBoostRanker, loss_function=loss)
    agree(model, EVERY, model.predict)


def test_many_trees() -> None:
    model = train(kind=catboost.CatBoostClassifier, iterations=400, learning_rate=0.03)
    agree(model, EVERY, lambda rows: model.predict_proba(rows)[:, 1], raw(model))


def test_borders_are_hit_exactly() -> None:
    model = train(LABELS * 1.0, kind=catboost.CatBoostRegressor, iterations=40)
    agree(model, [around(np.concatenate(list(model.get_borders().values())), WIDTH)], model.predict)


def test_best_iteration() -> None:
    noise = RNG.integers(0, 2, 500)
    model = catboost.CatBoostClassifier(**{**OPTIONS, "iterations": 60}, early_stopping_rounds=20)
    model.fit(ROWS[:300], noise[:300], eval_set=(ROWS[300:], noise[300:]))
    assert model.tree_count_ == model.best_iteration_ + 1 < 40
    agree(model, EVERY, lambda rows: model.predict_proba(rows)[:, 1])


def test_sum_of_models() -> None:
    models = [train(kind=catboost.CatBoostClassifier, random_seed=seed, subsample=0.5) for seed in (1, 2)]
    both = catboost.sum_models(models, weights=[0.3, 0.7])
    agree(both, EVERY, lambda rows: both.predict(rows, prediction_type="Probability")[:, 1])


@pytest.mark.parametrize("loss", ["Logloss", "Poisson", "MultiClass"])
def test_files(tmp_path: Path, loss: str) -> None:
    classifier = loss != "Poisson"
    names = [f"features.n {number}" for number in range(WIDTH)]
    model = train(
        CLASSES if loss == "MultiClass" else LABELS,
        pd.DataFrame(ROWS, columns=names),
        kind=catboost.CatBoostClassifier if classifier else catboost.CatBoostRegressor,
        loss_function=loss,
    )
    model.save_model(str(tmp_path / "m.cbm"))

    def ask(rows: np.ndarray) -> Any:
        if not classifier:
            return model.predict(rows)
        return model.predict_proba(rows)[:, 1:] if loss == "Logloss" else model.predict_proba(rows)

    assert agree(tmp_path / "m.cbm", EVERY, ask).names == tuple(names)


def test_names() -> None:
    assert agree(train(), [ROWS]).names is None


class TestCategories:
    def frame(self, values: Any) -> pd.DataFrame:
        frame = pd.DataFrame(ROWS, columns=list("abcde"))
        return frame.assign(d=RNG.choice(values, len(frame)), c=RNG.integers(0, 4, len(frame)))

    @pytest.mark.parametrize("policy", ["SymmetricTree", "Lossguide"])
    def test_one_hot(self, policy: str) -> None:
        frame = self.frame([0, 7, 9, 11, 40, 65_535])
        labels = frame["d"].isin([7, 40, 0]) ^ (frame["c"] == 2) ^ (RNG.random(len(frame)) < 0.1)
        model = train(
            labels.astype(int), frame, kind=catboost.CatBoostClassifier, cat_features=["d", "c"],
            one_hot_max_size=10, grow_policy=policy, iterations=20,
        )  # fmt: skip

        def ask(rows: np.ndarray) -> Any:
            asked = pd.DataFrame(rows, columns=list("abcde"), dtype=object)
            for name in "cd":  # CatBoost takes whole numbers or text
                asked[name] = [int(value) if value == np.floor(value) < 1e9 else str(value) for value in asked[name]]
            return model.predict_proba(asked)[:, 1]

        seen = np.array([0, 7, 9, 11, 40, 65_535, 8, 0.5, 7.5, -1, -0.0], np.float32)
        rows = frame.to_numpy(np.float32)
        finite = awkward(rows, ODD[np.abs(ODD) < 1e9])
        forest = agree(model, [*awkward(rows, np.concatenate([ODD, seen])), *finite])
        assert forest.categories == "exact"
        agree(model, finite, ask)

    @pytest.mark.parametrize("values", [["x", "y", "z"], [-3, -2, -1], [100_001, 100_002, 100_003]])
    def test_one_hot_refused(self, values: list[Any]) -> None:
        frame = self.frame(values)
        labels = (frame["d"] == values[0]).astype(int)
        model = train(labels, frame, kind=catboost.CatBoostClassifier, cat_features=["d"], one_hot_max_size=10)
        with pytest.raises(
            ArtifactError, match=r"step f: feature d has a category that is no whole number below 65536"
        ):
            read_forests("f", model, (), grouped=False)

    def test_statistics_refused(self) -> None:
        frame = self.frame(np.arange(40))
        labels = (frame["d"] % 3 == 0).astype(int)
        model = train(labels, frame, kind=catboost.CatBoostClassifier, cat_features=["d", "c"], one_hot_max_size=5)
        with pytest.raises(ArtifactError, match=r"step f: CatBoost hashes the categories of d into target statistics"):
            read_forests("f", model, (), grouped=False)

    def test_one_that_no_tree_reads(self) -> None:
        frame = self.frame(np.arange(400)).assign(d=RNG.permutation(len(ROWS)))
        model = train(
            (frame["a"] > 0).astype(int), frame, kind=catboost.CatBoostClassifier, cat_features=["d"], iterations=3,
            one_hot_max_size=2, depth=1, has_time=True,
        )  # fmt: skip
        forest = agree(model, [frame.to_numpy(np.float32)])
        assert forest.features == WIDTH


class TestRefused:
    def test_text(self) -> None:
        frame = pd.DataFrame(ROWS, columns=list("abcde")).assign(e=RNG.choice(["hi all", "bye"], len(ROWS)))
        model = catboost.CatBoostClassifier(**OPTIONS, text_features=["e"]).fit(frame, LABELS)
        with pytest.raises(ArtifactError, match=r"step f: feature e is text; a forest reads numbers"):
            read_forests("f", model, (), grouped=False)

    def test_uncertainty(self) -> None:
        with pytest.raises(ArtifactError, match=r"step f: RMSEWithUncertainty answers a mean and a variance"):
            read_forests("f", train(loss_function="RMSEWithUncertainty"), (), grouped=False)

    def test_unfitted(self) -> None:
        with pytest.raises(ArtifactError, match=r"step f: the CatBoostClassifier is not fitted"):
            read_forests("f", catboost.CatBoostClassifier(), (), grouped=False)

    def test_other_objects(self) -> None:
        with pytest.raises(ArtifactError, match=r"step f: a Pool is no CatBoost model"):
            read_forests("f", catboost.Pool(ROWS), (), grouped=False)

    @pytest.mark.parametrize("length", [0.1, 0.5, 0.9, 0.999])
    def test_cut_off(self, tmp_path: Path, length: float) -> None:
        path = tmp_path / "m.cbm"
        train().save_model(str(path))
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * length)])
        with pytest.raises(ArtifactError, match=r"step f: CatBoost .* cannot read .*m\.cbm"):
            read_forests("f", path, (), grouped=False)

    def test_garbage(self, tmp_path: Path) -> None:
        (tmp_path / "m.cbm").write_bytes(b"no model at all")
        with pytest.raises(ArtifactError, match=r"step f: CatBoost .* cannot read .*m\.cbm"):
            read_forests("f", tmp_path / "m.cbm", (), grouped=False)

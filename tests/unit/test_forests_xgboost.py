"""XGBoost forests: equal to xgboost on awkward rows, whatever version wrote them; what can't be equal is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from forest_parity import ODD, agree, around, awkward, rows_of

from tristage.errors import ArtifactError
from tristage.export.forest import read_forests

WIDTH = 6
RNG = np.random.default_rng(7)
ROWS = rows_of(7, 400, WIDTH)
LABELS = (np.nan_to_num(ROWS[:, 0]) + np.nan_to_num(ROWS[:, 1]) ** 2 + RNG.normal(size=400) > 0.5).astype(np.float32)
CLASSES = RNG.integers(0, 3, 400)
TWO = np.stack([LABELS, CLASSES > 0], 1).astype(np.float32)
EVERY = awkward(ROWS)
FINITE = awkward(ROWS, ODD[~np.isinf(ODD)])  # a DMatrix takes no infinity


def train(rounds: int = 8, names: list[str] | None = None, **options: Any) -> xgboost.Booster:
    options = {"max_depth": 4, "nthread": 1, "objective": "binary:logistic", **options}
    data = xgboost.DMatrix(options.pop("rows", ROWS), options.pop("labels", LABELS), feature_names=names)
    return xgboost.train(options, data, num_boost_round=rounds)


def whole(booster: xgboost.Booster, **options: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: booster.predict(xgboost.DMatrix(rows), validate_features=False, **options)


def check(booster: xgboost.Booster) -> Any:
    """Against DMatrix and predict; and against inplace_predict, which takes infinity."""
    agree(booster, EVERY)
    return agree(booster, FINITE, whole(booster), whole(booster, output_margin=True))


@pytest.mark.parametrize("depth", [1, 2, 5, 8, 10])
def test_depth(depth: int) -> None:
    check(train(max_depth=depth))


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "reg:squarederror"},
        {"objective": "reg:squarederror", "base_score": 3.25},
        {"objective": "reg:squarederror", "labels": LABELS * 100 + 1e4},
        {"objective": "binary:logistic", "base_score": 0.03},
        {"objective": "binary:logitraw"},
        {"objective": "binary:hinge"},
        {"objective": "reg:logistic"},
        {"objective": "count:poisson"},
        {"objective": "reg:gamma", "labels": LABELS + 0.5},
        {"objective": "reg:tweedie", "labels": LABELS + 0.5},
        {"objective": "reg:absoluteerror"},
        {"objective": "reg:pseudohubererror"},
        {"objective": "reg:squaredlogerror"},
        {"objective": "reg:quantileerror", "quantile_alpha": 0.3},
        {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]},
        {"objective": "survival:cox", "labels": LABELS + 0.5},
        {"objective": "rank:pairwise"},
        {"objective": "rank:ndcg"},
        {"objective": "rank:map"},
        {"objective": "multi:softprob", "num_class": 3, "labels": CLASSES},
        {"objective": "multi:softprob", "num_class": 3, "labels": CLASSES, "num_parallel_tree": 2},
        {"objective": "multi:softmax", "num_class": 3, "labels": CLASSES},
        {"objective": "binary:logistic", "num_parallel_tree": 3, "subsample": 0.5},
        {"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.5},
        {"objective": "multi:softprob", "num_class": 3, "labels": CLASSES, "booster": "dart", "rate_drop": 0.5},
        {"tree_method": "exact"},
        {"grow_policy": "lossguide", "max_leaves": 7, "max_depth": 0},
        {"gamma": 1e9},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values() if not isinstance(value, np.ndarray)),
)
def test_kinds(options: dict[str, Any]) -> None:
    check(train(**options))


@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
@pytest.mark.parametrize(
    "options",
    [
        {"objective": "reg:squarederror", "labels": TWO * 3},
        {"objective": "reg:squarederror", "labels": TWO, "base_score": 2.0},
        {"objective": "binary:logistic", "labels": TWO},
        {"objective": "multi:softprob", "labels": CLASSES, "num_class": 3},
    ],
    ids=lambda options: f"{options['objective']}-{options.get('base_score')}",
)
def test_several_outputs(strategy: str, options: dict[str, Any]) -> None:
    outputs = options.get("num_class", 2)
    assert check(train(multi_strategy=strategy, tree_method="hist", **options)).outputs == outputs


def test_survival_times() -> None:
    data = xgboost.DMatrix(ROWS)
    data.set_float_info("label_lower_bound", LABELS + 1)
    data.set_float_info("label_upper_bound", LABELS + 2)
    check(xgboost.train({"objective": "survival:aft", "nthread": 1}, data, 4))


def test_many_trees() -> None:
    check(train(400, learning_rate=0.03))


def test_thresholds_are_hit_exactly() -> None:
    booster = train(max_depth=6)
    splits = booster.trees_to_dataframe()["Split"].dropna()
    agree(booster, [around(splits, WIDTH)], whole(booster))


class TestCategories:
    def rows(self, count: int) -> np.ndarray:
        rows = ROWS.copy()
        rows[:, 2] = RNG.integers(0, count, len(rows))
        rows[::11, 2] = np.nan
        return rows

    @pytest.mark.parametrize("one_hot", [1, 100])
    @pytest.mark.parametrize("count", [3, 40, 500])
    def test_codes(self, one_hot: int, count: int) -> None:
        rows = self.rows(count)
        types = ["q", "q", "c", "q", "q", "q"]
        labels = (np.nan_to_num(rows[:, 2]) % 3 == 1) ^ (RNG.random(len(rows)) < 0.2)
        data = xgboost.DMatrix(rows, labels, feature_types=types, enable_categorical=True)
        booster = xgboost.train(
            {"nthread": 1, "tree_method": "hist", "max_cat_to_onehot": one_hot, "objective": "binary:logistic"}, data, 6
        )
        assert "c" in booster.feature_types
        seen = np.repeat(ROWS[:1], count + 40, axis=0)
        seen[:, 2] = np.arange(-20, count + 20)

        def ask(part: np.ndarray) -> Any:
            return booster.predict(xgboost.DMatrix(part, feature_types=types, enable_categorical=True))

        finite = awkward(rows, ODD[~np.isinf(ODD)])
        forest = agree(booster, [*finite, seen, seen + np.float32(0.5)], ask)
        agree(booster, awkward(rows))
        assert forest.categories == "floor"

    def frame(self, values: list[Any]) -> pd.DataFrame:
        frame = pd.DataFrame(ROWS, columns=list("abcdef"))
        return frame.assign(c=pd.Categorical(RNG.choice(np.array(values, object), len(frame)), categories=values))

    @pytest.mark.parametrize("kind", ["booster", "wrapper", "ubj", "json"])
    def test_of_a_frame(self, kind: str, tmp_path: Path) -> None:
        values = [3, 90, 12, 40, 7, 0]
        frame = self.frame(values)
        labels = frame["c"].isin([3, 0, 12]).to_numpy() ^ (RNG.random(len(frame)) < 0.1)
        model = xgboost.XGBClassifier(n_estimators=5, max_cat_to_onehot=1, n_jobs=1, enable_categorical=True)
        model.fit(frame, labels)
        if kind in ("ubj", "json"):
            model.save_model(tmp_path / f"m.{kind}")

        def ask(rows: np.ndarray) -> Any:
            asked = pd.DataFrame(rows, columns=list("abcdef"))
            asked["c"] = pd.Categorical(asked["c"].astype("Int64"), categories=sorted(values))
            return model.predict_proba(asked)[:, 1]

        artifact = {"booster": model.get_booster(), "wrapper": model}.get(kind, tmp_path / f"m.{kind}")
        rows = ROWS.copy()
        rows[:, 2] = RNG.choice([*values, np.nan], len(rows))
        forest = agree(artifact, [rows, rows[:1], rows[:0]], ask)
        assert forest.names == tuple("abcdef")
        assert forest.categories == "exact"
        # XGBoost refuses a frame with categories that training never saw: no tree knows them
        unseen = np.repeat(rows[:1], 100, axis=0)
        unseen[:, 2] = np.arange(-5, 95)
        agree(artifact, [*EVERY, unseen, unseen + np.float32(0.5)])

    @pytest.mark.parametrize("values", [["x", "y", "zä"], [-1, 0, 1], [1, 2, 2**25]])
    def test_of_a_frame_refused(self, values: list[Any]) -> None:
        model = xgboost.XGBClassifier(n_estimators=2, n_jobs=1, enable_categorical=True).fit(self.frame(values), LABELS)
        with pytest.raises(ArtifactError, match=r"step f: feature c has the category .*number them"):
            read_forests("f", model, (), grouped=False)


def test_names() -> None:
    assert agree(train(), [ROWS]).names is None
    names = [f"feature {number}" for number in range(WIDTH)]
    assert agree(train(names=names), [ROWS]).names == tuple(names)


@pytest.mark.parametrize("suffix", ["ubj", "json"])
def test_files(tmp_path: Path, suffix: str) -> None:
    booster = train(names=list("abcdef"))
    booster.save_model(tmp_path / f"model.{suffix}")
    assert agree(tmp_path / f"model.{suffix}", FINITE, whole(booster)).names == tuple("abcdef")


def test_base_score_written_in_any_way(tmp_path: Path) -> None:
    # XGBoost 3.1 and above write base_score as a list in brackets
    booster = train(base_score=0.25)
    booster.save_model(tmp_path / "m.json")
    document = json.loads((tmp_path / "m.json").read_text())
    score = document["learner"]["learner_model_param"]["base_score"].strip("[]")
    for written in (score, f"[{score}]"):
        document["learner"]["learner_model_param"]["base_score"] = written
        (tmp_path / "n.json").write_text(json.dumps(document))
        agree(tmp_path / "n.json", FINITE, whole(booster))


MODELS = Path(__file__).parents[1] / "models" / "xgboost"
ANSWERS = {
    f"{folder.name}/{file}": answers
    for folder in sorted(MODELS.iterdir())
    if folder.is_dir()
    for file, answers in json.loads((folder / "answers.json").read_text(encoding="utf-8")).items()
}


@pytest.mark.parametrize("file", ANSWERS)
def test_files_of_other_versions(file: str) -> None:
    rows = np.load(MODELS / "rows.npy")
    forest = agree(MODELS / file, [rows], lambda _: ANSWERS[file])
    assert (forest.names is None) == file.endswith("/binary.json") or "stopped" in file


def test_versions_of_files() -> None:
    versions = {file.split("/")[0].rpartition(".")[0] for file in ANSWERS}
    assert versions == {"1.7", "2.1", "3.0", "3.2"}
    assert len(ANSWERS) == 4 * 14


class TestWrappers:
    def test_classifier(self) -> None:
        model = xgboost.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1).fit(ROWS, LABELS)
        agree(model, EVERY, lambda rows: model.predict_proba(rows)[:, 1])

    @pytest.mark.parametrize("objective", ["multi:softprob", "multi:softmax"])
    @pytest.mark.parametrize("saved", [False, True])
    def test_classes(self, objective: str, saved: bool, tmp_path: Path) -> None:
        model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1, objective=objective).fit(ROWS, CLASSES)
        model.save_model(tmp_path / "m.ubj")
        assert agree(tmp_path / "m.ubj" if saved else model, EVERY, model.predict_proba).outputs == 3

    def test_labels_of_several_targets(self) -> None:
        model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(ROWS, TWO)
        agree(model, EVERY, model.predict_proba)

    def test_regressor(self) -> None:
        model = xgboost.XGBRegressor(n_estimators=5, n_jobs=1).fit(ROWS, LABELS * 3)
        agree(model, EVERY, model.predict)

    def test_ranker(self) -> None:
        model = xgboost.XGBRanker(n_estimators=5, n_jobs=1).fit(ROWS, CLASSES, qid=np.arange(400) // 20)
        agree(model, EVERY, model.predict)

    def test_random_forests(self) -> None:
        regressor = xgboost.XGBRFRegressor(n_estimators=7, n_jobs=1).fit(ROWS, LABELS)
        agree(regressor, EVERY, regressor.predict)
        classifier = xgboost.XGBRFClassifier(n_estimators=7, n_jobs=1).fit(ROWS, LABELS)
        agree(classifier, EVERY, lambda rows: classifier.predict_proba(rows)[:, 1])

    @pytest.mark.parametrize("booster", ["gbtree", "dart"])
    def test_early_stopping(self, booster: str, tmp_path: Path) -> None:
        noise = RNG.integers(0, 2, 400)
        options = {"n_estimators": 60, "max_depth": 6, "n_jobs": 1, "early_stopping_rounds": 20, "booster": booster}
        model = xgboost.XGBClassifier(**options)
        model.fit(ROWS[:300], noise[:300], eval_set=[(ROWS[300:], noise[300:])], verbose=False)
        assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
        agree(model, EVERY, lambda rows: model.predict_proba(rows)[:, 1])
        for suffix in ("ubj", "json"):
            model.save_model(tmp_path / f"m.{suffix}")
            loaded = xgboost.XGBClassifier()
            loaded.load_model(tmp_path / f"m.{suffix}")
            agree(tmp_path / f"m.{suffix}", EVERY, lambda rows: loaded.predict_proba(rows)[:, 1])  # noqa: B023
        # the Booster inside predicts with all its trees
        agree(model.get_booster(), FINITE, whole(model.get_booster()))

    def test_early_stopping_of_a_booster(self, tmp_path: Path) -> None:
        noise = RNG.integers(0, 2, 400)
        booster = xgboost.train(
            {"objective": "binary:logistic", "nthread": 1},
            xgboost.DMatrix(ROWS[:300], noise[:300]),
            num_boost_round=40,
            evals=[(xgboost.DMatrix(ROWS[300:], noise[300:]), "held_out")],
            early_stopping_rounds=10,
            verbose_eval=False,
        )
        assert booster.best_iteration + 1 < booster.num_boosted_rounds()
        agree(booster, FINITE, whole(booster))  # a Booster predicts with all its trees
        booster.save_model(tmp_path / "m.ubj")
        agree(tmp_path / "m.ubj", FINITE, whole(booster))

    def test_unfitted(self) -> None:
        with pytest.raises(ArtifactError, match=r"step f.*not fitted"):
            read_forests("f", xgboost.XGBClassifier(), (), grouped=False)

    @pytest.mark.parametrize("missing", [0.0, -999.0])
    def test_another_value_for_missing(self, missing: float) -> None:
        model = xgboost.XGBClassifier(n_estimators=2, missing=missing).fit(np.nan_to_num(ROWS), LABELS)
        with pytest.raises(ArtifactError, match=rf"step f: the XGBClassifier takes {missing} for missing"):
            read_forests("f", model, (), grouped=False)


class TestRefused:
    def test_linear(self) -> None:
        options = {"booster": "gblinear", "objective": "binary:logistic", "nthread": 1}
        booster = xgboost.train(options, xgboost.DMatrix(np.nan_to_num(ROWS), LABELS), num_boost_round=5)
        with pytest.raises(ArtifactError, match=r"step f: it is a gblinear model, not trees"):
            read_forests("f", booster, (), grouped=False)

    def test_no_trees(self) -> None:
        with pytest.raises(ArtifactError, match=r"step f: it has no trees; train it for a round at least"):
            read_forests("f", train(0), (), grouped=False)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.json", b"not json at all"),
            ("b.json", b"{}"),
            ("c.json", b'{"learner": {}, "version": [3, 0, 0]}'),
            ("d.ubj", b"\x00\x01\x02garbage"),
            ("e.ubj", b"{"),
        ],
    )
    def test_garbage(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=rf"step f: XGBoost .* cannot read .*{name}"):
            read_forests("f", tmp_path / name, (), grouped=False)

    @pytest.mark.parametrize("suffix", ["ubj", "json"])
    def test_cut_off(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"m.{suffix}"
        train().save_model(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ArtifactError, match="cannot read"):
            read_forests("f", path, (), grouped=False)

    def test_other_objects(self) -> None:
        with pytest.raises(ArtifactError, match=r"step f: a DMatrix is no XGBoost model"):
            read_forests("f", xgboost.DMatrix(ROWS), (), grouped=False)

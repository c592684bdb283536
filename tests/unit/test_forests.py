"""XGBoost forests as ONNX trees: equal to xgboost on awkward rows; what can't be equal is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import xgboost

from tristage.columns import Column
from tristage.errors import ArtifactError, StackError
from tristage.export.check import run_placement
from tristage.export.forest import Forest, read_forests
from tristage.export.forest.to_onnx import add_forests
from tristage.export.lower import lower
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.place import place
from tristage.export.reference import reference_answers
from tristage.stack import ForestStep, Stack

WIDTH = 6
RNG = np.random.default_rng(7)
ROWS = RNG.normal(size=(400, WIDTH)).astype(np.float32)
ROWS[RNG.random(ROWS.shape) < 0.1] = np.nan
LABELS = (np.nan_to_num(ROWS[:, 0]) + np.nan_to_num(ROWS[:, 1]) ** 2 + RNG.normal(size=400) > 0.5).astype(np.float32)


def train(rounds: int = 8, names: list[str] | None = None, **options: Any) -> xgboost.Booster:
    options = {"max_depth": 4, "nthread": 1, "objective": "binary:logistic", **options}
    labels = options.pop("labels", LABELS)
    return xgboost.train(options, xgboost.DMatrix(ROWS, labels, feature_names=names), num_boost_round=rounds)


def served(forests: Any, rows: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    graph = GraphBuilder()
    group = None if groups is None else graph.input("group", "int64", 1)
    answers = add_forests(graph, graph.input("rows", "float32", WIDTH), forests, group)
    width = len(forests.targets) if forests.targets != (None,) else forests.all()[0].outputs
    session = onnxruntime.InferenceSession(graph.model([("out", answers, "float32", width)]).SerializeToString())
    feeds = {"rows": rows} if groups is None else {"rows": rows, "group": groups.reshape(-1, 1).astype(np.int64)}
    return np.asarray(session.run(None, feeds)[0])


def agree(artifact: Any, expected: Callable[[np.ndarray], np.ndarray] | None = None) -> Forest:
    forests = read_forests("xgb", artifact, (), grouped=False)
    (forest,) = forests.all()
    for rows in (ROWS, ROWS[:1], ROWS[:0], np.full((3, WIDTH), np.nan, np.float32), 1e30 * ROWS, np.zeros_like(ROWS)):
        answers = served(forests, rows)
        assert answers.shape == (len(rows), forest.outputs)
        if len(rows):
            np.testing.assert_allclose(answers, forest.predict(rows), atol=1e-6, rtol=1e-6)
            if expected is not None:
                np.testing.assert_allclose(answers, expected(rows).reshape(len(rows), -1), atol=1e-6, rtol=1e-6)
    return forest


def whole(booster: xgboost.Booster) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: booster.predict(xgboost.DMatrix(rows), validate_features=False)


@pytest.mark.parametrize("depth", [1, 2, 5, 8, 10])
def test_depth(depth: int) -> None:
    booster = train(max_depth=depth)
    agree(booster, whole(booster))


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "reg:squarederror"},
        {"objective": "reg:squarederror", "base_score": 3.25},
        {"objective": "binary:logistic", "base_score": 0.03},
        {"objective": "binary:logitraw"},
        {"objective": "reg:logistic"},
        {"objective": "count:poisson"},
        {"objective": "reg:gamma", "labels": LABELS + 0.5},
        {"objective": "reg:tweedie", "labels": LABELS + 0.5},
        {"objective": "reg:absoluteerror"},
        {"objective": "rank:pairwise"},
        {"objective": "multi:softprob", "num_class": 4, "labels": RNG.integers(0, 4, 400)},
        {"objective": "multi:softprob", "num_class": 3, "labels": RNG.integers(0, 3, 400), "num_parallel_tree": 2},
        {"objective": "binary:logistic", "num_parallel_tree": 3, "subsample": 0.5},
        {"tree_method": "exact"},
        {"grow_policy": "lossguide", "max_leaves": 7, "max_depth": 0},
        {"gamma": 1e9},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values() if not isinstance(value, np.ndarray)),
)
def test_kinds(options: dict[str, Any]) -> None:
    booster = train(**options)
    agree(booster, whole(booster))


def test_infinity() -> None:
    # xgboost itself takes no infinity; served, it compares like any number
    forests = read_forests("xgb", train(), (), grouped=False)
    high, low = ROWS.copy(), ROWS.copy()
    high[:, 0], low[:, 0] = np.inf, -np.inf
    huge, tiny = ROWS.copy(), ROWS.copy()
    huge[:, 0], tiny[:, 0] = 3e38, -3e38
    np.testing.assert_array_equal(served(forests, high), served(forests, huge))
    np.testing.assert_array_equal(served(forests, low), served(forests, tiny))


def test_thresholds_are_hit_exactly() -> None:
    booster = train(max_depth=6)
    splits = np.array(
        [
            [float(node[node.index("<") + 1 : node.index("]")])]
            for tree in booster.get_dump()
            for node in tree.splitlines()
            if "<" in node
        ],
        np.float32,
    )
    agree_rows = np.repeat(splits, WIDTH, axis=1)
    for rows in (agree_rows, np.nextafter(agree_rows, np.float32(np.inf)), np.nextafter(agree_rows, np.float32(-9))):
        forests = read_forests("xgb", booster, (), grouped=False)
        np.testing.assert_allclose(served(forests, rows)[:, 0], whole(booster)(rows), atol=1e-6)


def test_names() -> None:
    assert agree(train()).names is None
    names = [f"feature {number}" for number in range(WIDTH)]
    assert agree(train(names=names)).names == tuple(names)


@pytest.mark.parametrize("suffix", ["ubj", "json"])
def test_files(tmp_path: Path, suffix: str) -> None:
    booster = train(names=list("abcdef"))
    booster.save_model(tmp_path / f"model.{suffix}")
    assert agree(tmp_path / f"model.{suffix}", whole(booster)).names == tuple("abcdef")


class TestWrappers:
    def test_classifier(self) -> None:
        model = xgboost.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1).fit(ROWS, LABELS)
        agree(model, lambda rows: model.predict_proba(rows)[:, 1])

    def test_multiclass(self) -> None:
        model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(ROWS, RNG.integers(0, 3, 400))
        assert agree(model, model.predict_proba).outputs == 3

    def test_regressor(self) -> None:
        model = xgboost.XGBRegressor(n_estimators=5, n_jobs=1).fit(ROWS, LABELS * 3)
        agree(model, model.predict)

    def test_random_forest(self) -> None:
        model = xgboost.XGBRFRegressor(n_estimators=7, n_jobs=1).fit(ROWS, LABELS)
        agree(model, model.predict)

    @pytest.fixture(scope="class")
    def stopped(self) -> Any:
        noise = RNG.integers(0, 2, 400)
        model = xgboost.XGBClassifier(n_estimators=60, max_depth=6, n_jobs=1, early_stopping_rounds=20)
        model.fit(ROWS[:300], noise[:300], eval_set=[(ROWS[300:], noise[300:])], verbose=False)
        assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
        return model

    def test_early_stopping_in_memory(self, stopped: Any) -> None:
        agree(stopped, lambda rows: stopped.predict_proba(rows)[:, 1])

    @pytest.mark.parametrize("suffix", ["ubj", "json"])
    def test_early_stopping_in_a_file(self, stopped: Any, tmp_path: Path, suffix: str) -> None:
        stopped.save_model(tmp_path / f"m.{suffix}")
        loaded = xgboost.XGBClassifier()
        loaded.load_model(tmp_path / f"m.{suffix}")
        agree(tmp_path / f"m.{suffix}", lambda rows: loaded.predict_proba(rows)[:, 1])

    def test_early_stopping_of_a_booster(self) -> None:
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
        agree(booster, whole(booster))  # a Booster predicts with all its trees

    def test_unfitted(self) -> None:
        with pytest.raises(ArtifactError, match=r"step xgb.*not fitted"):
            read_forests("xgb", xgboost.XGBClassifier(), (), grouped=False)


class TestRefused:
    @pytest.mark.parametrize("kind", ["gblinear", "dart"])
    def test_boosters(self, kind: str) -> None:
        options = {"max_depth": None} if kind == "gblinear" else {"rate_drop": 0.5}
        options = {"booster": kind, "objective": "binary:logistic", "nthread": 1, **options}
        options = {key: value for key, value in options.items() if value is not None}
        booster = xgboost.train(options, xgboost.DMatrix(np.nan_to_num(ROWS), LABELS), num_boost_round=5)
        with pytest.raises(ArtifactError, match=rf"step xgb: it is a {kind} model"):
            read_forests("xgb", booster, (), grouped=False)

    @pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
    def test_several_targets_in_one(self, strategy: str) -> None:
        options = {"objective": "reg:squarederror", "multi_strategy": strategy, "nthread": 1, "tree_method": "hist"}
        booster = xgboost.train(options, xgboost.DMatrix(ROWS, np.stack([LABELS, LABELS], 1)), num_boost_round=3)
        with pytest.raises(ArtifactError, match=r"step xgb.*(several targets|one per target)"):
            read_forests("xgb", booster, (), grouped=False)

    def test_categories(self) -> None:
        rows = np.column_stack([RNG.integers(0, 20, 400), ROWS[:, 0]]).astype(np.float32)
        data = xgboost.DMatrix(
            rows, rows[:, 0] % 3, feature_types=["c", "float"], enable_categorical=True, feature_names=["kind", "x"]
        )
        booster = xgboost.train({"tree_method": "hist", "nthread": 1, "max_cat_to_onehot": 1}, data, num_boost_round=3)
        with pytest.raises(ArtifactError, match=r"step xgb.*categorical splits"):
            read_forests("xgb", booster, (), grouped=False)

    @pytest.mark.parametrize("objective", ["multi:softmax", "binary:hinge"])
    def test_labels(self, objective: str) -> None:
        booster = train(objective=objective, **({"num_class": 2} if objective == "multi:softmax" else {}))
        with pytest.raises(ArtifactError, match=rf"step xgb.*{objective}"):
            read_forests("xgb", booster, (), grouped=False)

    def test_quantiles(self) -> None:
        booster = train(objective="reg:quantileerror", quantile_alpha=[0.1, 0.9])
        with pytest.raises(ArtifactError, match=r"step xgb.*(several targets|one per target)"):
            read_forests("xgb", booster, (), grouped=False)

    def test_files(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"step xgb: there is no file .*gone\.ubj") as caught:
            read_forests("xgb", tmp_path / "gone.ubj", (), grouped=False)
        assert caught.value.path == tmp_path / "gone.ubj"
        (tmp_path / "empty.ubj").touch()
        with pytest.raises(ArtifactError, match=r"empty\.ubj is empty"):
            read_forests("xgb", tmp_path / "empty.ubj", (), grouped=False)
        (tmp_path / "m.txt").write_text("x")
        with pytest.raises(ArtifactError, match=r"m\.txt is of no known kind of forest; known are \.ubj/\.json"):
            read_forests("xgb", tmp_path / "m.txt", (), grouped=False)
        with pytest.raises(ArtifactError, match="there is no file"):
            read_forests("xgb", str(tmp_path / "folder.ubj" / "x.ubj"), (), grouped=False)

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
        with pytest.raises(ArtifactError, match=rf"step xgb: XGBoost .* cannot read .*{name}"):
            read_forests("xgb", tmp_path / name, (), grouped=False)

    @pytest.mark.parametrize("suffix", ["ubj", "json"])
    def test_cut_off(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"m.{suffix}"
        train().save_model(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ArtifactError, match="cannot read"):
            read_forests("xgb", path, (), grouped=False)

    def test_other_objects(self) -> None:
        with pytest.raises(ArtifactError, match=r"step xgb: a dict is no forest of a known library; known are XGBoost"):
            read_forests("xgb", {}, (), grouped=False)
        with pytest.raises(ArtifactError, match=r"step xgb: a DMatrix is no"):
            read_forests("xgb", xgboost.DMatrix(ROWS), (), grouped=False)


def save(folder: Path, files: Mapping[str, int], **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        train(3, seed=seed, subsample=0.5, **options).save_model(folder / name)
    return folder


class TestSets:
    def test_bags_are_averaged(self, tmp_path: Path) -> None:
        folder = save(tmp_path, {f"m-{bag}.ubj": bag for bag in (0, 1, 2, 10)})
        forests = read_forests("xgb", folder / "m-{bag}.ubj", (), grouped=False)
        boosters = [xgboost.Booster(model_file=folder / f"m-{bag}.ubj") for bag in (0, 1, 2, 10)]
        wanted = np.mean([whole(booster)(ROWS) for booster in boosters], axis=0)
        np.testing.assert_allclose(served(forests, ROWS)[:, 0], wanted, atol=1e-6)
        ordered = [forest.predict(ROWS)[:, 0] for forest in forests.all()]
        np.testing.assert_allclose(ordered[3], whole(boosters[3])(ROWS), atol=1e-6)  # 10 stands after 2

    def test_targets_in_the_stacks_order(self, tmp_path: Path) -> None:
        folder = save(tmp_path, {"like-0.ubj": 1, "like-1.ubj": 2, "reply-0.ubj": 3, "reply-1.ubj": 4})
        forests = read_forests("xgb", str(folder / "{target}-{bag}.ubj"), ("reply", "quote", "like"), grouped=False)
        assert forests.targets == ("reply", "like")
        reply = np.mean(
            [whole(xgboost.Booster(model_file=folder / f"reply-{bag}.ubj"))(ROWS) for bag in (0, 1)], axis=0
        )
        answers = served(forests, ROWS)
        assert answers.shape == (400, 2)
        np.testing.assert_allclose(answers[:, 0], reply, atol=1e-6)

    def test_groups(self, tmp_path: Path) -> None:
        folder = save(tmp_path, {f"{group}/{target}.json": group for group in (2, 10, -1) for target in ("a", "b")})
        forests = read_forests("xgb", folder / "{group}" / "{target}.json", ("b", "a"), grouped=True)
        assert set(forests.groups) == {"-1", "2", "10"}
        positions = RNG.integers(-1, 3, len(ROWS))
        answers = served(forests, ROWS, positions)
        assert np.isnan(answers[positions == -1]).all()
        for position, group in enumerate(forests.groups):
            rows = positions == position
            wanted = np.stack(
                [whole(xgboost.Booster(model_file=folder / f"{group}/{t}.json"))(ROWS[rows]) for t in ("b", "a")], 1
            )
            np.testing.assert_allclose(answers[rows], wanted, atol=1e-6)
        # a request of one group, of none that is known, and of no rows
        one = served(forests, ROWS[:5], np.full(5, forests.groups.index("2")))
        np.testing.assert_allclose(one[:, 0], forests.forests["2", "b"][0].predict(ROWS[:5])[:, 0], atol=1e-6)
        assert np.isnan(served(forests, ROWS[:4], np.full(4, -1))).all()
        assert served(forests, ROWS[:0], np.zeros(0)).shape == (0, 2)

    def test_pattern_in_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(tmp_path, {"xgb-0.ubj": 0, "xgb-1.ubj": 1})
        monkeypatch.chdir(tmp_path)
        assert len(read_forests("xgb", "xgb-{bag}.ubj", (), grouped=False).all()) == 2
        assert len(read_forests("xgb", Path("./xgb-{bag}.ubj"), (), grouped=False).all()) == 2

    def test_folder_with_odd_letters(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "[run] *1", {"0/m.ubj": 0, "1/m.ubj": 1})
        assert len(read_forests("xgb", folder / "{bag}" / "m.ubj", (), grouped=False).all()) == 2

    def test_wrong_placeholder(self, tmp_path: Path) -> None:
        with pytest.raises(StackError, match=r"step xgb: \{fold\} in .* is not one of \{target\}, \{bag\}, \{group\}"):
            read_forests("xgb", tmp_path / "{fold}.ubj", (), grouped=False)
        with pytest.raises(StackError, match="each once"):
            read_forests("xgb", tmp_path / "{bag}" / "{bag}.ubj", (), grouped=False)

    def test_nothing_matches(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"step xgb: no file matches .*x-\{bag\}\.ubj"):
            read_forests("xgb", tmp_path / "x-{bag}.ubj", (), grouped=False)
        with pytest.raises(ArtifactError, match="no file matches"):
            read_forests("xgb", tmp_path / "gone" / "{bag}.ubj", (), grouped=False)

    def test_missing_target_of_a_group(self, tmp_path: Path) -> None:
        folder = save(tmp_path, {"0-a.ubj": 0, "0-b.ubj": 0, "1-a.ubj": 0})
        with pytest.raises(StackError, match="step xgb: there is no forest for b of group 1"):
            read_forests("xgb", folder / "{group}-{target}.ubj", ("a", "b"), grouped=True)

    def test_unknown_target(self, tmp_path: Path) -> None:
        folder = save(tmp_path, {"a.ubj": 0, "c.ubj": 0})
        with pytest.raises(StackError, match=r"step xgb has forests for c, which targets \(a, b\) lacks"):
            read_forests("xgb", folder / "{target}.ubj", ("a", "b"), grouped=False)

    def test_group_and_pattern_go_together(self, tmp_path: Path) -> None:
        folder = save(tmp_path, {"0.ubj": 0})
        with pytest.raises(StackError, match=r"names no group column; add group"):
            read_forests("xgb", folder / "{group}.ubj", (), grouped=False)
        with pytest.raises(StackError, match=r"names a group column but no \{group\}"):
            read_forests("xgb", folder / "0.ubj", (), grouped=True)

    def test_unequal_members(self, tmp_path: Path) -> None:
        folder = save(tmp_path, {"0.ubj": 0}, names=list("abcdef"))
        save(folder, {"1.ubj": 0}, names=list("abcdeg"))
        with pytest.raises(ArtifactError, match=r"step xgb: .*same features.*\bf\b.*\bg\b"):
            read_forests("xgb", folder / "{bag}.ubj", (), grouped=False)

    def test_classes_per_target(self, tmp_path: Path) -> None:
        options = {"objective": "multi:softprob", "num_class": 3, "labels": RNG.integers(0, 3, 400)}
        folder = save(tmp_path, {"a.ubj": 0, "b.ubj": 1}, **options)
        with pytest.raises(StackError, match=r"step xgb.*3 (outputs|columns)"):
            read_forests("xgb", folder / "{target}.ubj", ("a", "b"), grouped=False)


RAW = {name: Column(name, "float32", nullable=True) for name in "abcdef"}


def stack(forest: Any, reads: tuple[str, ...], outputs: Mapping[str, str], **rest: Any) -> Stack:
    return Stack("s", {"xgb": ForestStep(forest, reads, **rest)}, outputs)


class TestFeatures:
    def test_by_name_in_any_order(self) -> None:
        import pandas as pd

        booster = train(names=list("fedcba"))
        lowered = lower(stack(booster, tuple("abcdef"), {"y": "xgb.score"}), RAW)
        assert [source.column.name for source in lowered.steps[0].feeds[0].sources] == list("fedcba")
        frame = pd.DataFrame(ROWS[:9], columns=list("fedcba"))
        inputs = {name: frame[[name]].to_numpy() for name in "abcdef"}
        answers = run_placement(place(lowered, 4), inputs)["y"][:, 0]
        np.testing.assert_allclose(answers, whole(booster)(ROWS[:9]), atol=1e-6)
        np.testing.assert_allclose(reference_answers(lowered, frame)["xgb"]["score"], answers, atol=1e-6)

    def test_by_position(self) -> None:
        lowered = lower(stack(train(), tuple("fedcba"), {"y": "xgb.score"}), RAW)
        assert [source.column.name for source in lowered.steps[0].feeds[0].sources] == list("fedcba")

    def test_wrong_count(self) -> None:
        with pytest.raises(StackError, match="step xgb reads 3 columns, its forest takes 6 features"):
            lower(stack(train(), tuple("abc"), {"y": "xgb.score"}), RAW)

    def test_unknown_name_suggests(self) -> None:
        names = ["follower_count", *"bcdef"]
        raw = {**RAW, "follower_counts": Column("follower_counts", "int64")}
        with pytest.raises(StackError, match=r"step xgb: .*trained on follower_count,.*near.*follower_counts"):
            lower(stack(train(names=names), ("follower_counts", *"bcdef"), {"y": "xgb.score"}), raw)

    def test_ambiguous_name(self) -> None:
        steps = {
            "one": ForestStep(train(), tuple("abcdef")),
            "two": ForestStep(train(), tuple("abcdef")),
            "top": ForestStep(train(names=["score", *"bcdef"]), ("one", "two", *"bcdef")),
        }
        with pytest.raises(StackError, match="step top: feature score could be of one, two"):
            lower(Stack("s", steps, {"y": "top.score"}), RAW)
        steps["top"] = ForestStep(train(names=["two.score", *"bcdef"]), ("one", "two", *"bcdef"))
        lowered = lower(Stack("s", steps, {"y": "top.score"}), RAW)
        assert lowered.steps[-1].feeds[0].sources[0].step == "two"

    def test_text_and_lists(self) -> None:
        for column in (Column("a", "string", nullable=True), Column("a", "int64", 3, 0)):
            from tristage.stack import ListInput

            inputs = {"a": ListInput(3)} if column.length else {}
            held = "lists" if column.length else "text"
            with pytest.raises(StackError, match=rf"step xgb reads a, which holds {held}"):
                lower(
                    Stack("s", {"xgb": ForestStep(train(), tuple("abcdef"))}, {"y": "xgb.score"}, inputs=inputs),
                    {**RAW, "a": column},
                )

    def test_group_column(self, tmp_path: Path) -> None:
        folder = save(tmp_path, {"es.ubj": 0, "日本.ubj": 1})
        wanted = stack(folder / "{group}.ubj", tuple("abcdef"), {"y": "xgb.score"}, group="language")
        lowered = lower(wanted, {**RAW, "language": Column("language", "string", nullable=True)})
        words = np.array(["es", "日本", "", "\x01", "fr"], object)
        inputs = {name: ROWS[:5, [at]] for at, name in enumerate("abcdef")}
        answers = run_placement(place(lowered, 8), {**inputs, "language": words.reshape(-1, 1)})["y"][:, 0]
        assert np.isnan(answers).tolist() == [False, False, True, True, True]
        second = whole(xgboost.Booster(model_file=folder / "日本.ubj"))(ROWS[1:2])
        np.testing.assert_allclose(answers[1:2], second, atol=1e-6)
        with pytest.raises(StackError, match=r"step xgb: group column language is float32"):
            lower(wanted, {**RAW, "language": Column("language", "float32")})
        with pytest.raises(StackError, match=r"step xgb: .*group es\b.*whole number"):
            lower(wanted, {**RAW, "language": Column("language", "int64")})


def test_base_score_written_in_any_way(tmp_path: Path) -> None:
    # XGBoost 3.1 and above write base_score as a list in brackets
    booster = train(base_score=0.25)
    booster.save_model(tmp_path / "m.json")
    document = json.loads((tmp_path / "m.json").read_text())
    score = document["learner"]["learner_model_param"]["base_score"].strip("[]")
    for written in (score, f"[{score}]"):
        document["learner"]["learner_model_param"]["base_score"] = written
        (tmp_path / "n.json").write_text(json.dumps(document))
        agree(tmp_path / "n.json", whole(booster))

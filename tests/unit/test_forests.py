"""What holds for forests of every library: files and names; bags, targets and groups; the columns they read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import catboost
import joblib
import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from forest_parity import agree, awkward, close, rows_of, served
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from tristage.columns import Column
from tristage.errors import ArtifactError, StackError
from tristage.export.check import run_placement
from tristage.export.forest import FORESTS, ForestConverter, read_forests
from tristage.export.lower import lower
from tristage.export.place import place
from tristage.export.reference import reference_answers
from tristage.stack import ForestStep, Stack

WIDTH = 6
RNG = np.random.default_rng(7)
ROWS = rows_of(7, 400, WIDTH)
LABELS = (np.nan_to_num(ROWS[:, 0]) + np.nan_to_num(ROWS[:, 1]) ** 2 + RNG.normal(size=400) > 0.5).astype(np.float32)
FRAME = pd.DataFrame(ROWS, columns=[f"features.{name}" for name in "abcdef"])


def train(rounds: int = 8, names: list[str] | None = None, **options: Any) -> xgboost.Booster:
    options = {"max_depth": 4, "nthread": 1, "objective": "binary:logistic", **options}
    labels = options.pop("labels", LABELS)
    return xgboost.train(options, xgboost.DMatrix(ROWS, labels, feature_names=names), num_boost_round=rounds)


def whole(booster: xgboost.Booster, **options: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: booster.predict(xgboost.DMatrix(rows), validate_features=False, **options)


@dataclass(frozen=True)
class Library:
    """A classifier of two classes of one library, how its file is written, and one that is not fitted."""

    fit: Callable[[Any], Any]
    save: Callable[[Any, Path], None]
    unfitted: Any


LIBRARIES = {
    "XGBoost": Library(
        lambda rows: xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(rows, LABELS),
        lambda model, path: model.save_model(path),
        xgboost.XGBClassifier(),
    ),
    "LightGBM": Library(
        lambda rows: lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1).fit(rows, LABELS),
        lambda model, path: model.booster_.save_model(path),
        lightgbm.LGBMClassifier(),
    ),
    "CatBoost": Library(
        lambda rows: catboost.CatBoostClassifier(5, allow_writing_files=False, logging_level="Silent").fit(
            rows, LABELS
        ),
        lambda model, path: model.save_model(str(path)),
        catboost.CatBoostClassifier(),
    ),
    "scikit-learn": Library(
        lambda rows: HistGradientBoostingClassifier(max_iter=5).fit(rows, LABELS),
        joblib.dump,
        HistGradientBoostingClassifier(),
    ),
}


@pytest.mark.parametrize("converter", FORESTS, ids=lambda converter: converter.name)
class TestEveryLibrary:
    """A library that is added to FORESTS must be added to LIBRARIES, and pass."""

    def test_answers(self, converter: ForestConverter) -> None:
        model = LIBRARIES[converter.name].fit(ROWS)
        forest = agree(model, awkward(ROWS), lambda rows: model.predict_proba(rows)[:, 1])
        assert (forest.features, forest.outputs, forest.names) == (WIDTH, 1, None)

    def test_names(self, converter: ForestConverter) -> None:
        assert agree(LIBRARIES[converter.name].fit(FRAME), [ROWS]).names == tuple(FRAME.columns)

    def test_files(self, converter: ForestConverter, tmp_path: Path) -> None:
        library = LIBRARIES[converter.name]
        model = library.fit(FRAME)
        for suffix in converter.suffixes or (".joblib",):
            library.save(model, tmp_path / f"m{suffix}")
            forest = agree(tmp_path / f"m{suffix}", awkward(ROWS), lambda rows: model.predict_proba(rows)[:, 1])
            assert forest.names == tuple(FRAME.columns)

    def test_the_same_graph_twice(self, converter: ForestConverter) -> None:
        model = LIBRARIES[converter.name].fit(ROWS)
        stacks = [stack(model, tuple("abcdef"), {"y": "forest.score"}) for _ in range(2)]
        first, second = (place(lower(each, RAW), 4).models[0].graph.SerializeToString() for each in stacks)
        assert first == second

    def test_margins(self, converter: ForestConverter) -> None:
        forests = read_forests("f", LIBRARIES[converter.name].fit(ROWS), (), grouped=False, margins=True)
        answers = served(forests, ROWS)
        close(answers[:, 0], 1 / (1 + np.exp(-answers[:, 1].astype(float))))

    def test_missing_and_empty_files(self, converter: ForestConverter, tmp_path: Path) -> None:
        suffix = (converter.suffixes or (".joblib",))[0]
        with pytest.raises(ArtifactError, match=rf"step f: there is no file .*gone\{suffix}") as caught:
            read_forests("f", tmp_path / f"gone{suffix}", (), grouped=False, trust=True)
        assert caught.value.path == tmp_path / f"gone{suffix}"
        (tmp_path / f"empty{suffix}").touch()
        with pytest.raises(ArtifactError, match=rf"empty\{suffix} is empty"):
            read_forests("f", tmp_path / f"empty{suffix}", (), grouped=False, trust=True)

    def test_unfitted(self, converter: ForestConverter) -> None:
        with pytest.raises(ArtifactError, match=r"step f: the \w+Classifier is not fitted; call fit first"):
            read_forests("f", LIBRARIES[converter.name].unfitted, (), grouped=False)


def test_importing_imports_no_library() -> None:
    script = (
        "import sys, tristage.export.forest; print(*{'xgboost', 'lightgbm', 'catboost', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ""


def test_unknown_kinds(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_text("x")
    with pytest.raises(
        ArtifactError, match=r"m\.bin is of no known kind of forest; known are \.ubj/\.json \(XGBoost\), "
    ):
        read_forests("f", tmp_path / "m.bin", (), grouped=False)
    with pytest.raises(ArtifactError, match="there is no file"):
        read_forests("f", str(tmp_path / "folder.ubj" / "x.ubj"), (), grouped=False)
    with pytest.raises(
        ArtifactError, match=r"step f: a set is no forest of a known library; known are XGBoost, LightGBM"
    ):
        read_forests("f", {1}, (), grouped=False)


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

    @pytest.mark.parametrize("average", ["predictions", "margins"])
    def test_what_a_bag_averages(self, tmp_path: Path, average: str) -> None:
        folder = save(tmp_path, {f"{target}-{bag}.ubj": bag for target in "ab" for bag in range(3)})
        forests = read_forests(
            "xgb", folder / "{target}-{bag}.ubj", ("a", "b"), grouped=False, average=average, margins=True
        )
        answers = served(forests, ROWS)
        assert answers.shape == (400, 4)
        boosters = [xgboost.Booster(model_file=folder / f"a-{bag}.ubj") for bag in range(3)]
        margins = np.mean([whole(booster, output_margin=True)(ROWS) for booster in boosters], axis=0)
        predictions = np.mean([whole(booster)(ROWS) for booster in boosters], axis=0)
        close(answers[:, 0], predictions if average == "predictions" else 1 / (1 + np.exp(-margins.astype(float))))
        close(answers[:, 2], margins)

    def test_margins_of_classes(self) -> None:
        options = {"num_class": 3, "labels": RNG.integers(0, 3, 400)}
        bag = [train(3, objective="multi:softmax", seed=seed, subsample=0.5, **options) for seed in (1, 2)]
        forests = read_forests("xgb", bag, (), grouped=False, average="margins", margins=True)
        answers = served(forests, ROWS)
        margins = np.mean([whole(booster, output_margin=True)(ROWS) for booster in bag], axis=0)
        np.testing.assert_array_equal(answers[:, 0], margins.argmax(axis=1))
        close(answers[:, 1:], margins)

    def test_labels_have_no_mean(self) -> None:
        bag = [train(3, objective="binary:hinge", seed=seed, subsample=0.5) for seed in (1, 2)]
        with pytest.raises(StackError, match=r"step xgb: its forests answer labels, which have no mean; add average"):
            read_forests("xgb", bag, (), grouped=False)
        margins = np.mean([whole(booster, output_margin=True)(ROWS) for booster in bag], axis=0)
        forests = read_forests("xgb", bag, (), grouped=False, average="margins")
        np.testing.assert_array_equal(served(forests, ROWS)[:, 0], margins > 0)

    def test_margins_that_mean_different_things(self) -> None:
        bag = [train(3), train(3, objective="count:poisson")]
        assert read_forests("xgb", bag, (), grouped=False).outputs == 1
        with pytest.raises(ArtifactError, match=r"step xgb: .*in the same way; these differ: exponential, sigmoid"):
            read_forests("xgb", bag, (), grouped=False, average="margins")

    def test_no_margins(self) -> None:
        forest = RandomForestClassifier(2).fit(ROWS, LABELS)
        for options in ({"average": "margins"}, {"margins": True}):
            with pytest.raises(StackError, match=r"step f: its forests average their trees' answers and have no marg"):
                read_forests("f", forest, (), grouped=False, **options)

    def test_in_memory(self) -> None:
        one, two, three = (train(3, seed=seed, subsample=0.5) for seed in (1, 2, 3))
        close(
            served(read_forests("xgb", [one, two], (), grouped=False), ROWS)[:, 0],
            (whole(one)(ROWS) + whole(two)(ROWS)) / 2,
        )
        forests = read_forests("xgb", {"b": one, "a": [two, three]}, ("a", "b", "c"), grouped=False)
        assert forests.targets == ("a", "b")
        close(served(forests, ROWS), np.stack([(whole(two)(ROWS) + whole(three)(ROWS)) / 2, whole(one)(ROWS)], 1))
        forests = read_forests("xgb", {10: {"a": one, "b": two}, 2: {"a": three, "b": one}}, ("a", "b"), grouped=True)
        assert forests.groups == ("2", "10")
        close(served(forests, ROWS, np.ones(400)), np.stack([whole(one)(ROWS), whole(two)(ROWS)], 1))
        forests = read_forests("xgb", {"x": one, "y": [two, three]}, (), grouped=True)
        assert (forests.groups, forests.targets) == (("x", "y"), (None,))

    def test_in_memory_wrong(self) -> None:
        one = train(3)
        with pytest.raises(StackError, match="step xgb has no forest in it; give it at least one"):
            read_forests("xgb", {}, (), grouped=False)
        with pytest.raises(StackError, match=r"step xgb has forests for a, which targets \(b\) lacks"):
            read_forests("xgb", {"a": one}, ("b",), grouped=False)
        with pytest.raises(StackError, match="step xgb names a group column but no"):
            read_forests("xgb", one, (), grouped=True)
        with pytest.raises(ArtifactError, match="step xgb, target a, bag 1: a dict is no forest"):
            read_forests("xgb", {"a": [one, {}]}, ("a",), grouped=False)

    def test_a_bag_of_libraries(self) -> None:
        bag = [library.fit(ROWS) for library in LIBRARIES.values()]
        forests = read_forests("f", bag, (), grouped=False, average="margins", margins=True)
        answers = served(forests, ROWS)
        margins = np.mean([forest.margins(ROWS) for forest in forests.all() if forest.margins], axis=0)
        close(answers[:, 1], margins[:, 0])
        close(answers[:, 0], 1 / (1 + np.exp(-margins[:, 0].astype(float))))

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
    name = next(iter(outputs.values())).split(".")[0]
    return Stack("s", {name: ForestStep(forest, reads, **rest)}, outputs)


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

    @pytest.mark.parametrize("average", ["predictions", "margins"])
    def test_margins_are_columns(self, average: str) -> None:
        bag = {
            target: [train(3, seed=seed, subsample=0.5) for seed in seeds]
            for target, seeds in (("x", "12"), ("y", "34"))
        }
        outputs = {"s": "xgb.x", "t": "xgb.y", "u": "xgb.x_margin", "v": "xgb.y_margin"}
        step = ForestStep(bag, tuple("abcdef"), average=average, margins=True)
        lowered = lower(Stack("s", {"xgb": step}, outputs, targets=("x", "y")), RAW)
        assert [column.name for column in lowered.steps[0].columns] == ["x", "y", "x_margin", "y_margin"]
        answers = run_placement(place(lowered, 64), {name: ROWS[:, [at]] for at, name in enumerate("abcdef")})
        wanted = reference_answers(lowered, pd.DataFrame(ROWS, columns=list("abcdef")))["xgb"]
        for name, reference in outputs.items():
            close(answers[name][:, 0], wanted[reference.split(".")[1]])
        margins = np.mean([whole(booster, output_margin=True)(ROWS) for booster in bag["y"]], axis=0)
        close(answers["v"][:, 0], margins)
        if average == "margins":
            close(answers["t"][:, 0], 1 / (1 + np.exp(-margins.astype(float))))

    def test_margins_of_labels(self) -> None:
        booster = train(objective="multi:softmax", num_class=3, labels=RNG.integers(0, 3, 400))
        lowered = lower(stack(booster, tuple("abcdef"), {"y": "xgb.score"}, margins=True), RAW)
        assert [column.name for column in lowered.steps[0].columns] == ["score", "margin0", "margin1", "margin2"]

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

"""The forest engine: equal to the training libraries and to Treelite on awkward rows; safe on damaged files."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import treelite
import treelite.model_builder as tree_builder
import xgboost
from sklearn import ensemble

from tristage.errors import ArtifactError
from tristage.export.forest import read_forests
from tristage.export.forest.to_engine import EngineRefusal, Member, pack, pack_forests
from tristage.serving.forest import ForestEngine, ForestError, available
from tristage.serving.forest.engine import Engine

WIDTH = 7
COUNTS = (0, 1, 2, 8, 9, 15, 16, 17, 24, 25, 63, 64, 65, 130)  # one row, some, packs of 16, blocks of 64, and edges
F32 = np.finfo(np.float32)
AWKWARD = np.array(
    [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, F32.max, F32.min, F32.tiny, 1e-45, -1e-45, 1e30, -1e30, 1, -1],
    np.float32,
)


def rows_of(count: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, width)).astype(np.float32)
    strange = rng.random(rows.shape) < 0.2
    rows[strange] = rng.choice(AWKWARD, strange.sum())
    return rows


def opened(tmp_path: Path, members: Sequence[Member], features: int = WIDTH) -> ForestEngine:
    path = tmp_path / "packed.forest"
    path.write_bytes(pack(members, features))
    return ForestEngine(path)


def agree(engine: ForestEngine, expected: Any, rows: np.ndarray, counts: Sequence[int] = COUNTS) -> None:
    wanted = np.asarray(expected(rows)).reshape(len(rows), engine.outputs)
    for count in (*counts, len(rows)):
        answers = engine.predict(rows[:count])
        assert answers.shape == (count, engine.outputs)
        np.testing.assert_allclose(answers, wanted[:count], atol=1e-6, rtol=1e-6)


def train(rows: np.ndarray, rounds: int = 40, seed: int = 0, **options: Any) -> xgboost.Booster:
    labels = np.random.default_rng(seed).random(len(rows)) < 0.5
    labels = options.pop("labels", (labels ^ (np.nan_to_num(rows[:, 0]) > 0.1)).astype(np.float32))
    options = {"objective": "binary:logistic", "nthread": 1, "seed": seed, **options}
    return xgboost.train(options, xgboost.DMatrix(rows, labels), rounds)


def finite_rows(count: int, seed: int = 0) -> np.ndarray:
    """Rows that XGBoost trains on: no infinities, but values near them, near zero, and missing ones."""
    rows = rows_of(count, seed)
    rows[np.isinf(rows)] = 0
    return rows


def from_xgboost(booster: xgboost.Booster) -> Any:
    return treelite.frontend.from_xgboost(booster)


def test_the_engine_is_built() -> None:
    assert available(), "the forest engine was not compiled; see the output of `pip install -v .`"


def test_a_checkout_uses_the_installed_engine() -> None:
    script = "import tristage.serving.forest as forest; print(forest.__file__, forest.available())"
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=env, check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [str(root / "serving" / "forest" / "__init__.py"), "True"]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("depth", range(1, 13))
def test_xgboost_of_every_depth(depth: int, missing: bool, tmp_path: Path) -> None:
    rows = finite_rows(1500, depth)
    if not missing:
        rows = np.nan_to_num(rows)
    booster = train(rows, max_depth=depth, min_child_weight=0, seed=depth)
    engine = opened(tmp_path, [Member(from_xgboost(booster))])
    agree(engine, booster.inplace_predict, rows_of(300, depth + 100))
    agree(engine, booster.inplace_predict, rows)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "reg:squarederror"},
        {"objective": "reg:squarederror", "base_score": 1e4},
        {"objective": "binary:logistic", "base_score": 0.03},
        {"objective": "binary:logitraw"},
        {"objective": "count:poisson"},
        {"objective": "multi:softprob", "num_class": 3, "labels": np.arange(600) % 3},
        {"objective": "binary:logistic", "num_parallel_tree": 5, "subsample": 0.5},
        {"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.2},
        {"objective": "binary:logistic", "grow_policy": "lossguide", "max_leaves": 9, "max_depth": 0},
        {"objective": "binary:logistic", "tree_method": "exact"},
        {"objective": "binary:logistic", "gamma": 1e9},
    ],
    ids=str,
)
def test_xgboost_of_every_kind(options: dict[str, Any], tmp_path: Path) -> None:
    rows = finite_rows(600)
    booster = train(rows, **options)
    agree(opened(tmp_path, [Member(from_xgboost(booster))]), booster.inplace_predict, rows_of(300, 1))


def test_a_thousand_trees_add_up_as_xgboost_adds_them(tmp_path: Path) -> None:
    rows = finite_rows(400)
    booster = train(rows, rounds=1000, max_depth=6, eta=0.3, objective="binary:logitraw", base_score=0.5)
    engine = opened(tmp_path, [Member(from_xgboost(booster))])
    for count in (1, 300, 400):
        assert np.array_equal(engine.predict(rows[:count])[:, 0], booster.inplace_predict(rows[:count])), "bit for bit"


def test_no_trees_and_one_leaf(tmp_path: Path) -> None:
    rows = finite_rows(100)
    for booster in (train(rows, rounds=0, base_score=0.2), train(rows, rounds=3, max_depth=1, gamma=1e9)):
        agree(opened(tmp_path, [Member(from_xgboost(booster))]), booster.inplace_predict, rows_of(150))


@pytest.mark.parametrize(
    "model",
    [
        ensemble.GradientBoostingRegressor(n_estimators=50, max_depth=5),
        ensemble.GradientBoostingClassifier(n_estimators=50, max_depth=3),
        ensemble.RandomForestRegressor(n_estimators=30),
        ensemble.RandomForestClassifier(n_estimators=30),
        ensemble.RandomForestClassifier(n_estimators=20, max_depth=6),
        ensemble.ExtraTreesClassifier(n_estimators=20, max_leaf_nodes=12),
    ],
    ids=lambda model: f"{type(model).__name__}-{model.max_depth}",
)
@pytest.mark.parametrize("classes", [2, 3])
def test_sklearn(model: Any, classes: int, tmp_path: Path) -> None:
    rows = np.clip(np.nan_to_num(finite_rows(500)), -1e6, 1e6)
    model.set_params(random_state=0).fit(rows, np.arange(500) * 7 // 3 % classes)
    predict = getattr(model, "predict_proba", model.predict)
    converted = treelite.sklearn.import_model(model)
    outputs = int(converted.get_header_accessor().get_field("num_class")[0])
    expected = (lambda rows: predict(rows)[:, 1]) if outputs == 1 and classes == 2 else predict
    if not hasattr(model, "predict_proba"):
        expected = predict
    agree(opened(tmp_path, [Member(converted)]), expected, np.clip(np.nan_to_num(rows_of(300, 1)), -1e6, 1e6))


def random_model(seed: int, *, kind: str, depth: int, trees: int = 12, operators: Sequence[str] = ()) -> Any:
    """A forest of random trees: every operator, awkward thresholds, both ways for NaN."""
    rng = np.random.default_rng(seed)
    builder = tree_builder.ModelBuilder(
        threshold_type=kind,
        leaf_output_type=kind,
        metadata=tree_builder.Metadata(WIDTH, "kRegressor", bool(seed % 2), 1, [1], (1, 1)),
        tree_annotation=tree_builder.TreeAnnotation(trees, [0] * trees, [0] * trees),
        postprocessor=tree_builder.PostProcessorFunc(name="sigmoid", sigmoid_alpha=1.5),
        base_scores=[float(rng.normal())],
    )
    thresholds = np.concatenate([AWKWARD[2:], rng.normal(size=20)]).astype(kind)
    if kind == "float64":
        finest = np.finfo(np.float32).eps / 4
        thresholds = np.concatenate([thresholds, [1 + finest, 1 - finest, 1e300, -1e300, 1e-300, -1e-300]])
    for _ in range(trees):
        builder.start_tree()
        level, fresh = [(0, 0)], 1
        while level:
            key, at = level.pop()
            builder.start_node(key)
            if at == depth or (at and rng.random() < 0.15):
                builder.leaf(float(rng.normal()))
            else:
                builder.numerical_test(
                    feature_id=int(rng.integers(WIDTH)),
                    threshold=float(rng.choice(thresholds)),
                    default_left=bool(rng.integers(2)),
                    opname=str(rng.choice(operators or ["<", "<=", ">", ">="])),
                    left_child_key=fresh,
                    right_child_key=fresh + 1,
                )
                level += [(fresh, at + 1), (fresh + 1, at + 1)]
                fresh += 2
            builder.end_node()
        builder.end_tree()
    return builder.commit()


def gtil(model: Any) -> Any:
    def predict(rows: np.ndarray) -> np.ndarray:
        kind = model.get_tree_accessor(0).get_field("threshold").dtype
        return treelite.gtil.predict(model, rows.astype(kind), nthread=1).reshape(len(rows), -1)

    return predict


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("depth", range(1, 13))
def test_random_trees(depth: int, kind: str, tmp_path: Path) -> None:
    for seed in range(4):
        model = random_model(seed * 13 + depth, kind=kind, depth=depth)
        rows = rows_of(600, seed)
        rows[:200] = np.random.default_rng(seed).choice(AWKWARD, (200, WIDTH))
        agree(opened(tmp_path, [Member(model)]), gtil(model), rows)


def test_more_thresholds_than_ranks(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(60_000, 1)).astype(np.float32)
    model = ensemble.RandomForestRegressor(n_estimators=1, bootstrap=False, random_state=0).fit(
        rows, rng.normal(size=60_000)
    )
    converted = treelite.sklearn.import_model(model)
    assert len(set(converted.get_tree_accessor(0).get_field("threshold"))) > 40_000
    engine = opened(tmp_path, [Member(converted)], 1)
    agree(engine, model.predict, rows)
    agree(engine, gtil(converted), np.concatenate([rows[:1000], AWKWARD[:, None]]))


def test_bags_and_targets_in_one_file(tmp_path: Path) -> None:
    rows = finite_rows(500)
    boosters = {
        (target, bag): train(rows, rounds=10 + bag, max_depth=3 + 3 * bag, seed=bag + 7 * target)
        for target in range(3)
        for bag in range(4)
    }
    engine = opened(tmp_path, [Member(from_xgboost(b), target, 0.25) for (target, _), b in boosters.items()])

    def mean(rows: np.ndarray) -> np.ndarray:
        answers = {key: booster.inplace_predict(rows).astype(np.float64) for key, booster in boosters.items()}
        return np.stack([sum(answers[target, bag] for bag in range(4)) / 4 for target in range(3)], axis=1)

    agree(engine, mean, rows_of(300, 1))


def test_groups_meet_their_own_trees(tmp_path: Path) -> None:
    rows = finite_rows(500)
    boosters = [[train(rows, rounds=7, max_depth=2 + 2 * g, seed=2 * g + t) for t in range(2)] for g in range(5)]
    members = [Member(from_xgboost(boosters[g][t]), t, 1.0, g) for g in range(5) for t in range(2)]
    engine = opened(tmp_path, members)
    assert engine.groups == 5
    rows = rows_of(2500, 1)
    groups = np.random.default_rng(0).integers(-1, 7, len(rows))  # -1, 5 and 6 are not there
    expected = np.full((len(rows), 2), np.nan, np.float32)
    for g in range(5):
        for t in range(2):
            expected[groups == g, t] = boosters[g][t].inplace_predict(rows[groups == g])
    for count in (*COUNTS, 1023, 1024, 1025, len(rows)):
        np.testing.assert_allclose(engine.predict(rows[:count], groups[:count]), expected[:count], atol=1e-6)
    np.testing.assert_allclose(engine.predict(rows)[:, 0], boosters[0][0].inplace_predict(rows), atol=1e-6)


def test_groups_may_come_in_any_order_but_not_be_left_out(tmp_path: Path) -> None:
    rows = finite_rows(200)
    models = [from_xgboost(train(rows, rounds=4, seed=seed)) for seed in range(3)]
    straight = pack([Member(model, group=group) for group, model in enumerate(models)], WIDTH)
    assert pack([Member(models[group], group=group) for group in (2, 0, 1)], WIDTH) == straight
    with pytest.raises(ValueError, match="group"):
        pack([Member(models[0], group=1)], WIDTH)


def test_a_step_is_packed_as_the_step_answers(tmp_path: Path) -> None:
    rows = finite_rows(300)
    for number in range(2):
        for target in ("like", "reply"):
            for bag in range(2):
                train(rows, rounds=5, seed=number + bag).save_model(tmp_path / f"{number}-{target}-{bag}.ubj")
    forests = read_forests("xgb", tmp_path / "{group}-{target}-{bag}.ubj", ("reply", "like"), grouped=True)
    (tmp_path / "packed.forest").write_bytes(pack_forests(forests))
    groups = np.arange(300) % 2
    answers = ForestEngine(tmp_path / "packed.forest").predict(rows, groups)
    for row_group, number in ((0, "0"), (1, "1")):
        for column, target in enumerate(("reply", "like")):
            bag = [forest.predict(rows)[:, 0] for forest in forests.forests[number, target]]
            mine = groups == row_group
            np.testing.assert_allclose(answers[mine, column], np.mean(bag, axis=0)[mine], atol=1e-6)
    assert pack_forests(forests) == (tmp_path / "packed.forest").read_bytes()


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    booster = train(finite_rows(200))
    engine = opened(tmp_path, [Member(from_xgboost(booster))])
    rows = rows_of(50)
    wanted = engine.predict(rows)
    assert np.array_equal(engine.predict(np.asfortranarray(rows)), wanted)
    assert np.array_equal(engine.predict(np.repeat(rows, 2, axis=0)[::2]), wanted)
    assert np.array_equal(engine.predict(rows.astype(np.float64)), wanted)
    out = np.full((50, 1), 7, np.float32)
    assert engine.predict(rows, out=out) is out
    assert np.array_equal(out, wanted)
    for wrong in (rows[:, :-1], np.zeros((3, WIDTH + 1)), np.zeros(WIDTH), np.zeros((1, 1, WIDTH))):
        with pytest.raises(ForestError):
            engine.predict(wrong)
    fixed = rows.copy()
    fixed.setflags(write=False)
    assert np.array_equal(engine.predict(fixed), wanted)
    read_only = np.empty((50, 1), np.float32)
    read_only.setflags(write=False)
    for out in (np.empty((49, 1), np.float32), np.empty((50, 2), np.float32), np.empty((50, 1)), read_only,
                np.empty((1, 50), np.float32).T[::1, :1][:, ::-1], np.empty((100, 1), np.float32)[::2]):  # fmt: skip
        if not (out.flags.c_contiguous and out.flags.writeable and out.dtype == np.float32 and out.shape == (50, 1)):
            with pytest.raises(ForestError):
                engine.predict(rows, out=out)
    with pytest.raises(ForestError, match="50 rows"):
        engine.predict(rows, np.zeros(49, np.int64))
    with pytest.raises(ForestError):
        engine.predict(rows, np.zeros((50, 1), np.int64))


def test_many_threads(tmp_path: Path) -> None:
    rows = rows_of(3000)
    booster = train(finite_rows(500), rounds=100, max_depth=8)
    engine = opened(tmp_path, [Member(from_xgboost(booster))])
    wanted = engine.predict(rows)
    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(lambda _: engine.predict(rows), range(16)):
            assert np.array_equal(answers, wanted)


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    rows = finite_rows(300)
    booster = train(rows, max_depth=9)
    booster.save_model(tmp_path / "model.ubj")
    script = (
        "import sys, hashlib, treelite, xgboost; from tristage.export.forest.to_engine import Member, pack;"
        "b = xgboost.Booster(model_file=sys.argv[1]); m = treelite.frontend.from_xgboost(b);"
        f"print(hashlib.sha256(pack([Member(m), Member(m, 1)], {WIDTH})).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "model.ubj")],
            env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True, timeout=120,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1


def packed_examples() -> list[bytes]:
    rows = finite_rows(300)
    shallow, deep = (from_xgboost(train(rows, rounds=6, max_depth=depth)) for depth in (6, 11))
    flat = from_xgboost(
        train(rows, rounds=2, max_depth=2, objective="multi:softprob", num_class=3, labels=np.arange(300) % 3)
    )
    return [
        pack([Member(shallow), Member(deep, 1), Member(flat, 2)], WIDTH),
        pack([Member(shallow, group=0), Member(deep, group=1)], WIDTH),
    ]


def aligned(data: bytes) -> np.ndarray:
    room = np.empty(len(data) + 64, np.uint8)
    start = -room.ctypes.data % 64
    room = room[start : start + len(data)]
    room[:] = np.frombuffer(data, np.uint8)
    return room


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "packed.forest"
    for data in packed_examples():
        path.write_bytes(data)
        assert ForestEngine(path).features == WIDTH
        for size in (0, 1, 12, 63, 64, 127, 128, 129, len(data) // 2, len(data) - 64, len(data) - 1):
            path.write_bytes(data[:size])
            with pytest.raises(ForestError):
                ForestEngine(path)
        path.write_bytes(data + b"\0" * 64)
        with pytest.raises(ForestError):
            ForestEngine(path)
        for place in (*range(0, 256, 5), *range(256, len(data), len(data) // 50)):
            damaged = bytearray(data)
            damaged[place] ^= 0x40
            path.write_bytes(damaged)
            with pytest.raises(ForestError):
                ForestEngine(path)
    with pytest.raises(ForestError):
        ForestEngine(tmp_path / "nothing")
    with pytest.raises(ForestError):
        ForestEngine(tmp_path)


def test_forged_files_do_no_harm() -> None:
    """Files that were changed by someone who knows the checksum: refused, or answered with some numbers."""
    rng = np.random.default_rng(0)
    refused = answered = 0
    rows, groups = rows_of(70), np.arange(70) % 3
    for data in packed_examples():
        for size in range(0, len(data), 97):
            with pytest.raises(ValueError, match="it is"):
                Engine(aligned(data[:size]))
        for attempt in range(1500):
            forged = aligned(data)
            where = rng.integers(0, 1600 if attempt % 2 else len(data), rng.integers(1, 4))
            if attempt % 3:
                forged[where] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)], len(where))
            else:
                word = forged[: len(data) // 4 * 4].view(np.uint32)
                word[where // 4 % len(word)] = rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 5, 1 << 16])
            try:
                engine = Engine(forged)
            except ValueError:
                refused += 1
                continue
            answered += 1
            if engine.features <= 64 and engine.outputs <= 64:
                for count in (1, 70):
                    out = np.empty((count, engine.outputs), np.float32)
                    some = np.resize(rows, (count, engine.features))
                    engine.predict(some, out, groups[:count])
    assert refused > 100
    assert answered > 100


def test_what_the_layout_cannot_take(tmp_path: Path) -> None:
    rows = finite_rows(200)
    frame_types = ["c"] + ["q"] * (WIDTH - 1)
    categories = rows.copy()
    categories[:, 0] = np.arange(200) % 5
    data = xgboost.DMatrix(categories, np.arange(200) % 5 == 2, feature_types=frame_types, enable_categorical=True)
    booster = xgboost.train({"max_cat_to_onehot": 1, "nthread": 1}, data, 3)
    with pytest.raises(EngineRefusal, match="categorical"):
        pack([Member(from_xgboost(booster))], WIDTH)
    wide = np.random.default_rng(0).normal(size=(3, 4200)).astype(np.float32)
    stumps = tree_builder.ModelBuilder(
        threshold_type="float32",
        leaf_output_type="float32",
        metadata=tree_builder.Metadata(4200, "kRegressor", False, 1, [1], (1, 1)),
        tree_annotation=tree_builder.TreeAnnotation(4200, [0] * 4200, [0] * 4200),
        postprocessor=tree_builder.PostProcessorFunc(name="identity"),
        base_scores=[0.0],
    )
    for feature in range(4200):
        stumps.start_tree()
        stumps.start_node(0)
        stumps.numerical_test(feature, 0.0, default_left=True, opname="<", left_child_key=1, right_child_key=2)
        stumps.end_node()
        for key in (1, 2):
            stumps.start_node(key)
            stumps.leaf(float(key))
            stumps.end_node()
        stumps.end_tree()
    with pytest.raises(EngineRefusal, match="columns"):
        pack([Member(stumps.commit())], wide.shape[1])
    with pytest.raises(EngineRefusal, match="column"):
        pack([Member(from_xgboost(train(rows)))], 1)
    unknown = from_xgboost(train(rows))
    unknown.get_header_accessor().set_field("postprocessor", "hinge")
    with pytest.raises(EngineRefusal, match="hinge"):
        pack([Member(unknown)], WIDTH)
    assert issubclass(EngineRefusal, ArtifactError)


def test_the_checksum_is_of_the_whole_file() -> None:
    data = packed_examples()[0]
    assert zlib.crc32(data[16:]) == int.from_bytes(data[12:16], "little")

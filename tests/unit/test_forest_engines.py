"""Every engine on every kind of forest: equal to the training library on awkward rows, or refused with the reason."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from forest_parity import awkward, rows_of
from forest_sets import FULL, ROWS, SETS, WIDTH, booster, of_groups, of_targets

from tristage.errors import ArtifactError, RepositoryError
from tristage.export.check import distance
from tristage.export.forest import ForestSet
from tristage.export.forest.engine_nodes import EngineRefusal
from tristage.export.forest.engines import CANDIDATES, write_default
from tristage.export.forest.sources import read_sources, write_sources
from tristage.export.tuning.rows import draw
from tristage.serving.forest import ENGINES, ForestEngine, ForestError, OpenForest, open_forest
from tristage.serving.forest.members import MemberForests
from tristage.serving.forest.recipe import Recipe

_BEYOND = {
    "regression": 1e-5,  # sums around a thousand in float32: XGBoost itself rounds them so far
}
_POSTPROCESSOR = "the engine knows no postprocessor"
_MARGINS = {"tristage": "the engine answers no margins"}
_CATEGORIES = {"tristage": "no categorical splits", "onedal": "oneDAL takes no categorical splits"}
_STRANGER = {"xgboost": "XGBoost did not train"}
# who cannot take a set, and why; all others must answer as the library does
REFUSED: dict[str, dict[str, str]] = {
    "labels": {"tristage": f"{_POSTPROCESSOR} argmax"},
    "hinge": {"tristage": f"{_POSTPROCESSOR} hinge"},
    "two outputs": {"tristage": "of one target each", "onedal": "oneDAL takes forests of one target each"},
    "categories": _CATEGORIES,
    "categories of a frame": _CATEGORIES,
    "margins": _MARGINS,
    "targets, mean margins": _MARGINS,
    "groups, margins": _MARGINS,
    "lightgbm": _STRANGER,
    "lightgbm multiclass": _STRANGER,
    "lightgbm categories": {**_CATEGORIES, **_STRANGER},
    "catboost": _STRANGER,
    "random forest": _STRANGER,
    "random forest of three": {**_STRANGER, "onedal": "down to their deepest leaf"},
    "isolation forest": {**_STRANGER, "tristage": f"{_POSTPROCESSOR} exponential_standard_ratio"},
    "libraries": {**_STRANGER, "onnxruntime-joined": "some of its forests compare in float32"},
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def opened(name: str, forests: ForestSet, folder: Path) -> OpenForest:
    candidate = CANDIDATES[name]
    file = folder / (Path(write_sources(forests, folder)).stem + candidate.suffix)
    candidate.write(forests, file)
    return open_forest(candidate.engine, file)


def batches(name: str, forests: ForestSet) -> list[np.ndarray]:
    """Rows that the library answers: scikit-learn refuses infinities, LightGBM rounds its own threshold of 1e-35."""
    drawn, _ = draw(forests, 300)
    if "forest" in name:
        return [FULL, FULL[:1], FULL[:0]]
    if name.startswith(("lightgbm", "libraries")):
        drawn[np.abs(drawn) < 1e-30] = 0
        return [drawn, drawn[:1], drawn[:0], ROWS]
    if "categories" in name:
        return [drawn, drawn[:1], drawn[:0]]
    return [drawn, *awkward(ROWS)]


def expected(forests: ForestSet, rows: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    if groups is None:
        return forests.answer(rows, None)
    answers = np.full((len(rows), forests.width), np.nan, np.float32)
    for number, group in enumerate(forests.groups):
        if (groups == number).any():
            answers[groups == number] = forests.answer(rows[groups == number], group)
    return answers


@pytest.mark.parametrize("name", SETS)
def test_every_engine_answers_as_the_library_or_says_why_not(name: str, tmp_path: Path) -> None:
    forests = SETS[name]()
    refused = REFUSED.get(name, {})
    for candidate in CANDIDATES:
        if candidate in refused:
            with pytest.raises(EngineRefusal, match=refused[candidate]):
                opened(candidate, forests, tmp_path)
            continue
        engine = opened(candidate, forests, tmp_path)
        assert (engine.features, engine.outputs) == (WIDTH, forests.width)
        for rows in batches(name, forests):
            groups = None if forests.groups == (None,) else np.arange(len(rows)) % (len(forests.groups) + 2) - 1
            answers = engine.predict(rows, groups)
            assert (answers.dtype, answers.shape) == (np.float32, (len(rows), forests.width))
            furthest = distance(answers, expected(forests, rows, groups)).max(initial=0)
            assert furthest <= _BEYOND.get(name, 1e-6), (candidate, len(rows))


@pytest.mark.parametrize("name", SETS)
def test_what_lies_in_a_repository_answers_as_what_was_trained(name: str, tmp_path: Path) -> None:
    forests = SETS[name]()
    recipe = write_sources(forests, tmp_path)
    assert recipe == write_sources(SETS[name](), tmp_path)
    read = read_sources(tmp_path / recipe)
    assert (read.groups, read.targets, read.width) == (forests.groups, forests.targets, forests.width)
    for rows in batches(name, forests):
        for group in forests.groups:
            furthest = distance(read.answer(rows, group), forests.answer(rows, group)).max(initial=0)
            assert furthest <= 1e-6
    wanted = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert not any(content.startswith(b"\x80") and content.endswith(b".") for content in wanted.values()), "no pickle"
    assert set(wanted) == {recipe, *Recipe.read(tmp_path / recipe).files()}


def test_the_default_engine(tmp_path: Path) -> None:
    for name, engine in (("binary", "tristage"), ("categories", "onnxruntime"), ("margins", "onnxruntime")):
        recipe, choice = write_default(SETS[name](), tmp_path)
        assert (choice.rows, choice.engine) == (None, engine)
        assert Path(choice.file).stem == Path(recipe).stem
        assert (tmp_path / choice.file).is_file()


@pytest.mark.parametrize("engine", ["xgboost", "onedal"])
def test_rows_meet_their_own_groups_trees_only(engine: str, tmp_path: Path) -> None:
    forests = opened(engine, of_groups(), tmp_path)
    assert isinstance(forests, MemberForests)
    met: list[tuple[int, int]] = []

    def spy(number: int) -> Any:
        def ask(rows: np.ndarray) -> Any:
            met.append((number, len(rows)))
            return forests.ask[number](rows)

        return ask

    spied = MemberForests(forests.recipe, [spy(number) for number in range(len(forests.ask))])
    answers = spied.predict(ROWS[:6], np.array([2, 0, -1, 2, 9, 2]))
    assert met == [(0, 1), (1, 1), (4, 3), (5, 3)]
    assert np.isnan(answers[[2, 4]]).all()
    assert not np.isnan(answers[[0, 1, 3, 5]]).any()


def test_onnx_runtime_runs_the_asked_groups_part_alone(tmp_path: Path) -> None:
    from tristage.serving.forest.onnxruntime import OnnxForest

    forest = opened("onnxruntime", of_groups(), tmp_path)
    assert isinstance(forest, OnnxForest)
    assert forest._options.only_execute_path_to_fetches
    assert [output.name for output in forest._session.get_outputs()] == ["group0", "group1", "group2"]


@pytest.mark.parametrize("name", CANDIDATES)
def test_rows_that_do_not_fit(name: str, tmp_path: Path) -> None:
    forest = opened(name, of_targets(), tmp_path)
    wanted = forest.predict(ROWS)
    assert np.array_equal(forest.predict(np.asfortranarray(ROWS)), wanted)
    assert np.array_equal(forest.predict(np.repeat(ROWS, 2, axis=0)[::2]), wanted)
    for wrong in (ROWS[:, :-1], rows_of(0, 3, WIDTH + 1), np.zeros(WIDTH, np.float32)):
        with pytest.raises(ForestError):
            forest.predict(wrong)
    with pytest.raises(ForestError, match="400 rows"):
        forest.predict(ROWS, np.zeros(399, np.int64))


@pytest.mark.parametrize("name", CANDIDATES)
def test_files_that_are_damaged_or_gone(name: str, tmp_path: Path) -> None:
    opened(name, of_targets(), tmp_path)
    candidate = CANDIDATES[name]
    (file,) = tmp_path.glob(f"forest-*{candidate.suffix}")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ForestError, match=file.name):
        open_forest(candidate.engine, file)
    file.unlink()
    with pytest.raises(ForestError, match=file.name):
        open_forest(candidate.engine, file)


@pytest.mark.parametrize(("name", "kind"), [("binary", "ubj"), ("catboost", "tl")])
def test_damaged_trees(name: str, kind: str, tmp_path: Path) -> None:
    recipe = tmp_path / write_sources(SETS[name](), tmp_path)
    (trees,) = tmp_path.glob(f"*.{kind}")
    trees.write_bytes(trees.read_bytes()[:100])
    with pytest.raises((ArtifactError, RepositoryError), match=trees.name):
        read_sources(recipe)
    if kind == "ubj":
        with pytest.raises(ForestError, match=trees.name):
            open_forest("xgboost", recipe)


def test_an_engine_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(ForestError, match="asks for the engine fpga; this tristage has tristage, onnxruntime"):
        open_forest("fpga", tmp_path / "forest.bin")


@pytest.mark.parametrize(("engine", "package"), [("onedal", "daal4py"), ("xgboost", "xgboost")])
def test_a_library_that_is_missing(engine: str, package: str, tmp_path: Path) -> None:
    opened(engine, of_targets(), tmp_path)
    (file,) = tmp_path.glob(f"forest-*{CANDIDATES[engine].suffix}")
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from pathlib import Path; from tristage.serving.forest import ForestError, open_forest\n"
        f"try: open_forest({engine!r}, Path({str(file)!r}))\n"
        "except ForestError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert f"{file} is answered by {engine}, but {package} is not installed" in done.stdout
    assert "pip install 'tristage[tune]'" in done.stdout


def test_no_library_is_imported_before_a_program_names_it(tmp_path: Path) -> None:
    opened("tristage", of_targets(), tmp_path)
    (file,) = tmp_path.glob("forest-*.bin")
    script = (
        "import sys; from pathlib import Path; from tristage.serving.forest import open_forest\n"
        f"open_forest('tristage', Path({str(file)!r}))\n"
        "print(*{'daal4py', 'xgboost', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", ["onnxruntime", "onedal", "xgboost"])
def test_one_thread_is_set_in_every_engine(name: str, tmp_path: Path) -> None:
    """Threads that an engine starts stay: a process that has answered many rows has as many as it had before."""
    forests = ForestSet({(None, None): (SETS["binary"]().all()[0],)}, (None,), (None,))
    opened(name, forests, tmp_path)
    candidate = CANDIDATES[name]
    (file,) = tmp_path.glob(f"forest-*{candidate.suffix}")
    script = (
        "import os; from pathlib import Path; import numpy as np\n"
        "from tristage.serving.forest import open_forest\n"
        f"rows = np.zeros((200_000, {WIDTH}), np.float32)\n"
        f"forest = open_forest({candidate.engine!r}, Path({str(file)!r}), 1)\n"
        "before = len(os.listdir('/proc/self/task')); forest.predict(rows)\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0"


def test_joined_trees_are_the_same_trees(tmp_path: Path) -> None:
    forests = of_targets()
    apart, joined = (opened(name, forests, tmp_path) for name in ("onnxruntime", "onnxruntime-joined"))
    rows, _ = draw(forests, 500)
    np.testing.assert_allclose(joined.predict(rows), apart.predict(rows), atol=1e-7)
    import onnx

    counts = {
        path.name.endswith("-joined.onnx"): [node.op_type for node in onnx.load(path).graph.node].count(
            "TreeEnsembleRegressor"
        )
        for path in tmp_path.glob("*.onnx")
    }
    assert counts == {False: 5, True: 1}


def test_drawn_rows_lie_on_thresholds_and_beside_them() -> None:
    forests = SETS["binary"]()
    rows, groups = draw(forests, 2000)
    assert groups is None
    again, _ = draw(SETS["binary"](), 2000)
    assert rows.tobytes() == again.tobytes()
    exact = {
        float(value)
        for tree in range(forests.all()[0].model.num_tree)
        for value in forests.all()[0].model.get_tree_accessor(tree).get_field("threshold")
    }
    assert {float(value) for value in rows.ravel()} & exact
    assert np.isnan(rows).any()
    assert np.isinf(rows).any()
    _, numbers = draw(of_groups(), 100)
    assert numbers is not None
    assert set(numbers.tolist()) == {-1, 0, 1, 2}


def test_every_engine_has_a_way_to_be_made() -> None:
    assert {candidate.engine for candidate in CANDIDATES.values()} == set(ENGINES)
    assert len({candidate.suffix for candidate in CANDIDATES.values()}) == len(CANDIDATES)


def test_the_packed_forest_is_one_of_them(tmp_path: Path) -> None:
    assert isinstance(opened("tristage", of_targets(), tmp_path), ForestEngine)


def test_boosters_that_are_used_by_two_steps_are_written_once(tmp_path: Path) -> None:
    model = booster()
    shared = [model, xgboost.Booster(model_file=model.save_raw("ubj"))]
    from tristage.export.forest import read_forests

    recipe = Recipe.read(tmp_path / write_sources(read_forests("f", shared, (), grouped=False), tmp_path))
    assert len(recipe.files()) == 1
    assert len(list(recipe.members())) == 2

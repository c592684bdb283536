"""Choosing engines: what is compared, measured, chosen, left out and written; no time decides a test."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from forest_sets import CATEGORIES, ROWS, booster, categorical, lightgbm_of

from tristage.errors import ExportError, ParityError, RepositoryError, StackError
from tristage.export import export
from tristage.export.tuning import tune
from tristage.export.tuning.choose import choose
from tristage.export.tuning.measure import measure
from tristage.manifest import Manifest, check_files, read_manifest, write_manifest
from tristage.serving.forest import OpenForest
from tristage.serving.program_file import Choice, ForestCall, read_calls
from tristage.serving.runner import open_folder
from tristage.stack import ForestStep, Stack
from tristage.tuning import Chosen

NAMES = tuple("abcdef")
Measured = dict[int, list[str]]


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def as_if(fastest: Mapping[int, str], seen: Measured | None = None) -> Callable[..., dict[str, float]]:
    """A measurement that finds these engines fastest, and asks each for real."""

    def timed(engines: Mapping[str, OpenForest], rows: Any, groups: Any, batch: int) -> dict[str, float]:
        for engine in engines.values():
            assert len(engine.predict(rows[:batch], None if groups is None else groups[:batch]))
        if seen is not None:
            seen[batch] = list(engines)
        return {name: 1.0 if name == fastest[batch] else 2.0 for name in engines}

    return timed


def repository(folder: Path, forest: Any, rows: np.ndarray = ROWS, **options: Any) -> Path:
    """A step of forests that reads raw columns, exported; column g, for groups, goes from 0 to 3 by turns."""
    frame = pd.DataFrame(rows, columns=list(NAMES)).assign(g=np.arange(len(rows)) % 4)
    targets: tuple[str, ...] = ("like",) if options else ()
    frame.to_parquet(folder / "golden.parquet")
    outputs = {"y": f"trees.{'like' if targets else 'score'}"}
    steps = {"trees": ForestStep(forest, NAMES, **options)}
    export(Stack("s", steps, outputs, targets, golden=folder / "golden.parquet"), folder / "repository", max_batch=512)
    return folder / "repository"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def call_of(path: Path) -> ForestCall:
    (call,) = read_calls(path, ["s_trees"])
    return call


class TestChoose:
    def test_the_fastest_answers_what_is_nearest(self) -> None:
        times = {
            1: {"a": 1.0, "b": 2.0},
            16: {"a": 2.0, "b": 1.0},
            256: {"a": 2.0, "b": 1.0},
            4096: {"a": 1.0, "b": 2.0},
        }
        assert choose(times, "a") == (Chosen(4, "a"), Chosen(1024, "b"), Chosen(None, "a"))

    def test_the_default_stays_unless_another_is_five_percent_faster(self) -> None:
        assert choose({1: {"a": 1.0, "b": 0.951}}, "a") == (Chosen(None, "a"),)
        assert choose({1: {"a": 1.0, "b": 0.95}}, "a") == (Chosen(None, "b"),)
        assert choose({1: {"a": 1.0, "b": 0.951}}, "b") == (Chosen(None, "b"),)

    def test_a_default_that_was_left_out(self) -> None:
        assert choose({1: {"b": 3.0, "c": 2.0}, 9: {"b": 1.0, "c": 2.0}}, "a") == (Chosen(3, "c"), Chosen(None, "b"))


def test_measuring_asks_every_engine_for_batches_of_the_rows() -> None:
    asked: dict[str, set[tuple[int, bool]]] = {"one": set(), "two": set()}

    class Engine:
        features, outputs = 6, 1

        def __init__(self, name: str) -> None:
            self.name = name

        def predict(self, rows: Any, groups: Any = None) -> Any:
            assert all(row.tobytes() in known for row in rows[:3])
            asked[self.name].add((len(rows), groups is None))
            return np.zeros((len(rows), 1), np.float32)

    known = {row.tobytes() for row in ROWS}
    groups = np.arange(len(ROWS)) % 3
    for batch in (1, 700):  # more than there are
        times = measure({name: Engine(name) for name in asked}, ROWS, groups if batch == 1 else None, batch)
        assert set(times) == {"one", "two"}
        assert all(0 < time < 1000 for time in times.values())
    assert asked == {name: {(1, False), (700, True)} for name in asked}


def test_who_answers_is_written_and_answers(tmp_path: Path) -> None:
    path = repository(tmp_path, booster())
    before = content(path)
    untuned = open_folder(path / "s_trees" / "1").run({name: ROWS[:, [i]] for i, name in enumerate(NAMES)})
    seen: Measured = {}
    fastest = {1: "xgboost", 16: "tristage", 256: "onedal", 512: "onnxruntime"}
    made = tune(path, measure=as_if(fastest, seen), batches=(1, 16, 256, 4096, 8192))
    assert sorted(seen) == [1, 16, 256, 512], "no request holds more than 512 rows"
    assert set(seen[1]) == {"tristage", "onnxruntime", "onedal", "xgboost"}
    manifest = read_manifest(path)
    assert manifest == made
    check_files(path, manifest)
    call = call_of(path)
    stem = Path(call.recipe).stem
    assert call.engines == (
        Choice(4, "xgboost", f"{stem}.json"),
        Choice(64, "tristage", f"{stem}.bin"),
        Choice(362, "onedal", f"{stem}.npz"),
        Choice(None, "onnxruntime", f"{stem}.onnx"),
    )
    assert manifest.tuned is not None
    tuned = manifest.tuned.forests["trees"]
    assert (tuned.default, tuned.left_out, tuned.reference) == ("tristage", {}, "XGBoost")
    assert tuned.rows == "400 golden rows, and 512 drawn around its thresholds"
    assert tuned.milliseconds[1] == {"tristage": 2.0, "onnxruntime": 2.0, "onedal": 2.0, "xgboost": 1.0}
    assert max(tuned.differences.values()) <= 1e-6
    assert manifest.tuned.processor
    assert manifest.tuned.threads == 1
    program = open_folder(path / "s_trees" / "1")
    expected = booster().inplace_predict(ROWS)
    for count in (0, 1, 4, 5, 64, 65, 362, 363, 400):
        answers = program.run({name: ROWS[:count, [i]] for i, name in enumerate(NAMES)})["y"]
        np.testing.assert_allclose(answers[:, 0], expected[:count], atol=1e-6)
        np.testing.assert_allclose(answers, untuned["y"][:count], atol=1e-6)
    # and back: what is not asked any more is gone
    tune(path, measure=as_if(dict.fromkeys((1, 512), "tristage")), batches=(1, 512))
    after = content(path)
    assert set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} == {str(path / "manifest.json")}


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_a_forest_behind_another_is_measured_on_what_that_answers(tmp_path: Path, layout: str) -> None:
    frame = pd.DataFrame(ROWS, columns=list(NAMES))
    frame.to_parquet(tmp_path / "golden.parquet")
    first = booster()

    def reads(rows: np.ndarray) -> np.ndarray:
        return np.column_stack([first.inplace_predict(rows), rows[:, 0]])

    second = xgboost.train({"max_depth": 3, "nthread": 1}, xgboost.DMatrix(reads(ROWS), ROWS[:, 1] > 0), 5)
    steps = {"one": ForestStep(first, NAMES), "two": ForestStep(second, ("one.score", "a"))}
    stack = Stack("s", steps, {"y": "two.score"}, golden=tmp_path / "golden.parquet")
    path = tmp_path / "repository"
    export(stack, path, layout=layout)
    met: dict[int, np.ndarray] = {}

    def timed(engines: Mapping[str, OpenForest], rows: Any, groups: Any, batch: int) -> dict[str, float]:
        met[rows.shape[1]] = rows
        return {name: 1.0 if name == "onedal" else 2.0 for name in engines}

    before = pd.read_parquet(path / "golden.parquet")
    rows = before[list(NAMES)].to_numpy()
    made = tune(path, measure=timed, batches=(8,))
    check_files(path, made)
    assert np.array_equal(met[6], rows, equal_nan=True)
    np.testing.assert_allclose(met[2], reads(rows), atol=1e-6)
    calls = read_calls(path, dict.fromkeys(made.models.values()))
    assert [(call.step, call.engines[0].engine) for call in calls] == [("one", "onedal"), ("two", "onedal")]
    # rows that another engine's rounding sends the other way, at a split on the first forest's answer, are left out
    after = pd.read_parquet(path / "golden.parquet")
    left_out = len(before) - len(after)
    notes = [note for note in made.notes if "left out when engines were chosen" in note]
    assert [note.split()[0] for note in notes] == ([str(left_out)] if left_out else [])
    assert left_out <= 0.005 * len(before)
    if layout == "fused":
        tensors = {name: after[[name]].to_numpy() for name in NAMES}
        answers = open_folder(path / "s_fused" / "1").run(tensors)
        np.testing.assert_allclose(answers["y"][:, 0], after["expected.y"], atol=1e-5)


def test_golden_rows_that_are_answered_otherwise_forbid_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository(tmp_path, booster())
    before = content(tmp_path)
    places = {
        "golden": "400 of 400 golden rows otherwise than the training libraries",
        "walk": "step trees: onedal is .* off XGBoost's answers where it reads what other engines answered",
    }
    for place, words in places.items():
        with monkeypatch.context() as patched:
            patched.setattr(f"tristage.export.tuning.{place}.TOLERANCE", -1.0)
            with pytest.raises(ParityError, match=words):
                tune(path, measure=as_if({8: "onedal"}), batches=(8,))
    assert content(tmp_path) == before


def test_groups_go_to_engines_with_their_numbers(tmp_path: Path) -> None:
    groups = {str(group): {"like": [booster(group), booster(group + 9)]} for group in range(3)}
    path = repository(tmp_path, groups, group="g")
    fastest = {1: "onnxruntime-joined", 64: "onedal", 512: "xgboost"}
    made = tune(path, measure=as_if(fastest), batches=tuple(fastest))
    assert made.tuned is not None
    assert made.tuned.forests["trees"].left_out == {}
    program = open_folder(path / "s_trees" / "1")
    numbers = np.arange(400) % 4
    expected = np.full(400, np.nan, np.float32)
    for group in range(3):
        mine = numbers == group
        each = [booster(seed).inplace_predict(ROWS[mine]) for seed in (group, group + 9)]
        expected[mine] = np.mean(each, axis=0)
    for start, count in ((0, 400), (7, 50), (3, 1), (2, 1)):
        part = slice(start, start + count)
        tensors = {name: ROWS[part, [i]].reshape(-1, 1) for i, name in enumerate(NAMES)}
        answers = program.run({**tensors, "g": numbers[part, None]})["y"][:, 0]
        np.testing.assert_allclose(answers, expected[part], atol=1e-6)


def test_engines_that_cannot_take_a_forest_are_left_out_and_said(tmp_path: Path) -> None:
    path = repository(tmp_path, categorical(), CATEGORIES)
    seen: Measured = {}
    made = tune(path, measure=as_if({8: "xgboost"}, seen), batches=(8,))
    assert made.tuned is not None
    tuned = made.tuned.forests["trees"]
    assert tuned.left_out == {
        "tristage": "the engine takes no categorical splits",
        "onedal": "oneDAL takes no categorical splits",
    }
    assert seen == {8: ["onnxruntime", "xgboost"]}
    assert tuned.default == "onnxruntime"
    assert tuned.engines == (Chosen(None, "xgboost"),)


def test_engines_that_answer_otherwise_are_left_out_and_said(tmp_path: Path) -> None:
    """Sums of leaves around a thousand: ONNX Runtime and oneDAL round them otherwise than XGBoost does."""
    path = repository(tmp_path, booster(objective="reg:squarederror", base_score=1e3))
    seen: Measured = {}
    made = tune(path, measure=as_if({8: "onnxruntime"}, seen), batches=(8,))
    assert made.tuned is not None
    tuned = made.tuned.forests["trees"]
    assert set(tuned.left_out) == {"onnxruntime", "onedal"}
    for name in tuned.left_out:
        assert tuned.left_out[name] == f"its answers are {tuned.differences[name]:.1e} off XGBoost's"
        assert tuned.differences[name] > 1e-6
    assert seen == {8: ["tristage", "xgboost"]}
    assert tuned.engines == (Chosen(None, "tristage"),)


def test_somebody_must_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = repository(tmp_path, booster())
    monkeypatch.setattr("tristage.export.tuning.forest.TOLERANCE", -1.0)
    made = tune(path, measure=as_if({8: "tristage"}), batches=(8,))
    assert made.tuned is not None
    tuned = made.tuned.forests["trees"]
    assert tuned.engines == (Chosen(None, "tristage"),)
    assert tuned.left_out["tristage"].endswith("off XGBoost's; it answers for want of another")


def test_forests_of_other_libraries_are_compared_with_treelite(tmp_path: Path) -> None:
    path = repository(tmp_path, lightgbm_of(), CATEGORIES)
    made = tune(path, measure=as_if({8: "onedal"}), batches=(8,))
    assert made.tuned is not None
    tuned = made.tuned.forests["trees"]
    assert tuned.reference == "Treelite"
    assert tuned.left_out == {"xgboost": "XGBoost did not train all of its forests"}
    assert tuned.engines == (Chosen(None, "onedal"),)


def test_without_golden_rows_it_is_said(tmp_path: Path) -> None:
    path = repository(tmp_path, booster())
    (path / "golden.parquet").unlink()
    manifest = read_manifest(path)
    files = {name: digest for name, digest in manifest.files.items() if name != "golden.parquet"}
    write_manifest(path, dataclasses.replace(manifest, files=files))
    made = tune(path, measure=as_if({8: "tristage"}), batches=(8,))
    assert made.tuned is not None
    said = made.tuned.forests["trees"].rows
    assert said == "512 rows drawn around its thresholds, for there are no golden rows"


def test_a_real_measurement_decides_by_its_own_figures(tmp_path: Path) -> None:
    path = repository(tmp_path, booster())
    made = tune(path, batches=(1, 100))
    assert made.tuned is not None
    tuned = made.tuned.forests["trees"]
    assert set(tuned.milliseconds) == {1, 100}
    assert all(set(times) == set(tuned.differences) for times in tuned.milliseconds.values())
    assert tuned.engines == choose(tuned.milliseconds, tuned.default)


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = repository(tmp_path, booster())
    before = content(tmp_path)

    def fail(*_: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(path, measure=fail)
    assert content(tmp_path) == before


def test_tuning_leaves_nothing_beside_the_repository(tmp_path: Path) -> None:
    path = repository(tmp_path, booster())
    (path / "README.md").write_text("mine")
    tune(path, measure=as_if({1: "onedal"}), batches=(1,))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["golden.parquet", "repository"]
    assert (path / "README.md").read_text() == "mine"


def test_what_is_no_repository_of_ours(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"holds no manifest\.json"):
        tune(tmp_path)
    path = repository(tmp_path, booster())
    with pytest.raises(StackError, match="batch sizes of one row at least"):
        tune(path, batches=(0, 1))
    manifest = read_manifest(path)
    write_manifest(path, dataclasses.replace(manifest, target="ngc-gpu"))
    with pytest.raises(RepositoryError, match="was exported for ngc-gpu"):
        tune(path)
    write_manifest(path, manifest)
    (path / "s_trees" / "config.pbtxt").write_text("changed")
    with pytest.raises(RepositoryError, match="changed since export"):
        tune(path)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = repository(tmp_path, booster())
    before = content(tmp_path)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("tristage.export.tuning._tune.tempfile.TemporaryDirectory", full)
    with pytest.raises(ExportError, match="No space left"):
        tune(path)
    assert content(tmp_path) == before


def test_an_export_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    made: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = repository(tmp_path / name, lightgbm_of(), CATEGORIES)
        made.append({key.removeprefix(str(path)): value for key, value in content(path).items()})
    assert made[0] == made[1]
    assert any(name.endswith(".tl") for name in made[0])


def test_the_manifest_says_it_again(tmp_path: Path) -> None:
    path = repository(tmp_path, booster())
    assert read_manifest(path).tuned is None
    made = tune(path, measure=as_if({1: "onedal", 9: "tristage"}), batches=(1, 9))
    manifest = read_manifest(path)
    assert manifest == made
    before = (path / "manifest.json").read_bytes()
    write_manifest(path, manifest)
    assert (path / "manifest.json").read_bytes() == before
    damaged = json.loads(before)
    del damaged["tuned"]["forests"]["trees"]["engines"]
    (path / "manifest.json").write_text(json.dumps(damaged))
    with pytest.raises(RepositoryError, match="is incomplete"):
        read_manifest(path)


@pytest.mark.parametrize(("package", "engine"), [("daal4py", "onedal")])
def test_a_library_that_is_not_installed_is_left_out_and_said(tmp_path: Path, package: str, engine: str) -> None:
    path = repository(tmp_path, booster())
    tune(path, measure=as_if({1: engine}), batches=(1,))  # and a repository that asks for it can be tuned without it
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from tristage.export.tuning import tune\n"
        f"print(tune({str(path)!r}, batches=(1,)).tuned.forests['trees'].left_out)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str({engine: f"{package} is not installed: pip install 'tristage[tune]'"})
    assert all(choice.engine != engine for choice in call_of(path).engines)


def test_a_stack_without_forests(tmp_path: Path) -> None:
    path = repository(tmp_path, booster())
    manifest: Manifest = read_manifest(path)
    call_of(path)
    (path / "s_trees" / "1" / "program.json").unlink()
    files = {name: digest for name, digest in manifest.files.items() if not name.endswith("program.json")}
    write_manifest(path, dataclasses.replace(manifest, files=files))
    before = content(path)
    assert tune(path).tuned is None
    assert content(path) == before

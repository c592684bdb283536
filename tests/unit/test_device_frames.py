"""Data frames where their arrays are: the lines that a GPU runs with cuDF and CuPy, here with pandas and NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tristage.columns import Column
from tristage.serving.device_frames import DeviceFrames
from tristage.serving.graph import GraphError
from tristage.serving.interpreted import Interpreter, PandasFrames
from tristage.serving.runner import open_on_device
from tristage.serving.workflow_file import TRUST, WORKFLOW_FILE, Port, WorkflowFile, installed, neutral_row

nvt = pytest.importorskip("nvtabular")
NULL = "\x01"
RAW = {
    Column("word", "string", nullable=True): [["a"], [NULL], [""], ["zoë \U0001f600"]],
    Column("x", "float64", nullable=True): [[np.nan], [np.inf], [-0.0], [5e-324]],
    Column("half", "float32", nullable=True): [[np.nan], [-np.inf], [3e38], [0]],
    Column("n", "int64"): [[2**63 - 1], [-(2**63)], [0], [-1]],
    Column("whole", "int32", nullable=True): [[np.nan], [2**31 - 1], [-1], [0]],
    Column("flag", "bool"): [[True], [False], [True], [False]],
    Column("maybe", "bool", nullable=True): [[np.nan], [1], [0], [np.nan]],
    Column("ids", "int64", 3, 0): [[0, 0, 0], [4, 0, 0], [0, 5, 0], [1, 2, 3]],
    Column("scores", "float32", 2, np.nan): [[np.nan, np.nan], [1, np.nan], [np.nan, 2], [3, 4]],
    Column("pair", "int8", 2): [[0, 0], [1, 0], [0, 1], [-128, 127]],
    Column("tags", "string", 2, ""): [["", ""], ["x", ""], ["", "y"], [NULL, "z"]],
}


@pytest.fixture
def device() -> DeviceFrames:
    return DeviceFrames.open("cpu")


def tensors(rows: slice) -> dict[str, Any]:
    return {column.name: np.array(values, column.numpy_dtype)[rows] for column, values in RAW.items()}


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1), slice(1, 3), slice(3, 4)], ids=str)
def test_raw_columns_become_the_same_frame(device: DeviceFrames, rows: slice) -> None:
    given, columns = tensors(rows), list(RAW)
    one, other = device.frame(given, columns), PandasFrames().frame(given, columns)
    assert list(one) == list(other)
    for name in one:
        if name != "maybe":  # pandas has no boolean that may be null, and so makes objects of all
            assert one[name].dtype == other[name].dtype, name
        for here, there in zip(one[name], other[name], strict=True):
            if isinstance(there, list):
                np.testing.assert_array_equal(np.array(here), np.array(there))
            else:
                assert here is there or here == there or (pd.isna(here) and pd.isna(there)), name


MADE = [
    (Column("c", "int64"), pd.Series([1, 2**62 + 1, -3]), "int64"),
    (Column("c", "int64"), pd.Series([1.0, np.nan, 3.0]), "float32"),
    (Column("c", "int64"), pd.Series([1.0, 2.0, 3.0]), "int64"),
    (Column("c", "int64"), pd.Series([1.0, np.nan, 3.0]), "int64"),  # no whole number: refused
    (Column("c", "int64"), pd.Series([1.5, 2.0, 3.0]), "int32"),
    (Column("c", "float64"), pd.Series([np.inf, -np.inf, 1e300]), "float32"),
    (Column("c", "float32"), pd.Series([np.inf, -1e30, 1.5]), "int64"),
    (Column("c", "bool"), pd.Series([True, False, True]), "float32"),
    (Column("c", "bool"), pd.Series([True, None, False], dtype=object), "float32"),
    (Column("c", "float32"), pd.Series([1, None, 2.5], dtype=object), "float64"),
    (Column("c", "float32"), pd.Series(["a", "b", None]), "float32"),
    (Column("c", "string"), pd.Series(["a", None, "日本"]), "object"),
    (Column("c", "string"), pd.Series([1, 2, 3]), "object"),
    (Column("c", "int64", 3, 0), pd.Series([[1], [], [2, 3, 4]]), "int64"),
    (Column("c", "int64", 3, -1), pd.Series([[0, 1], [2], [3]]), "float32"),
    (Column("c", "float32", 2, np.nan), pd.Series([[], [], [0.5]]), "float32"),
    (Column("c", "int64", 2, 0), pd.Series([[1], [1, 2, 3], []]), "int64"),
    (Column("c", "string", 2, ""), pd.Series([["a"], [], ["b", "c"]]), "object"),
]


def answered(frames: Any, made: pd.DataFrame, column: Column, dtype: str) -> Any:
    try:
        return frames.column(made, column, np.dtype(dtype)).reshape(len(made), column.width)
    except (KeyError, TypeError, ValueError):
        return "refused"


@pytest.mark.parametrize(("column", "series", "dtype"), MADE)
@pytest.mark.parametrize("rows", [3, 1, 0])
def test_made_columns_become_the_same_arrays(
    device: DeviceFrames, column: Column, series: pd.Series, dtype: str, rows: int
) -> None:
    made = pd.DataFrame({"c": series}).iloc[:rows]
    one, other = (answered(frames, made, column, dtype) for frames in (device, PandasFrames()))
    if isinstance(other, str) or isinstance(one, str):
        assert isinstance(one, str)
        assert isinstance(other, str)
        return
    np.testing.assert_array_equal(one, other)
    assert one.dtype == other.dtype == dtype


def test_a_column_that_is_gone_is_refused(device: DeviceFrames) -> None:
    assert answered(device, pd.DataFrame({"other": [1]}), Column("c", "int64"), "int64") == "refused"


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkflowFile:
    """A workflow of every kind of column."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(3)
    rows = pd.DataFrame(
        {
            "word": ["a", *draw.choice(["a", "b", "", None], 99)],
            "x": np.where(draw.random(100) < 0.3, np.nan, draw.normal(size=100)),
            "n": draw.integers(0, 50, 100),
            "ids": [[1], *[draw.integers(0, 9, size).tolist() for size in draw.integers(0, 4, 99)]],
        }
    )
    coded = ["word"] >> nvt.ops.Categorify()
    numbers = ["x", "n"] >> nvt.ops.FillMissing() >> nvt.ops.Normalize()
    workflow = nvt.Workflow(coded + numbers + (["ids"] >> nvt.ops.Categorify())).fit(nvt.Dataset(rows))
    workflow.save(str(tmp_path / "workflow"))
    inputs = tuple(column for column in RAW if column.name in ("word", "x", "n", "ids"))
    ports = (
        Port("codes", "int64", (Column("word", "int64"), Column("ids", "int64", 3, 0))),
        Port("numbers", "float32", (Column("x", "float64"), Column("n", "float64"))),
    )
    return WorkflowFile(str(tmp_path / "workflow"), {}, installed(), inputs, neutral_row(inputs), ports)


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1), slice(0, 0)], ids=str)
def test_nvtabular_answers_the_same(device: DeviceFrames, saved: WorkflowFile, rows: slice) -> None:
    one, other = Interpreter.open(saved, device), Interpreter.open(saved)
    found, expected = one.run(tensors(rows)), other.run(tensors(rows))
    assert set(found) == {"codes", "numbers"}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


def test_frames_that_nvtabular_cannot_take_end_the_load(saved: WorkflowFile) -> None:
    class Odd(PandasFrames):
        def frame(self, tensors: Any, columns: Any) -> Any:
            return super().frame(tensors, columns).assign(word=[[]] * len(tensors["word"]))

    with pytest.raises(GraphError, match="device: cpu of the step under triton"):
        Interpreter.open(saved, Odd())


def test_without_cudf_the_load_says_what_to_do(
    saved: WorkflowFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST, "1")
    (tmp_path / WORKFLOW_FILE).write_text(saved.to_json(), encoding="utf-8")
    with pytest.raises(GraphError, match=r"cupy is not installed in the server's Python.*stage nvtabular"):
        open_on_device(tmp_path, {"device": "cuda"}, {"model_instance_device_id": "0"})

"""LambdaOps: what can be traced answers what pandas answers, in its dtype; what can't be is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from tristage.client.codec import encode
from tristage.columns import Signature
from tristage.errors import ArtifactError
from tristage.export.workflow import compile_workflow, raw_columns
from tristage.export.workflow.values import pack
from tristage.stack import ListInput

nvt = pytest.importorskip("nvtabular")
ops = nvt.ops

FRAME = pd.DataFrame(
    {
        "f32": np.array([1.5, -2.25, np.nan, 1e6, 0, 3.1, 7, -0.5], np.float32),
        "f64": np.array([2.5, -2.25, np.nan, 1e9, 0, np.inf, -np.inf, 0.25], np.float64),
        "pos": np.array([1.5, 2.25, 3, 100, 0.125, 3.1, 7, 1e-3], np.float64),
        "i32": np.array([1, -2, 3, 400, 0, 6, -7, 8], np.int32),
        "i64": np.array([1, -2, 3, 4_000_000_000, 0, 6, -7, 8], np.int64),
        "when": np.array([0, 86399, 86400, 1_612_345_678, 1, 3600, 7 * 86400, 2**31], np.int64),
        "flag": np.array([True, False, True, True, False, False, True, False]),
    }
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compiled(nodes: Any, frame: pd.DataFrame = FRAME, **lists: ListInput) -> tuple[Any, Any]:
    workflow = nvt.Workflow(nodes)
    workflow.fit(nvt.Dataset(frame.copy()))
    floats = frozenset(name for name in frame if frame[name].dtype.kind == "f")
    return workflow, compile_workflow(workflow, raw_columns(workflow, lists, floats))


def answer(made: Any, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    outputs = [(f"out {c.name}", pack(made.graph, [made.values[c.name]], c.dtype), c.dtype, 1) for c in made.outputs]
    model = made.graph.model(outputs)
    read = {value.name for value in model.graph.input}
    signature = Signature("s", 64, tuple(column for column in made.inputs if column.name in read), ())
    session = onnxruntime.InferenceSession(model.SerializeToString())
    answers = session.run(None, encode(frame, signature, unknown="ignore"))
    return dict(zip([column.name for column in made.outputs], answers, strict=True))


def agree(column: str, function: Callable[..., Any], rtol: float = 0, dependency: list[str] | None = None) -> None:
    workflow, made = compiled([column] >> ops.LambdaOp(function, dependency=dependency))
    with np.errstate(all="ignore"):
        expected = workflow.transform(FRAME.copy())
    for name, values in answer(made, FRAME).items():
        wanted = expected[name].to_numpy()
        assert values.dtype == wanted.dtype
        if rtol:
            np.testing.assert_allclose(values[:, 0], wanted, rtol=rtol)
        else:
            np.testing.assert_array_equal(values[:, 0], wanted)


@pytest.mark.parametrize("column", ["f32", "f64", "i32", "i64"])
@pytest.mark.parametrize(
    "function",
    [
        lambda c: c + 1,
        lambda c: 1.5 - c,
        lambda c: c * 2 - 0.1,
        lambda c: c / 3,
        lambda c: 7 / (c + 0.5),
        lambda c: -c,
        lambda c: +c * 1,
        lambda c: abs(c),
        lambda c: np.float32(2) * c,
        lambda c: c * c + c,
        lambda c: c - c.astype("float32"),
    ],
)
def test_arithmetic(column: str, function: Callable[..., Any]) -> None:
    agree(column, function)


@pytest.mark.parametrize("column", ["f32", "f64", "i32", "i64"])
@pytest.mark.parametrize(
    "function",
    [
        lambda c: c > 0,
        lambda c: c >= 1.5,
        lambda c: (c < 3.1).astype("int8"),
        lambda c: c <= -2,
        lambda c: c == 3,
        lambda c: c != 3,
        lambda c: 0 < c,  # noqa: SIM300
        lambda c: (c > 0) & (c < 5),
        lambda c: (c > 5) | (c == 0),
        lambda c: (c > 0) ^ (c > 3),
        lambda c: ~(c > 0),
        lambda c: (c > 0) == (c > 3),
        lambda c: (c > 0).astype(np.float32) + 1,
    ],
)
def test_comparison(column: str, function: Callable[..., Any]) -> None:
    agree(column, function)


@pytest.mark.parametrize(
    ("column", "function"),
    [
        ("f32", lambda c: np.abs(c)),
        ("f64", lambda c: np.floor(c)),
        ("f32", lambda c: np.ceil(c)),
        ("f64", lambda c: np.sign(c)),
        ("i64", lambda c: np.sign(c)),
        ("pos", lambda c: np.sqrt(c)),
        ("f64", lambda c: np.isnan(c)),
        ("f32", lambda c: np.maximum(c, 0)),
        ("f64", lambda c: np.minimum(c, 1.5)),
        ("i64", lambda c: np.maximum(c, 2)),
        ("i32", lambda c: np.minimum(3, c)),
        ("flag", lambda c: np.logical_not(c)),
        ("flag", lambda c: ~c),
        ("flag", lambda c: c & True),
        ("f64", lambda c: np.subtract(c, 1)),
    ],
)
def test_functions(column: str, function: Callable[..., Any]) -> None:
    agree(column, function)


@pytest.mark.parametrize(
    "function",
    [
        lambda c: np.log(c),
        lambda c: np.log1p(c),
        lambda c: np.exp(c),
        lambda c: np.tanh(c),
        lambda c: np.sin(c),
        lambda c: np.cos(c),
        lambda c: c**2,
        lambda c: c**0.5,
        lambda c: 2.0**c,
        lambda c: np.power(c, 1.5),
    ],
)
def test_functions_of_a_runtime_of_their_own(function: Callable[..., Any]) -> None:
    agree("pos", function, rtol=1e-12)
    agree("pos", lambda c: function(c.astype("float32")), rtol=1e-6)


@pytest.mark.parametrize("by", [7, 1, -7, 86400])
@pytest.mark.parametrize("column", ["i32", "i64", "when"])
def test_whole_division(column: str, by: int) -> None:
    agree(column, lambda c: c // by)
    agree(column, lambda c: c % by)


def test_day_and_hour() -> None:
    agree("when", lambda c: (c // 86400 + 4) % 7)
    agree("when", lambda c: ((c % 86400) // 3600).astype("int32"))


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        ("f32", "float64"),
        ("f64", "float32"),
        ("i64", "float32"),
        ("i64", "float64"),
        ("i32", "int64"),
        ("i64", "bool"),
        ("flag", "int8"),
        ("flag", np.float32),
        ("pos", "int64"),
        ("pos", int),
        ("f64", "bool"),
    ],
)
def test_astype(column: str, dtype: Any) -> None:
    agree(column, lambda c: c.astype(dtype))


def test_nulls() -> None:
    agree("f32", lambda c: c.isna())
    agree("f64", lambda c: c.notna())
    agree("f64", lambda c: c.isnull().astype("int8"))
    agree("i64", lambda c: c.isna())
    agree("flag", lambda c: c.isna())
    agree("f64", lambda c: c.fillna(0.1))
    agree("f32", lambda c: c.fillna(0))
    agree("f32", lambda c: c.fillna(0.1))  # pandas widens
    agree("i64", lambda c: c.fillna(5))
    agree("f64", lambda c: (c.fillna(0) + 1) * 2)


def test_dependency() -> None:
    agree("i64", lambda c, frame: c / frame["pos"], dependency=["pos"])
    agree("f32", lambda c, frame: np.maximum(c, frame["i32"]), dependency=["i32"])
    agree("i64", lambda c, frame: c > frame["i32"], dependency=["i32"])


def test_two_columns_and_rename() -> None:
    nodes = (["f64", "i64"] >> ops.LambdaOp(lambda c: c * 2) >> ops.Rename(postfix="_twice")) + ["i32"]
    workflow, made = compiled(nodes + (["pos"] >> ops.LambdaOp(lambda c: c.astype("float32"), dtype=np.float32)))
    expected = workflow.transform(FRAME.copy())
    for name, values in answer(made, FRAME).items():
        np.testing.assert_array_equal(values[:, 0], expected[name].to_numpy(), err_msg=name)


def test_after_other_operators() -> None:
    agree("f32", lambda c: c + 1)
    nodes = ["i64"] >> ops.Categorify() >> ops.LambdaOp(lambda c: (c + 1).astype("float32"))
    workflow, made = compiled(nodes)
    np.testing.assert_array_equal(answer(made, FRAME)["i64"][:, 0], workflow.transform(FRAME.copy())["i64"].to_numpy())


def test_named_function() -> None:
    def ratio(column: Any, frame: Any) -> Any:
        return column / (frame["pos"] + 1)

    agree("i64", ratio, dependency=["pos"])


REFUSED: dict[str, tuple[str, Callable[..., Any], str]] = {
    "method": ("f64", lambda c: c.rank(), r"\.rank"),
    "apply": ("f64", lambda c: c.apply(lambda value: value + 1), r"\.apply"),
    "clip": ("f64", lambda c: c.clip(0, 1), r"\.clip"),
    "string method": ("i64", lambda c: c.astype(str), r"cannot be traced"),
    "whole array": ("f64", lambda c: c - np.arange(8), "computes with a ndarray"),
    "series": ("f64", lambda c: c + pd.Series(range(8)), "."),
    "bitwise on whole numbers": ("i64", lambda c: c & 1, "bitwise_and"),
    "bitwise or": ("i64", lambda c: c | 1, "bitwise_or"),
    "inverted whole numbers": ("i64", lambda c: ~c, "invert"),
    "unknown function": ("pos", lambda c: np.arctan(c), "numpy.arctan is not traced"),
    "reduction": ("pos", lambda c: c - np.add.reduce(c), "numpy.add with reduce"),
    "power of whole numbers": ("i64", lambda c: c**2, "power"),
    "fraction of floats": ("f64", lambda c: c % 2, "// and % are traced for whole numbers"),
    "division by 0": ("i64", lambda c: c // 0, "// and % are traced for whole numbers"),
    "division by a column": ("i64", lambda c: c // c, "// and % are traced for whole numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refused(name: str) -> None:
    column, function, words = REFUSED[name]
    with pytest.raises(ArtifactError, match=rf"(?s)LambdaOp on {column}.*{words}"):
        compiled([column] >> ops.LambdaOp(function))


def test_a_branch() -> None:
    def branch(column: Any) -> Any:
        return column + 1 if (column > 0).any() else column

    with pytest.raises(ArtifactError, match=r"LambdaOp on f64: it uses \.any"):
        compiled(["f64"] >> ops.LambdaOp(branch))


def test_where() -> None:
    with pytest.raises(ArtifactError, match="LambdaOp on f64"):
        compiled(["f64"] >> ops.LambdaOp(lambda c: pd.Series(np.where(c > 0, 1.0, 0.0))))


def test_not_a_column() -> None:
    with pytest.raises(ArtifactError, match="returns Series, not a column"):
        compiled(["f64"] >> ops.LambdaOp(lambda c: pd.Series([1.0] * 8)))


def test_text_and_lists() -> None:
    frame = pd.DataFrame({"word": ["a", "b"], "ids": [[1], [2, 3]], "n": [1, 2]})
    with pytest.raises(ArtifactError, match=r"column 'word' holds text"):
        compiled(["word"] >> ops.LambdaOp(lambda c: c.str.upper()), frame)
    with pytest.raises(ArtifactError, match=r"column 'ids' holds lists"):
        compiled(["ids"] >> ops.LambdaOp(lambda c: c.apply(len)), frame, ids=ListInput(2))


def test_unnamed_dependency() -> None:
    # NVTabular hands the whole frame over, and lets it pass where another branch brings the column along
    nodes = ["f64", "pos"] >> ops.LambdaOp(lambda c, frame: c + frame["pos"])
    workflow, made = compiled(nodes)
    expected = workflow.transform(FRAME.copy())
    np.testing.assert_array_equal(answer(made, FRAME)["f64"][:, 0], expected["f64"].to_numpy())

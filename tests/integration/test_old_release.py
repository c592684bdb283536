"""Graphs for Triton 24.10 in its own ONNX Runtime, 1.19.2: every operator and dtype that is not in it is rewritten."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from environments import python_with
from onnx import helper

from tristage.errors import ArtifactError
from tristage.export.onnx_graph import IR_VERSION, OPSET, onnx_type
from tristage.export.release import LACKS, for_release

NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
# operator -> its inputs; those that the compiler and the graphs around forests use
OPERATORS = {
    **dict.fromkeys(("Sign", "Tanh", "Tan", "Sqrt", "Sin", "Neg", "Log", "Floor", "Exp", "Cos", "Ceil", "Abs"), 1),
    **dict.fromkeys(("IsNaN", "Sigmoid", "Softplus", "ReduceMax"), 1),
    **dict.fromkeys(("Pow", "Mod", "Min", "Max", "Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal"), 2),
    **dict.fromkeys(("LessOrEqual", "GreaterOrEqual", "Where"), 2),
}
# exits with the names of the graphs that it cannot run
RUN = """
import pathlib, sys, numpy, onnxruntime
assert onnxruntime.__version__ == "1.19.2"
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:
        print(path.stem)
        continue
    feeds = numpy.load(path.with_suffix(".npz"))
    numpy.save(path.with_suffix(".npy"), session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})[0])
"""


def graph(operator: str, dtype: str) -> onnx.ModelProto:
    names = [f"x{number}" for number in range(OPERATORS[operator])]
    values = [helper.make_tensor_value_info(name, onnx_type(dtype), ["rows", 1]) for name in names]
    options = (
        {"axis": 1} if operator == "ArgMax" else {"fmod": int(dtype.startswith("float"))} if operator == "Mod" else {}
    )
    if operator == "Where":
        names = ["c", *names]
        values.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, ["rows", 1]))
    made = helper.make_graph(
        [helper.make_node(operator, names, ["made"], **options), helper.make_node("Identity", ["made"], ["y"])],
        "graph",
        values,
        [helper.make_empty_tensor_value_info("y")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def numbers(dtype: str) -> dict[str, np.ndarray]:
    """Pairs of awkward numbers; no zero as a divisor, which ends a process."""
    if dtype.startswith("float"):
        some = np.array([0, -0.0, 1.5, -2.5, np.inf, -np.inf, np.nan, 1e-30, 12345.678], dtype)
    else:
        limits = np.iinfo(dtype)
        some = np.array([limits.min, limits.max, 0, 1, 2, 7, limits.max // 2], dtype)
    left, right = (part.reshape(-1, 1) for part in np.meshgrid(some, some[some != 0]))
    return {"x0": left, "x1": right, "c": np.arange(len(left)).reshape(-1, 1) % 2 == 0}


def runs(model: onnx.ModelProto) -> onnxruntime.InferenceSession | None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # whatever it raises, it cannot run it
        return None


def test_what_is_lacking_is_rewritten(tmp_path: Path) -> None:
    expected = {}
    for operator in OPERATORS:
        for dtype in NUMBERS:
            model, feeds = graph(operator, dtype), numbers(dtype)
            session = runs(model)
            if session is None:
                continue
            name = f"{operator}-{dtype}"
            with np.errstate(all="ignore"):
                expected[name] = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})[0]
            if (
                dtype == "uint64"
                and dtype in LACKS.get(operator, ())
                and operator not in ("Add", "Sub", "Mul", "Equal")
            ):
                with pytest.raises(ArtifactError, match=f"{operator} of uint64.*use int64"):
                    for_release(model)
                del expected[name]
                continue
            onnx.save_model(for_release(model), tmp_path / f"{name}.onnx")
            np.savez(tmp_path / f"{name}.npz", **feeds)
    assert len(expected) > 150
    python = python_with("onnxruntime==1.19.2", "numpy==1.26.4")
    done = subprocess.run([python, "-c", RUN, tmp_path], check=True, capture_output=True, text=True, timeout=300)
    assert done.stdout == ""
    for name, answers in expected.items():
        got = np.load(tmp_path / f"{name}.npy")
        assert got.dtype == answers.dtype, name
        np.testing.assert_allclose(got, answers, rtol=1e-6, atol=1e-15, err_msg=name)


def test_a_graph_that_lacks_nothing_is_left_alone() -> None:
    model = graph("Add", "float32")
    assert for_release(model).SerializeToString() == model.SerializeToString()

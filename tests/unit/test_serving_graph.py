"""Step graphs: opened and evaluated without Triton, requests joined and split."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tristage
from tristage.serving.graph import Graph, GraphError, decode
from tristage.serving.runner import check_config, evaluate


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> Path:
    made = helper.make_graph(nodes, "g", inputs, outputs, constants)
    onnx.save(helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """y = 2 * x (float32 [n, 2]); t = s (strings [n, 1])."""
    return Graph.open(
        save(
            tmp_path / "graph.onnx",
            [helper.make_node("Mul", ["x", "two"], ["y"]), helper.make_node("Identity", ["s"], ["t"])],
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
                helper.make_tensor_value_info("s", TensorProto.STRING, ["n", 1]),
            ],
            [
                helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
                helper.make_tensor_value_info("t", TensorProto.STRING, ["n", 1]),
            ],
            [helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])],
        )
    )


@pytest.fixture
def picky(tmp_path: Path) -> Graph:
    """y = table[x]: the table has four rows, so key 99 fails."""
    return Graph.open(
        save(
            tmp_path / "picky.onnx",
            [
                helper.make_node("Gather", ["table", "x"], ["wide"]),
                helper.make_node("Squeeze", ["wide", "last"], ["y"]),
            ],
            [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
            [
                helper.make_tensor("table", TensorProto.FLOAT, [4, 1], [0.0, 10.0, 20.0, 30.0]),
                helper.make_tensor("last", TensorProto.INT64, [1], [2]),
            ],
        )
    )


def rows(count: int, value: float = 1.0, text: str = "a") -> dict[str, Any]:
    return {"x": np.full((count, 2), value, np.float32), "s": np.full((count, 1), text, dtype=object)}


@pytest.mark.parametrize("count", [0, 1, 7])
def test_run_takes_any_number_of_rows(graph: Graph, count: int) -> None:
    answer = graph.run(rows(count, 1.5, "ü\x01"))
    assert answer["y"].shape == (count, 2)
    assert answer["y"].dtype == np.float32
    assert (answer["y"] == 3.0).all()
    assert answer["t"].ravel().tolist() == ["ü\x01"] * count


def test_run_takes_arrays_that_are_not_contiguous(graph: Graph) -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 6).T
    answer = graph.run({"x": x[::2, ::-1], "s": np.array([["a"], ["b"], ["c"]], dtype=object)})
    assert answer["y"].tolist() == (2 * x[::2, ::-1]).tolist()


def test_nan_and_infinity_pass(graph: Graph) -> None:
    inputs = rows(1) | {"x": np.array([[np.nan, np.inf]], np.float32)}
    np.testing.assert_array_equal(graph.run(inputs)["y"], inputs["x"])


def test_a_wrong_dtype_is_named(graph: Graph) -> None:
    with pytest.raises(GraphError, match="input x must be float32, not float64"):
        graph.run(rows(1) | {"x": np.zeros((1, 2))})


def test_a_missing_input_is_named(graph: Graph) -> None:
    inputs = rows(1)
    del inputs["s"]
    with pytest.raises(GraphError, match="input s is missing"):
        graph.run(inputs)


def test_a_wrong_width_is_an_error(graph: Graph) -> None:
    with pytest.raises(GraphError, match="cannot be evaluated"):
        graph.run(rows(1) | {"x": np.zeros((1, 3), np.float32)})


def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"junk")
    with pytest.raises(GraphError, match="graph.onnx cannot be opened by ONNX Runtime"):
        Graph.open(tmp_path / "graph.onnx")
    with pytest.raises(GraphError, match="nowhere.onnx"):
        Graph.open(tmp_path / "nowhere.onnx")


def test_joined_requests_answer_as_alone(graph: Graph) -> None:
    requests = [rows(3, 1.0, "a"), rows(0), rows(1, 2.0, "b"), rows(2, 3.0, "c")]
    for request, answer in zip(requests, evaluate(graph, requests), strict=True):
        assert not isinstance(answer, GraphError)
        alone = graph.run(request)
        np.testing.assert_array_equal(answer["y"], alone["y"])
        np.testing.assert_array_equal(answer["t"], alone["t"])
        assert answer["y"].shape == alone["y"].shape


def test_requests_are_joined_into_one_evaluation(graph: Graph) -> None:
    calls: list[int] = []

    class Counting:
        def run(self, names: Any, feed: dict[str, Any]) -> Any:
            calls.append(len(feed["x"]))
            return graph.session.run(names, feed)

    counting = dataclasses.replace(graph, session=Counting())
    evaluate(counting, [rows(3), rows(4)])
    evaluate(counting, [rows(5)])
    assert calls == [7, 5]


def test_a_single_request_is_not_copied(graph: Graph) -> None:
    seen: list[Any] = []

    class Noting:
        def run(self, names: Any, feed: dict[str, Any]) -> Any:
            seen.append(feed["x"])
            return graph.session.run(names, feed)

    request = rows(2)
    evaluate(dataclasses.replace(graph, session=Noting()), [request])
    assert seen[0] is request["x"]


def test_a_request_that_cannot_be_read_keeps_its_error_and_the_others_their_answers(graph: Graph) -> None:
    answers = evaluate(graph, [rows(1, 1.0), GraphError("not UTF-8"), rows(1, 2.0)])
    assert [str(a) if isinstance(a, GraphError) else a["y"].tolist() for a in answers] == [
        [[2.0, 2.0]],
        "not UTF-8",
        [[4.0, 4.0]],
    ]


def test_a_request_that_fails_takes_no_other_with_it(picky: Graph) -> None:
    answers = evaluate(picky, [{"x": np.array([[key]])} for key in (1, 99, 3)])
    assert isinstance(answers[1], GraphError)
    assert [a["y"].tolist() for a in answers if not isinstance(a, GraphError)] == [[[10.0]], [[30.0]]]


def test_requests_of_different_widths_are_answered_one_by_one(graph: Graph) -> None:
    answers = evaluate(graph, [rows(1), rows(1) | {"x": np.zeros((1, 3), np.float32)}])
    assert not isinstance(answers[0], GraphError)
    assert isinstance(answers[1], GraphError)


def test_a_recurrent_net_outlives_a_request_of_no_rows(tmp_path: Path) -> None:
    weights = [("w", [1, 9, 2]), ("r", [1, 9, 3])]
    recurrent = Graph.open(
        save(
            tmp_path / "gru.onnx",
            [
                helper.make_node("Unsqueeze", ["x", "first"], ["steps"]),
                helper.make_node("GRU", ["steps", "w", "r"], ["", "last"], hidden_size=3),
                helper.make_node("Squeeze", ["last", "first"], ["y"]),
            ],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor("first", TensorProto.INT64, [1], [0])]
            + [
                helper.make_tensor(name, TensorProto.FLOAT, shape, [0.1] * int(np.prod(shape)))
                for name, shape in weights
            ],
        )
    )
    assert recurrent.run({"x": np.ones((2, 2), np.float32)})["y"].shape == (2, 3)
    empty = recurrent.run({"x": np.ones((0, 2), np.float32)})["y"]
    assert empty.shape == (0, 3)
    assert empty.dtype == np.float32


def test_no_requests_give_no_answers(graph: Graph) -> None:
    assert evaluate(graph, []) == []


def test_decode_keeps_shape_and_trailing_nuls() -> None:
    raw = np.array([[b"a", b"\xc3\xbc"], [b"", b"x\x00"]], dtype=object)
    assert decode(raw, "s").tolist() == [["a", "ü"], ["", "x\x00"]]
    assert decode(np.empty((0, 3), dtype=object), "s").shape == (0, 3)


def test_decode_names_the_input_and_shows_the_string() -> None:
    with pytest.raises(GraphError, match=r"input s holds a string that is not UTF-8: b'ab\\xff'"):
        decode(np.array([[b"ok"], [b"ab\xff"]], dtype=object), "s")


@pytest.mark.parametrize(
    ("inputs", "outputs", "fits"),
    [
        ({"x": "TYPE_FP32", "s": "TYPE_STRING"}, {"y": "TYPE_FP32", "t": "TYPE_STRING"}, True),
        ({"x": "TYPE_FP32", "s": "TYPE_STRING"}, {"y": "TYPE_FP32"}, True),
        ({"x": "TYPE_FP32"}, {"y": "TYPE_FP32"}, False),
        ({"x": "TYPE_FP64", "s": "TYPE_STRING"}, {"y": "TYPE_FP32"}, False),
        ({"x": "TYPE_FP32", "s": "TYPE_STRING"}, {"z": "TYPE_FP32"}, False),
    ],
)
def test_configuration_and_graph_must_agree(
    graph: Graph, inputs: dict[str, str], outputs: dict[str, str], fits: bool
) -> None:
    config = {
        "input": [{"name": name, "data_type": kind} for name, kind in inputs.items()],
        "output": [{"name": name, "data_type": kind} for name, kind in outputs.items()],
    }
    if fits:
        check_config(graph, config)
    else:
        with pytest.raises(GraphError, match=r"config\.pbtxt and the model differ"):
            check_config(graph, config)


def test_the_runner_imports_nothing_heavy() -> None:
    code = """
import sys, time
sys.path.insert(0, sys.argv[1])
began = time.process_time()
import tristage.serving.runner
took = time.process_time() - began
heavy = {"pandas", "torch", "tensorflow", "keras", "nvtabular", "merlin", "xgboost", "lightgbm", "catboost", "sklearn",
         "treelite", "tritonclient", "grpc", "pyarrow", "onnx", "rich", "typer", "pytriton", "scipy"}
print(took, *sorted(heavy & set(sys.modules)))
"""
    home = str(Path(tristage.__file__).resolve().parent.parent)
    run = subprocess.run([sys.executable, "-c", code, home], capture_output=True, text=True, timeout=60, check=True)
    took, *heavy = run.stdout.split()
    assert heavy == []
    assert float(took) < 1  # of processor time: other programs may have the cores

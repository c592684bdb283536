"""Nets with several outputs, with names or without: columns side by side, called after what made them."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tristage.columns import Column
from tristage.errors import ArtifactError
from tristage.export.check import open_model
from tristage.export.lower import lower
from tristage.export.net import Net, read_net
from tristage.export.net.outputs import NetOutput, column_names
from tristage.export.onnx_graph import OPSET
from tristage.export.place import place
from tristage.stack import NetStep, Stack

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
tf = pytest.importorskip("tensorflow")
nn = torch.nn

RNG = np.random.default_rng(11)


def rows_of_x(rows: int) -> dict[str, np.ndarray]:
    values = RNG.normal(size=(rows, 3)).astype(np.float32) * 5
    if rows > 3:
        values[:3] = np.array([[np.nan, 0, 0], [np.inf, -np.inf, 0], [0, 1e38, -1e38]], np.float32)
    return {"x": values}


def agree(net: Net, *, finite: bool = False) -> None:
    """The graph and the framework answer alike; with NaN and infinities among the rows, unless `finite`."""
    session = onnxruntime.InferenceSession(net.model.SerializeToString())
    assert len(session.get_outputs()) == len(net.parts)
    for rows in (0, 1, 2, 5, 700):
        given = {name: np.nan_to_num(v, posinf=9, neginf=-9) if finite else v for name, v in rows_of_x(rows).items()}
        for part, answers, theirs in zip(net.parts, session.run(None, given), net.predict(given), strict=True):
            assert answers.shape == theirs.shape == (rows, len(part.positions))
            assert str(answers.dtype) == str(theirs.dtype) == part.dtype
            np.testing.assert_allclose(answers, theirs, rtol=1e-6, atol=1e-6)


class Pair(NamedTuple):
    click: Any
    buy: Any


class Heads(nn.Module):
    """Answers as `kind` says: a dict, a tuple, a named tuple, scalars."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.one, self.two = kind, nn.Linear(3, 1), nn.Linear(3, 2)

    def forward(self, x: Any) -> Any:
        one, two = torch.sigmoid(self.one(x)), self.two(x)
        match self.kind:
            case "dict":
                return {"click": one, "buy": two}
            case "named":
                return Pair(one, two)
            case "flat":
                return one.squeeze(1)
            case "mixed":
                return {"score": one.squeeze(1), "best": two.argmax(1), "sure": two > 0}
        return one, two


class TestTorch:
    @pytest.mark.parametrize(
        ("kind", "columns"),
        [
            ("dict", ["click", "buy0", "buy1"]),
            ("named", ["click", "buy0", "buy1"]),
            ("tuple", ["reply", "retweet", "like"]),
            ("flat", ["score"]),
            ("mixed", ["score", "best", "sure0", "sure1"]),
        ],
    )
    def test_columns_are_called_after_their_outputs(self, kind: str, columns: list[str]) -> None:
        torch.manual_seed(1)
        net = read_net("nn", Heads(kind), examples={"x": torch.zeros(2, 3)})
        assert column_names(net.outputs, ("reply", "retweet", "like")) == columns
        agree(net, finite=kind == "mixed")  # of NaN nobody has the largest

    def test_a_dict_answers_in_its_own_order(self) -> None:
        torch.manual_seed(2)
        module = Heads("dict").eval()
        given = rows_of_x(6)
        with torch.no_grad():
            wanted = module(torch.from_numpy(given["x"]))
        answers = read_net("nn", module, examples=given).predict(given)[0]
        np.testing.assert_array_equal(answers[:, 0], wanted["click"][:, 0].numpy())
        np.testing.assert_array_equal(answers[:, 1:], wanted["buy"].numpy())


class TestKeras:
    def heads(self, kind: str) -> Any:
        keras.utils.set_random_seed(3)
        x = keras.Input((3,), name="x")
        like, buy = keras.layers.Dense(1, name="like")(x), keras.layers.Dense(2, name="buy")(x)
        return keras.Model(x, {"z_like": like, "a_buy": buy} if kind == "dict" else [like, buy])

    @pytest.mark.parametrize(
        ("kind", "columns"), [("dict", ["z_like", "a_buy0", "a_buy1"]), ("list", ["like", "buy0", "buy1"])]
    )
    def test_names(self, kind: str, columns: list[str]) -> None:
        model = self.heads(kind)
        net = read_net("nn", model)
        assert column_names(net.outputs, ("a", "b", "c")) == columns
        agree(net)
        given = rows_of_x(5)
        made = model.predict(given, verbose=0)
        like, buy = (made["z_like"], made["a_buy"]) if kind == "dict" else made
        np.testing.assert_allclose(net.predict(given)[0], np.concatenate([like, buy], 1), rtol=1e-6, equal_nan=True)

    def test_saved_model(self, tmp_path: Any) -> None:
        model = self.heads("dict")
        model.export(tmp_path / "net", verbose=False)
        net = read_net("nn", tmp_path / "net")
        # the names' order, which is all that a signature has
        assert column_names(net.outputs, ("a", "b", "c")) == ["a_buy0", "a_buy1", "z_like"]
        agree(net)


def linear(*outputs: tuple[str, int]) -> onnx.ModelProto:
    """Answers x itself, by several names and in several types."""
    nodes = [helper.make_node("Cast", ["x"], [name], to=kind) for name, kind in outputs]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info(name, kind, ["rows", 3]) for name, kind in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class TestOnnx:
    def test_names_of_outputs(self) -> None:
        net = read_net("nn", linear(("/top/y:0", TensorProto.FLOAT), ("z", TensorProto.FLOAT)))
        assert column_names(net.outputs, ()) == ["top_y_00", "top_y_01", "top_y_02", "z0", "z1", "z2"]
        agree(net)

    @pytest.mark.parametrize(
        ("kinds", "dtype"),
        [
            ((TensorProto.DOUBLE, TensorProto.DOUBLE), "float64"),
            ((TensorProto.DOUBLE, TensorProto.FLOAT), "float32"),
            ((TensorProto.BOOL, TensorProto.BOOL), "bool"),
        ],
    )
    def test_types(self, kinds: tuple[int, int], dtype: str) -> None:
        net = read_net("nn", linear(("a", kinds[0]), ("b", kinds[1])))
        assert net.parts[0].dtype == dtype
        agree(net)

    def test_an_output_that_is_no_numbers(self) -> None:
        with pytest.raises(ArtifactError, match="step nn: its output b is STRING, not numbers"):
            read_net("nn", linear(("a", TensorProto.FLOAT), ("b", TensorProto.STRING)))

    def test_an_output_of_a_width_that_nobody_knows(self) -> None:
        made = linear(("a", TensorProto.FLOAT))
        made.opset_import[0].version = OPSET  # else it is inferred on the way there
        made.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "n"
        with pytest.raises(
            ArtifactError, match=r"its output a must have the shape \[rows\] or \[rows, n\] with n known"
        ):
            read_net("nn", made)


def test_names_that_stand_twice() -> None:
    assert column_names((NetOutput("a/b", 1), NetOutput("a.b", 1)), ()) == ["a_b_0", "a_b_1"]


def test_a_stack_reads_outputs_by_name() -> None:
    torch.manual_seed(4)
    module = Heads("dict")
    step = NetStep(module, {"x": ("a", "b", "c")}, examples={"x": torch.zeros(1, 3)})
    stack = Stack("s", {"nn": step}, {"y": "nn.buy1", "z": "nn.click"})
    lowered = lower(stack, {name: Column(name, "float32") for name in ("a", "b", "c")})
    opened = open_model(place(lowered, 16).models[0], None)
    given = rows_of_x(5)["x"]
    answers = opened.run({name: given[:, [at]] for at, name in enumerate("abc")})
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(given))
    np.testing.assert_allclose(answers["y"], wanted["buy"][:, 1:].numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(answers["z"], wanted["click"].numpy(), rtol=1e-6, atol=1e-6)

"""Nets with several outputs, with names or without: columns side by side, called after what made them."""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tristage.columns import Column
from tristage.errors import ArtifactError, ParityError, StackError
from tristage.export import export
from tristage.export.check import check_answers, open_model, run_placement
from tristage.export.lower import lower
from tristage.export.net import Net, read_net
from tristage.export.net.outputs import NetOutput, column_names
from tristage.export.onnx_graph import OPSET
from tristage.export.place import fuse, place
from tristage.export.reference import output_answers, reference_answers
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


class Best(nn.Module):
    """The best four of twenty: their ids, which float32 cannot tell apart, their scores, and whether those are high."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(3, 20)
        self.register_buffer("ids", 2**40 + torch.arange(20))

    def forward(self, x: Any) -> Any:
        score, at = self.scores(x).topk(4, dim=1)
        return {"item": self.ids[at], "score": score, "sure": score > 0}


def best_stack(golden: Any = None, backend: str | None = None) -> Stack:
    torch.manual_seed(5)
    step = NetStep(Best(), {"x": ("a", "b", "c")}, examples={"x": torch.zeros(1, 3)}, backend=backend)
    outputs = {"items": "nn.item*", "first": "nn.item0", "last_two": "nn.score[23]", "high": "nn.sure*"}
    return Stack("s", {"nn": step}, outputs, golden=golden)


def best_answers(stack: Stack, x: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        made = {name: values.numpy() for name, values in stack.steps["nn"].net.eval()(torch.from_numpy(x)).items()}
    item, score = made["item"], made["score"]
    return {"items": item, "first": item[:, 0], "last_two": score[:, 2:], "high": made["sure"]}


RAW = {name: Column(name, "float32") for name in ("a", "b", "c")}


class TestLists:
    @pytest.mark.parametrize("fused", [False, True])
    def test_ids_scores_and_booleans(self, fused: bool) -> None:
        stack = best_stack()
        placement = place(lower(stack, RAW), 1024)
        assert [(c.name, c.dtype, c.length, c.pad) for c in placement.signature.outputs] == [
            ("items", "int64", 4, None),
            ("first", "int64", None, None),
            ("last_two", "float32", 2, None),
            ("high", "bool", 4, None),
        ]
        opened = open_model((fuse(placement) if fused else placement).models[0], None)
        for rows in (0, 1, 2, 700):
            x = np.nan_to_num(rows_of_x(rows)["x"], posinf=9, neginf=-9)
            answers = opened.run({name: x[:, [at]] for at, name in enumerate("abc")})
            for name, wanted in best_answers(stack, x).items():
                wanted = wanted if wanted.ndim == 2 else wanted[:, None]
                assert (answers[name].dtype, answers[name].shape) == (wanted.dtype, wanted.shape)
                if wanted.dtype.kind == "f":
                    np.testing.assert_allclose(answers[name], wanted, rtol=1e-6, atol=1e-6)
                else:
                    np.testing.assert_array_equal(answers[name], wanted)

    def test_another_net_reads_them_beside_raw_columns(self) -> None:
        stack = best_stack()
        torch.manual_seed(6)
        reader = nn.Linear(10, 1)
        reads = ("nn.score0", "nn.sure0", "a", "nn.sure[12]", "nn.score1", "nn.score2", "b", "nn.score3", "nn.sure3")
        steps = {**stack.steps, "next": NetStep(reader, {"input": reads}, examples={"input": torch.zeros(1, 10)})}
        lowered = lower(Stack("s", steps, {"y": "next.score", "items": "nn.item*"}), RAW)
        x = np.nan_to_num(rows_of_x(50)["x"], posinf=9, neginf=-9)
        tensors = run_placement(place(lowered, 1024), {name: x[:, [at]] for at, name in enumerate("abc")})
        wanted = output_answers(lowered, reference_answers(lowered, pd.DataFrame(x, columns=list("abc"))))
        np.testing.assert_allclose(tensors["y"][:, 0], wanted["y"], rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(tensors["items"], wanted["items"])

    @pytest.mark.parametrize("layout", ["ensemble", "fused"])
    @pytest.mark.parametrize(("target", "backend"), [("pip-cpu", None), ("ngc-cpu", None), ("ngc-cpu", "pytorch")])
    def test_exported_with_golden_rows(self, layout: str, target: str, backend: str | None, tmp_path: Any) -> None:
        x = RNG.normal(size=(60, 3)).astype(np.float32)
        pd.DataFrame(x, columns=list("abc")).to_parquet(tmp_path / "golden.parquet")
        stack = best_stack(tmp_path / "golden.parquet", backend)
        exported = export(stack, tmp_path / "repository", target=target, layout=layout)
        assert exported.parity is not None
        assert exported.parity.differences["nn"] <= 1e-6
        golden = pq.read_table(tmp_path / "repository/golden.parquet")
        for name, wanted in best_answers(stack, x).items():
            column = golden.column(f"expected.{name}").combine_chunks()
            flat = column.flatten() if wanted.ndim == 2 else column
            np.testing.assert_allclose(flat.to_numpy(zero_copy_only=False), wanted.ravel(), rtol=1e-6)
        reference = json.loads((tmp_path / "repository/reference.json").read_text())["columns"]
        assert set(reference["items"]["bounds"]) <= set(range(2**40, 2**40 + 20))

    def test_an_id_beside_the_right_one_is_a_difference(self) -> None:
        stack = best_stack()
        placement = place(lower(stack, RAW), 1024)
        x = RNG.normal(size=(9, 3)).astype(np.float32)
        inputs = {name: x[:, [at]] for at, name in enumerate("abc")}
        expected = best_answers(stack, x)
        check_answers(placement, inputs, expected, 1e-5)
        expected["items"][4, 2] += 1
        with pytest.raises(ParityError, match=r"output items differs .* by inf \(golden row 4"):
            check_answers(placement, inputs, expected, 1e-5)

    @pytest.mark.parametrize(
        ("reference", "says"),
        [
            ("nn.*", "output y is 'nn.*', which stands for columns of int64 and float32 and bool"),
            ("nn.items*", "output y reads nn.items*, but step nn has no such column"),
            ("nn", "write it as step.column"),
        ],
    )
    def test_what_is_no_list(self, reference: str, says: str) -> None:
        with pytest.raises(StackError, match=re.escape(says)):
            lower(Stack("s", best_stack().steps, {"y": reference}), RAW)

    def test_a_glob_of_one_column_is_a_list_of_one(self) -> None:
        lowered = lower(Stack("s", best_stack().steps, {"y": "nn.score3*"}), RAW)
        assert lowered.outputs["y"].column.length == 1


class Ranks(nn.Module):
    """Ranks what it reads: the best or the worst."""

    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, at = x.topk(3, dim=1, largest=self.largest)
        return values, at


class TestTopK:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
    @pytest.mark.parametrize("largest", [True, False])
    @pytest.mark.parametrize("script", [False, True])
    def test_nan_is_above_all(self, largest: bool, dtype: str, script: bool) -> None:
        rows = np.random.default_rng(3).permuted(np.tile(np.arange(7) * 1.5 - 4, (50, 1)), axis=1)
        if dtype != "int64":
            rows[np.arange(40), RNG.integers(0, 7, 40)] = np.nan
            rows[0] = [np.nan, -np.inf, 1e30, -1e30, 0, 1, 2]
        given = {"x": (rows * 2).astype(dtype)}
        module = Ranks(largest)
        net = read_net("nn", torch.jit.script(module) if script else module, examples={"x": given["x"][:2]})
        session = onnxruntime.InferenceSession(net.model.SerializeToString())
        with torch.no_grad():
            wanted = [values.numpy() for values in module(torch.from_numpy(given["x"]))]
        for count in (0, 1, 50):
            made = session.run(None, {"x": given["x"][:count]})
            answered = dict(zip([part.served for part in net.parts], made, strict=True))
            joined = [values[:count] for values in wanted]
            if len(net.parts) == 1:
                joined = [np.concatenate(joined, axis=1)]
            for answers, theirs in zip(answered.values(), joined, strict=True):
                np.testing.assert_array_equal(answers, theirs)

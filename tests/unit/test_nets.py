"""Nets through their frameworks' own ONNX exporters: same answers at any number of rows; what can't be is said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tristage.columns import Column
from tristage.errors import ArtifactError, StackError
from tristage.export.lower import lower
from tristage.export.net import Net, read_net
from tristage.export.onnx_graph import IR_VERSION, OPSET, GraphBuilder
from tristage.export.place import place
from tristage.stack import ForestStep, ListInput, NetStep, Stack

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
nn = torch.nn

RNG = np.random.default_rng(3)


def served(net: Net, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The net in a graph of ours, beside other nodes, as it will be served."""
    graph = GraphBuilder()
    feeds = {}
    for tensor in net.inputs:
        value = inputs[tensor.name]
        name = graph.input(f"in {tensor.name}", tensor.dtype, 1 if tensor.width is None else value.shape[1])
        one = graph.constant(np.array([1], np.int64))
        feeds[tensor.name] = graph.add("Squeeze", name, one) if tensor.width is None else name
    (answers,) = graph.embed(net.model, feeds)
    model = graph.model([("out", answers, net.parts[0].dtype, net.width)])
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    given = {f"in {name}": value if value.ndim == 2 else value[:, None] for name, value in inputs.items()}
    return np.asarray(session.run(None, given)[0])


def agree(artifact: Any, make: Any, *, none: bool = True) -> Net:
    """`none`: whether to ask about no rows at all, which ends the process in ONNX Runtime's GRU."""
    net = read_net("nn", artifact)
    for rows in (1, 3, 64):
        inputs = make(rows)
        answers = served(net, inputs)
        wanted = net.predict(inputs)[0]
        assert answers.shape == wanted.shape == (rows, net.width)
        np.testing.assert_allclose(answers, wanted, atol=1e-6)
    if none:
        assert served(net, make(0)).shape == (0, net.width)
    return net


def exported(module: Any, *arguments: Any, **keywords: Any) -> Any:
    rows = torch.export.Dim("rows", min=1, max=65536)
    shapes = tuple({0: rows} for _ in arguments) or {name: {0: rows} for name in keywords}
    return torch.export.export(module.eval(), arguments, keywords, dynamic_shapes=shapes)


class Mixed(nn.Module):
    """What recommenders are made of: an embedding, a GRU, batch norm, several inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8, padding_idx=0)
        self.user = nn.Embedding(20, 4)
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.norm = nn.BatchNorm1d(3)
        self.top = nn.Sequential(nn.Linear(6 + 4 + 3, 16), nn.SiLU(), nn.Linear(16, 4), nn.Sigmoid())
        self.norm.running_mean.copy_(torch.tensor([1.0, -2, 3]))
        self.norm.running_var.copy_(torch.tensor([4.0, 0.5, 2]))

    def forward(self, tokens: Any, user: Any, numeric: Any) -> Any:
        states, _ = self.gru(self.words(tokens))
        return self.top(torch.cat([states.mean(1), self.user(user), self.norm(numeric)], 1))


def mixed(rows: int) -> dict[str, np.ndarray]:
    return {
        "tokens": RNG.integers(0, 50, (rows, 7)),
        "user": RNG.integers(0, 20, rows),
        "numeric": RNG.normal(size=(rows, 3)).astype(np.float32),
    }


def examples(rows: int = 2) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in mixed(rows).items()}


@pytest.fixture(scope="module")
def program() -> Any:
    torch.manual_seed(1)
    return exported(Mixed(), *examples().values())


class TestTorch:
    def test_in_memory(self, program: Any) -> None:
        net = agree(program, mixed, none=False)
        assert [(tensor.name, tensor.dtype, tensor.width) for tensor in net.inputs] == [
            ("tokens", "int64", 7),
            ("user", "int64", None),
            ("numeric", "float32", 3),
        ]
        assert net.width == 4

    def test_file(self, program: Any, tmp_path: Path) -> None:
        torch.export.save(program, tmp_path / "net.pt2")
        agree(tmp_path / "net.pt2", mixed, none=False)

    def test_keyword_inputs(self) -> None:
        torch.manual_seed(2)
        made = exported(Mixed(), **dict(reversed(examples().items())))
        net = agree(made, mixed, none=False)
        assert {tensor.name for tensor in net.inputs} == {"tokens", "user", "numeric"}

    def test_equals_the_module_itself(self) -> None:
        torch.manual_seed(3)
        module = Mixed().eval()
        inputs = mixed(5)
        with torch.inference_mode():
            wanted = module(*(torch.from_numpy(value) for value in inputs.values())).numpy()
        net = read_net("nn", exported(module, *examples().values()))
        np.testing.assert_allclose(served(net, inputs), wanted, atol=1e-6)
        np.testing.assert_allclose(net.predict(inputs)[0], wanted, atol=1e-6)

    def test_double(self) -> None:
        net = agree(
            exported(nn.Linear(3, 2).double(), torch.zeros(2, 3, dtype=torch.float64)),
            lambda n: {"input": np.ones((n, 3))},
        )
        assert net.inputs[0].dtype == "float64"

    def test_exported_in_training_mode(self) -> None:
        # batch norm would take the request's own mean: answers would hang on who else is in the batch
        rows = torch.export.Dim("rows", min=2, max=64)
        module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
        made = torch.export.export(module, (torch.zeros(4, 3),), dynamic_shapes=({0: rows},))
        with pytest.raises(ArtifactError, match=r"step nn: .*training mode.*eval\(\)"):
            read_net("nn", made)

    def test_static_batch(self) -> None:
        made = torch.export.export(nn.Linear(3, 2).eval(), (torch.zeros(5, 3),))
        with pytest.raises(ArtifactError, match=r"step nn: its input \w+ takes exactly 5 rows.*dynamic"):
            read_net("nn", made)

    def test_deep_input(self) -> None:
        class Deep(nn.Module):
            def forward(self, image: Any) -> Any:
                return image.sum(2)

        with pytest.raises(ArtifactError, match="step nn: input image has 3 dimensions"):
            read_net("nn", exported(Deep(), torch.zeros(2, 3, 4)))

    def test_files(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"step nn: there is no file .*gone\.pt2"):
            read_net("nn", tmp_path / "gone.pt2")
        for content in (b"", b"garbage", b"PK\x03\x04garbage"):
            (tmp_path / "bad.pt2").write_bytes(content)
            with pytest.raises(ArtifactError, match=r"step nn: torch .* cannot read .*bad\.pt2"):
                read_net("nn", tmp_path / "bad.pt2")

    def test_whole_pickle(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(3, 2), tmp_path / "net.pt2")
        with pytest.raises(ArtifactError, match=r"cannot read .*net\.pt2.*torch\.export\.save"):
            read_net("nn", tmp_path / "net.pt2")


def keras_mixed() -> Any:
    keras.utils.set_random_seed(1)
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    user = keras.Input((1,), dtype="int64", name="user")
    numeric = keras.Input((3,), name="numeric")
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(50, 8)(tokens))
    looked = keras.layers.Flatten()(keras.layers.Embedding(20, 4)(user))
    joined = keras.layers.Concatenate()([pooled, looked, keras.layers.BatchNormalization()(numeric)])
    joined = keras.layers.BatchNormalization()(keras.layers.Dense(16, activation="relu")(joined))
    return keras.Model([tokens, user, numeric], keras.layers.Dense(4, activation="sigmoid")(joined))


def keras_rows(rows: int) -> dict[str, np.ndarray]:
    made = mixed(rows)
    return {**made, "tokens": made["tokens"].astype(np.int32), "user": made["user"].reshape(-1, 1)}


@pytest.fixture(scope="module")
def model() -> Any:
    return keras_mixed()


class TestKeras:
    def test_in_memory(self, model: Any) -> None:
        net = agree(model, keras_rows)
        assert [(tensor.name, tensor.dtype, tensor.width) for tensor in net.inputs] == [
            ("tokens", "int32", 7),
            ("user", "int64", 1),
            ("numeric", "float32", 3),
        ]

    def test_file(self, model: Any, tmp_path: Path) -> None:
        model.save(tmp_path / "net.keras")
        net = agree(tmp_path / "net.keras", keras_rows)
        inputs = keras_rows(5)
        np.testing.assert_allclose(served(net, inputs), np.asarray(model(inputs, training=False)), atol=1e-6)

    def test_gru(self) -> None:
        keras.utils.set_random_seed(2)
        tokens = keras.Input((5,), dtype="int64", name="tokens")
        states = keras.layers.GRU(6)(keras.layers.Embedding(50, 8)(tokens))
        made = keras.Model(tokens, keras.layers.Dense(2)(states))
        agree(made, lambda rows: {"tokens": RNG.integers(0, 50, (rows, 5))}, none=False)

    def test_sequential(self) -> None:
        made = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(2), keras.layers.Dropout(0.5)])
        agree(made, lambda rows: {"x": RNG.normal(size=(rows, 3)).astype(np.float32)})

    def test_unbuilt(self) -> None:
        with pytest.raises(ArtifactError, match=r"step nn: .*(inputs|Input)"):
            read_net("nn", keras.Sequential([keras.layers.Dense(2)]))

    def test_static_batch(self) -> None:
        x = keras.Input(batch_shape=(4, 3), name="x")
        with pytest.raises(ArtifactError, match=r"step nn: .*input x.*exactly 4 rows"):
            read_net("nn", keras.Model(x, keras.layers.Dense(1)(x)))

    def test_deep_input(self) -> None:
        x = keras.Input((3, 2), name="x")
        with pytest.raises(ArtifactError, match="step nn: input x has 3 dimensions"):
            read_net("nn", keras.Model(x, keras.layers.Dense(1)(keras.layers.Flatten()(x))))

    def test_files(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"step nn: there is no file .*gone\.keras"):
            read_net("nn", tmp_path / "gone.keras")
        for content in (b"", b"garbage", b"PK\x03\x04garbage"):
            (tmp_path / "bad.keras").write_bytes(content)
            with pytest.raises(ArtifactError, match=r"step nn: Keras .* cannot read .*bad\.keras"):
                read_net("nn", tmp_path / "bad.keras")


def linear(opset: int = 17, ir: int = 8, rows: Any = "rows", **options: Any) -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    value = helper.make_tensor_value_info("x", options.get("dtype", TensorProto.FLOAT), [rows, 3])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="c0")],
        "g",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 2])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def rows_of_x(rows: int) -> dict[str, np.ndarray]:
    return {"x": RNG.normal(size=(rows, 3)).astype(np.float32)}


class TestOnnx:
    @pytest.mark.parametrize("opset", [9, 13, 17, OPSET])
    def test_in_memory(self, opset: int) -> None:
        made = linear(opset)
        before = made.SerializeToString()
        agree(made, rows_of_x)
        assert made.SerializeToString() == before

    def test_file_with_external_data(self, tmp_path: Path) -> None:
        onnx.save_model(linear(), tmp_path / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        agree(tmp_path / "net.onnx", rows_of_x)

    def test_nested_graphs_read_outer_tensors(self) -> None:
        def branch(name: str, op: str) -> onnx.GraphProto:
            made = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            return helper.make_graph([helper.make_node(op, ["x", "two"], [name])], name, [], [made])

        nodes = [
            helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
            helper.make_node("Greater", ["total", "zero"], ["positive"]),
            helper.make_node("If", ["positive"], ["y"], then_branch=branch("a", "Mul"), else_branch=branch("b", "Add")),
        ]
        constants = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("two", 2), ("zero", 0))]
        shape = ["rows", 3]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        agree(made, rows_of_x)

    def test_local_functions(self) -> None:
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
        doubled = helper.make_function(
            "mine", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], imports[:1]
        )
        made = linear()
        made.graph.node[0].output[0] = "half"
        made.graph.node.append(helper.make_node("Double", ["half"], ["y"], domain="mine"))
        whole = helper.make_model(made.graph, opset_imports=imports, ir_version=8, functions=[doubled])
        agree(whole, rows_of_x)

    def test_foreign_operators(self) -> None:
        made = linear()
        made.graph.node[0].output[0] = "half"
        made.graph.node.append(helper.make_node("Gelu", ["half"], ["y"], domain="com.microsoft"))
        made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        with pytest.raises(ArtifactError, match=r"step nn: .*com\.microsoft"):
            read_net("nn", made)

    def test_too_new(self) -> None:
        with pytest.raises(ArtifactError, match=rf"step nn: it uses ONNX opset {OPSET + 1}.*opset {OPSET} or below"):
            read_net("nn", linear(OPSET + 1))
        with pytest.raises(ArtifactError, match=rf"IR {IR_VERSION + 1}"):
            read_net("nn", linear(ir=IR_VERSION + 1))

    def test_static_batch(self) -> None:
        with pytest.raises(ArtifactError, match=r"step nn: .*input x.*exactly 1 row"):
            read_net("nn", linear(rows=1))

    def test_text_input(self) -> None:
        made = helper.make_model(
            helper.make_graph(
                [
                    helper.make_node(
                        "LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", keys_strings=["a"], values_floats=[1.0]
                    )
                ],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.STRING, ["rows", 1])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
            ),
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)],
            ir_version=8,
        )
        with pytest.raises(ArtifactError, match="step nn: input x is STRING; known are float32"):
            read_net("nn", made)

    def test_files(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"step nn: there is no file .*gone\.onnx"):
            read_net("nn", tmp_path / "gone.onnx")
        for content in (b"", b"garbage"):
            (tmp_path / "bad.onnx").write_bytes(content)
            with pytest.raises(ArtifactError, match=r"step nn: .*bad\.onnx is no valid ONNX"):
                read_net("nn", tmp_path / "bad.onnx")

    def test_external_data_is_gone(self, tmp_path: Path) -> None:
        onnx.save_model(linear(), tmp_path / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        (tmp_path / "w.bin").unlink()
        with pytest.raises(ArtifactError, match=r"step nn: .*w\.bin"):
            read_net("nn", tmp_path / "net.onnx")


def test_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"step nn: .*net\.h5 is of no known kind of net; known are \.keras"):
        read_net("nn", tmp_path / "net.h5")
    with pytest.raises(
        ArtifactError, match="step nn: a dict is no net of a known framework; known are Keras, PyTorch, ONNX"
    ):
        read_net("nn", {})


class TestReads:
    RAW = {
        "a": Column("a", "float32"),
        "b": Column("b", "int64"),
        "c": Column("c", "float64"),
        "word": Column("word", "string"),
        "tags": Column("tags", "float32", 3, 0.0),
    }

    def lower(self, reads: dict[str, tuple[str, ...]], net: Any = None) -> Any:
        stack = Stack("s", {"nn": NetStep(net or linear(), reads)}, {"y": "nn.score0"}, inputs={"tags": ListInput(3)})
        return lower(stack, self.RAW)

    def test_columns_are_joined(self) -> None:
        lowered = self.lower({"x": ("c", "a", "b")})
        assert [source.column.name for source in lowered.steps[0].feeds[0].sources] == ["c", "a", "b"]
        assert [column.name for column in lowered.steps[0].columns] == ["score0", "score1"]

    def test_a_list_is_as_wide_as_it_is_long(self) -> None:
        self.lower({"x": ("tags",)})

    def test_missing_input(self) -> None:
        with pytest.raises(StackError, match="step nn feeds nothing to its net's input x; add it to reads"):
            self.lower({})

    def test_unknown_input(self) -> None:
        with pytest.raises(StackError, match="step nn feeds z, but its net has the inputs x"):
            self.lower({"x": ("a", "b", "c"), "z": ("a",)})

    def test_wrong_width(self) -> None:
        with pytest.raises(StackError, match=r"step nn: input x takes 3 values a row, its columns give 2 \(a, b\)"):
            self.lower({"x": ("a", "b")})

    def test_text(self) -> None:
        with pytest.raises(StackError, match="step nn: input x reads text"):
            self.lower({"x": ("a", "b", "word")})

    def test_flat_input_takes_one_column(self, program: Any) -> None:
        stack = Stack(
            "s",
            {"nn": NetStep(program, {"tokens": ("tags",), "user": ("a", "b"), "numeric": ("a", "b", "c")})},
            {"y": "nn.score0"},
            inputs={"tags": ListInput(7)},
        )
        with pytest.raises(StackError, match="step nn: input user takes one scalar column, not 2 values a row"):
            lower(stack, self.RAW)

    def test_double_answers_are_served_as_float32(self) -> None:
        program = exported(nn.Linear(3, 2).double(), torch.zeros(2, 3, dtype=torch.float64))
        placement = place(self.lower({"input": ("c", "a", "b")}, program), 8)
        session = onnxruntime.InferenceSession(placement.models[0].graph.SerializeToString())
        assert [value.type for value in session.get_outputs()] == ["tensor(float)"]


def test_reads_of_a_step_that_is_a_text() -> None:
    # one name needs no tuple, in Python as in stack.yaml
    assert NetStep(linear(), {"x": "tags"}).reads == {"x": ("tags",)}  # type: ignore[dict-item]
    assert ForestStep("m.ubj", "features").reads == ("features",)  # type: ignore[arg-type]

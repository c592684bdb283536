"""Nets that do not say what they read: modules and TorchScript with example rows; and what cannot be exported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tristage.errors import ArtifactError
from tristage.export.net import Net, read_net
from tristage.export.stack_file import read_stack

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
nn = torch.nn

RNG = np.random.default_rng(12)


class Sessions(nn.Module):
    """Ids, masked lists, numbers and flags; one argument may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.users = nn.Embedding(30, 8, padding_idx=0), nn.Embedding(20, 4)
        self.gru, self.norm, self.drop = nn.GRU(8, 6, batch_first=True), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.top = nn.Linear(13, 2)
        self.norm.running_mean.copy_(torch.tensor([1.0, -2, 3]))

    def forward(self, items: Any, user: Any, numeric: Any, flag: Any, scale: float = 1.0) -> Any:
        mask = (items != 0).float().unsqueeze(2)
        states = (self.gru(self.items(items))[0] * mask).sum(1) / mask.sum(1).clamp(min=1)
        wide = torch.cat([states, self.users(user), self.norm(numeric)], 1)
        return torch.sigmoid(self.top(self.drop(wide)) * scale + flag.float().unsqueeze(1))


def rows(count: int) -> dict[str, np.ndarray]:
    items = RNG.integers(0, 30, (count, 7))
    items[: count // 3] = 0
    return {
        "items": items,
        "user": RNG.integers(0, 20, count),
        "numeric": RNG.normal(size=(count, 3)).astype(np.float32),
        "flag": RNG.random(count) < 0.5,
    }


def agree(net: Net) -> None:
    session = onnxruntime.InferenceSession(net.model.SerializeToString())
    for count in (1, 2, 3, 500):
        given = rows(count)
        np.testing.assert_allclose(session.run(None, given)[0], net.predict(given)[0], atol=1e-6)


@pytest.fixture
def module() -> Any:
    torch.manual_seed(5)
    return Sessions()


class TestModule:
    @pytest.mark.parametrize("count", [1, 2, 9])
    def test_example_rows(self, module: Any, count: int) -> None:
        net = read_net("nn", module, examples=rows(count))
        assert [(tensor.name, tensor.dtype, tensor.width) for tensor in net.inputs] == [
            ("items", "int64", 7), ("user", "int64", None), ("numeric", "float32", 3), ("flag", "bool", None)
        ]  # fmt: skip
        agree(net)

    def test_it_answers_as_in_evaluation_and_is_left_as_it_was(self, module: Any) -> None:
        module.train()
        module.norm.eval()
        modes = [part.training for part in module.modules()]
        net = read_net("nn", module, examples={name: torch.from_numpy(values) for name, values in rows(4).items()})
        given = rows(20)
        first = net.predict(given)[0]
        np.testing.assert_array_equal(first, net.predict(given)[0])  # no dropout
        agree(net)
        assert [part.training for part in module.modules()] == modes

    def test_parameters_that_learn(self, module: Any) -> None:
        before = {name: values.clone() for name, values in module.state_dict().items()}
        read_net("nn", module, examples={"numeric": torch.zeros(2, 3, requires_grad=True), **_but(rows(2), "numeric")})
        assert all(torch.equal(before[name], values) for name, values in module.state_dict().items())

    def test_without_examples(self, module: Any) -> None:
        with pytest.raises(ArtifactError, match=r"a Sessions does not say what it reads; give the step examples.*user"):
            read_net("nn", module)

    def test_examples_that_do_not_fit(self, module: Any) -> None:
        for given, words in (
            (_but(rows(2), "user"), "its examples lack user; its forward takes items, user, numeric, flag, scale"),
            ({**rows(2), "age": np.zeros(2)}, "its examples have age; its forward takes"),
            ({**rows(2), "user": np.zeros(3, np.int64)}, "as many rows for every input"),
            ({**rows(2), "user": np.array(3)}, "as many rows for every input"),
            ([1, 2], "its examples are a list; give input name -> rows"),
            (
                {**rows(2), "numeric": np.zeros((2, 4), np.float32)},
                r"torch.export cannot follow layer norm \(BatchNorm1d\)",
            ),
        ):
            with pytest.raises(ArtifactError, match=f"step nn: .*{words}"):
                read_net("nn", module, examples=given)

    def test_examples_for_what_needs_none(self, module: Any) -> None:
        model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(2)])
        with pytest.raises(ArtifactError, match="a net of Keras says itself what it reads; leave examples out"):
            read_net("nn", model, examples={"x": np.zeros((2, 3))})
        program = torch.export.export(
            nn.Linear(3, 2).eval(), (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim("rows")},)
        )
        with pytest.raises(ArtifactError, match="it says itself what it reads; leave examples out"):
            read_net("nn", program, examples={"input": np.zeros((2, 3))})


def _but(given: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: values for key, values in given.items() if key != name}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
class TestTorchScript:
    def test_in_memory_and_from_a_file(self, module: Any, tmp_path: Path) -> None:
        script = torch.jit.trace(module.eval(), example_kwarg_inputs=_tensors(rows(4)))
        script.save(tmp_path / "net.pt")
        np.savez(tmp_path / "rows.npz", **rows(3))
        for artifact, examples in ((script, rows(4)), (tmp_path / "net.pt", tmp_path / "rows.npz")):
            net = read_net("nn", artifact, examples=examples)
            agree(net)
            given = rows(50)
            with torch.no_grad():
                wanted = module(**_tensors(given)).numpy()
            np.testing.assert_allclose(net.predict(given)[0], wanted, atol=1e-6)

    def test_without_examples(self, module: Any, tmp_path: Path) -> None:
        torch.jit.trace(module.eval(), example_kwarg_inputs=_tensors(rows(4))).save(tmp_path / "net.pt")
        with pytest.raises(ArtifactError, match="TorchScript does not say what shapes.*examples, some rows of items"):
            read_net("nn", tmp_path / "net.pt")
        with pytest.raises(ArtifactError, match="its examples are items, user, numeric; its forward takes items, user"):
            read_net("nn", tmp_path / "net.pt", examples=_but(rows(2), "flag"))

    def test_examples_in_a_stack_file(self, tmp_path: Path) -> None:
        (tmp_path / "stack.yaml").write_text(
            "name: s\nsteps:\n  nn: {net: net.pt, examples: rows.npz, reads: {x: [a, b]}}\noutputs: {y: nn.score}\n"
        )
        step: Any = read_stack(tmp_path / "stack.yaml").steps["nn"]
        assert step.examples == tmp_path / "rows.npz"
        torch.jit.script(nn.Linear(2, 1)).save(tmp_path / "net.pt")
        for content in (b"", b"PK\x03\x04nothing"):
            (tmp_path / "rows.npz").write_bytes(content)
            with pytest.raises(ArtifactError, match=r"its examples .*rows.npz cannot be read .*numpy.savez"):
                read_net("nn", step.net, examples=step.examples)
        np.savez(tmp_path / "rows.npz", x=np.array([{}], dtype=object))
        with pytest.raises(ArtifactError, match="rows.npz cannot be read"):
            read_net("nn", step.net, examples=step.examples)


def _tensors(given: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(values) for name, values in given.items()}


class Branch(nn.Module):
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


class Fixed(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.reshape(2, 4).sum(1, keepdim=True)


class Outside(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.from_numpy(x.numpy() * 2)


class Rare(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.special.bessel_j0(x)


class TestTorchCannot:
    @pytest.mark.parametrize(
        ("layer", "words"),
        [
            (Branch, r"layer 1.odd \(Branch\) decides by the values in a tensor.*x.sum\(\) > 0.*use torch.where"),
            (Fixed, r"works for 2 rows only.*reshape with -1"),
            (Outside, r"cannot follow layer 1.odd \(Outside\) .*write the layer with operators"),
            (Rare, r"layer 1.odd \(Rare\) uses the operator \w+.\w*bessel_j0, which torch cannot write as ONNX; write"),
        ],
    )
    def test_the_layer_is_named(self, layer: Any, words: str) -> None:
        inner = nn.Sequential()
        inner.add_module("odd", layer())
        module = nn.Sequential(nn.Linear(3, 4), inner)
        with pytest.raises(ArtifactError, match=f"step nn: .*{words}"):
            read_net("nn", module, examples={"input": torch.zeros(2, 3)})


class TestKerasCannot:
    def net(self, layer: Any) -> Any:
        x = keras.Input((3,), name="x")
        return keras.Model(x, keras.layers.Dense(1)(layer(keras.layers.Dense(3)(x))))

    def test_an_operation_that_onnx_lacks(self) -> None:
        import tensorflow as tf

        @keras.saving.register_keras_serializable("tests")
        class Odd(keras.layers.Layer):  # type: ignore[misc]
            def call(self, x: Any) -> Any:
                return tf.math.bessel_i0(x)

        with pytest.raises(
            ArtifactError, match="layer curious uses TensorFlow's operation BesselI0, which tf2onnx cannot.*keras.ops"
        ):
            read_net("nn", self.net(Odd(name="curious")))

    def test_a_layer_that_leaves_the_graph(self) -> None:
        class Outside(keras.layers.Layer):  # type: ignore[misc]
            def call(self, x: Any) -> Any:
                return keras.ops.convert_to_tensor(x.numpy() * 2)

            def compute_output_spec(self, x: Any) -> Any:
                return keras.KerasTensor(x.shape, x.dtype)

        with pytest.raises(ArtifactError, match=r"layer curious \(Outside\) cannot be traced into a graph .*numpy"):
            read_net("nn", self.net(Outside(name="curious")))

"""Nets as other servers are given them: SavedModels and TorchScript answer what TensorFlow and torch answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tristage.errors import ArtifactError
from tristage.export.net import Net, read_net
from tristage.export.net.model import NetInput
from tristage.export.net.torch_script import NamedTorchScript

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
torch = pytest.importorskip("torch")
nn = torch.nn

RNG = np.random.default_rng(5)


def agree(net: Net, make: Callable[[int], Mapping[str, np.ndarray]], *, none: bool = True) -> None:
    """The ONNX model answers what the framework does; `none`: of no rows too, which ends the process in a GRU."""
    session = onnxruntime.InferenceSession(net.model.SerializeToString())
    assert [value.name for value in session.get_inputs()] == [tensor.name for tensor in net.inputs]
    for rows in (1, 2, 3, 700, *([0] if none else [])):
        inputs = dict(make(rows))
        answers, wanted = session.run(None, inputs)[0], net.predict(inputs)[0]
        assert answers.shape == wanted.shape == (rows, net.width)
        assert answers.dtype == wanted.dtype
        np.testing.assert_allclose(answers, wanted, atol=1e-6, rtol=1e-6)


def features(rows: int) -> dict[str, np.ndarray]:
    values = RNG.normal(size=(rows, 3)).astype(np.float32) * 10
    if rows > 2:
        values[0, 0], values[1, 1], values[2, 2] = np.inf, -np.inf, 1e30
    return {"user": RNG.integers(0, 20, rows), "tokens": RNG.integers(0, 50, (rows, 7)), "numeric": values}


def keras_net(*outputs: str) -> Any:
    keras.utils.set_random_seed(1)
    inputs = {
        "user": keras.Input((), dtype="int64", name="user"),
        "tokens": keras.Input((7,), dtype="int64", name="tokens"),
        "numeric": keras.Input((3,), name="numeric"),
    }
    words = keras.ops.mean(keras.layers.Embedding(50, 5)(inputs["tokens"]), axis=1)
    wide = keras.layers.Concatenate()([keras.layers.Embedding(20, 4)(inputs["user"]), words, inputs["numeric"]])
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8, activation="tanh")(wide))
    made = {name: keras.layers.Dense(2, activation="sigmoid", name=name)(hidden) for name in outputs}
    return keras.Model(inputs, made if len(made) > 1 else next(iter(made.values())))


class Arithmetic(tf.Module):
    """Scalars in, scalars out, in double precision."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64, "b"), tf.TensorSpec([None], tf.int32, "a")])
    def __call__(self, b: Any, a: Any) -> Any:
        return {"ratio": b / (tf.cast(a, tf.float64) + 0.5)}


class TestSavedModel:
    def test_folder(self, tmp_path: Path) -> None:
        model = keras_net("score")
        model.export(tmp_path / "net", verbose=False)
        net = read_net("nn", tmp_path / "net")
        assert [(tensor.name, tensor.dtype, tensor.width) for tensor in net.inputs] == [
            ("numeric", "float32", 3),
            ("tokens", "int64", 7),
            ("user", "int64", None),
        ]
        agree(net, features)
        inputs = features(5)
        np.testing.assert_allclose(net.predict(inputs)[0], model.predict(inputs, verbose=0), atol=1e-6)

    def test_several_outputs_lie_side_by_side_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        model = keras_net("view", "buy", "like")
        model.export(tmp_path / "net", verbose=False)
        net = read_net("nn", str(tmp_path / "net"))
        agree(net, features)
        inputs = features(5)
        wanted = model.predict(inputs, verbose=0)
        side_by_side = np.concatenate([wanted[name] for name in ("buy", "like", "view")], axis=1)
        np.testing.assert_allclose(net.predict(inputs)[0], side_by_side, atol=1e-6)

    def test_what_was_loaded(self, tmp_path: Path) -> None:
        module = Arithmetic()
        tf.saved_model.save(module, str(tmp_path / "net"), signatures=module.__call__.get_concrete_function())
        net = read_net("nn", tf.saved_model.load(str(tmp_path / "net")))
        assert net.parts[0].dtype == "float64"

        def make(rows: int) -> dict[str, np.ndarray]:
            values = RNG.normal(size=rows)
            values[: rows // 3] = np.nan
            return {"a": RNG.integers(-5, 5, rows).astype(np.int32), "b": values}

        agree(net, make)

    def test_text(self, tmp_path: Path) -> None:
        module = tf.Module()
        module.f = tf.function(tf.strings.length, input_signature=[tf.TensorSpec([None, 1], tf.string, "word")])
        tf.saved_model.save(module, str(tmp_path / "net"), signatures=module.f)
        with pytest.raises(ArtifactError, match="step nn: input (word|input) is text"):
            read_net("nn", tmp_path / "net")

    def test_without_a_serving_signature(self, tmp_path: Path) -> None:
        tf.saved_model.save(tf.Module(), str(tmp_path / "net"))
        with pytest.raises(ArtifactError, match=r"step nn: .* has no signature serving_default; write it with"):
            read_net("nn", tmp_path / "net")

    def test_an_operation_that_onnx_lacks(self, tmp_path: Path) -> None:
        module = tf.Module()
        spec = tf.TensorSpec([None, 2], tf.float32, "x")
        module.f = tf.function(lambda x: tf.math.bessel_i0(x), input_signature=[spec])
        tf.saved_model.save(module, str(tmp_path / "net"), signatures=module.f)
        with pytest.raises(
            ArtifactError,
            match="step nn: .* uses TensorFlow's operation BesselI0, which tf2onnx cannot",
        ):
            read_net("nn", tmp_path / "net")

    def test_folders(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="there is no file .*net.savedmodel/saved_model.pb"):
            read_net("nn", tmp_path / "net.savedmodel")
        with pytest.raises(ArtifactError, match="no known kind of net"):
            read_net("nn", tmp_path)
        (tmp_path / "saved_model.pb").write_bytes(b"\xffnothing")
        with pytest.raises(ArtifactError, match="step nn: TensorFlow .* cannot read"):
            read_net("nn", tmp_path)


class Words(nn.Module):
    """What a net of Merlin's is called with: one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.words = nn.Embedding(20, 4), nn.Embedding(50, 5)
        self.gru, self.norm = nn.GRU(5, 4, batch_first=True), nn.BatchNorm1d(3)
        self.top, self.dropout = nn.Linear(11, 2), nn.Dropout(0.5)
        self.norm.running_mean.copy_(torch.tensor([1.0, -2, 3]))

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        last = self.gru(self.words(inputs["tokens"]))[1][0]
        wide = torch.cat([self.user(inputs["user"]), last, self.norm(inputs["numeric"])], 1)
        if wide.size(0) > 2:  # control flow, which tracing alone would lose
            wide = wide * 2
        return torch.sigmoid(self.top(self.dropout(wide)))


class Parts(nn.Module):
    """As Triton wants several outputs: a tensor of each."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs["numeric"].sum(1), inputs["numeric"] * inputs["user"].float().unsqueeze(1)


class Unscriptable(nn.Module):
    """TorchScript knows no such argument."""

    def forward(self, *inputs: Any, **more: Any) -> Any:
        return inputs


INPUTS = (NetInput("user", "int64", None), NetInput("tokens", "int64", 7), NetInput("numeric", "float32", 3))


def plain(rows: int) -> dict[str, np.ndarray]:
    return {**features(rows), "numeric": RNG.normal(size=(rows, 3)).astype(np.float32)}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
class TestTorchScript:
    def test_in_memory(self) -> None:
        torch.manual_seed(1)
        net = read_net("nn", NamedTorchScript(torch.jit.script(Words().eval()), INPUTS))
        assert net.inputs == INPUTS
        agree(net, plain, none=False)

    def test_file_saved_in_training_mode(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        module = Words()
        torch.jit.script(module.train()).save(tmp_path / "net.pt")
        net = read_net("nn", NamedTorchScript(tmp_path / "net.pt", INPUTS))
        agree(net, plain, none=False)
        inputs = plain(5)
        with torch.no_grad():
            wanted = module.eval()({name: torch.from_numpy(values) for name, values in inputs.items()})
        np.testing.assert_allclose(net.predict(inputs)[0], wanted, atol=1e-6)

    def test_lists_of_any_length(self) -> None:
        torch.manual_seed(1)
        inputs = (INPUTS[0], NetInput("tokens", "int64", 0), INPUTS[2])
        net = read_net("nn", NamedTorchScript(torch.jit.script(Words().eval()), inputs))
        assert net.inputs == inputs
        agree(net, lambda rows: {**plain(rows), "tokens": RNG.integers(0, 50, (rows, 3))}, none=False)

    def test_a_module_that_can_be_scripted_and_answers_with_parts(self) -> None:
        net = read_net("nn", NamedTorchScript(Parts(), (INPUTS[0], INPUTS[2])))
        assert net.width == 4

        def make(rows: int) -> dict[str, np.ndarray]:
            return {name: values for name, values in features(rows).items() if name != "tokens"}

        with np.errstate(invalid="ignore"):
            agree(net, make)

    def test_what_is_no_torch_script(self, tmp_path: Path) -> None:
        torch.save(Parts(), tmp_path / "net.pt")
        for artifact, words in (
            (NamedTorchScript(tmp_path / "net.pt", INPUTS), "net.pt is no TorchScript"),
            (NamedTorchScript(Unscriptable(), INPUTS), "torch.jit.script refuses it"),
            (NamedTorchScript(torch.jit.script(Parts()), INPUTS[:1]), "torch cannot write it as ONNX"),
            (tmp_path / "net.pt", "net.pt is no TorchScript"),
        ):
            with pytest.raises(ArtifactError, match=f"step nn: .*{words}.*torch.export.save"):
                read_net("nn", artifact)

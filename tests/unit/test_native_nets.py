"""TorchScript and SavedModels for Triton's own backends: read back, they answer what the framework does."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tests import native_nets as nets
from tristage.errors import ArtifactError, StackError
from tristage.export import export
from tristage.export.check import open_model, run_placement
from tristage.export.cut import cut
from tristage.export.lower import lower
from tristage.export.net import read_net
from tristage.export.net.backends import BACKENDS, write_native
from tristage.export.net.model import NetInput
from tristage.export.net.native import NativeNet, native_of
from tristage.export.net.torch_script import NamedTorchScript
from tristage.export.place import fuse, place
from tristage.export.stack_file import read_stack
from tristage.manifest import read_manifest
from tristage.stack import NetStep, Stack

torch = pytest.importorskip("torch")
tf = pytest.importorskip("tensorflow")

SIZES = (1, 2, 3, 1000)


def native(net: Any) -> NativeNet:
    (found,) = [its for its in map(native_of, net.model.graph.node) if its is not None]
    return found


def ask(net: Any, folder: Path, rows: dict[str, np.ndarray]) -> np.ndarray:
    """What the written file answers, side by side, by the names that Triton's backend uses."""
    its = native(net)
    given = dict(zip([own.name for own in its.inputs], [rows[tensor.name] for tensor in net.inputs], strict=True))
    answers = BACKENDS[its.backend].open(folder / its.file, its)(given)
    for answer, own in zip(answers, its.outputs, strict=True):
        assert answer.dtype == own.dtype
        assert answer.shape == ((len(answer),) if own.flat else (len(answer), own.width))
    return np.concatenate([answer.reshape(len(answer), -1) for answer in answers], axis=1)


def agree(net: Any, folder: Path) -> None:
    for count in SIZES:
        rows = {name: values for name, values in nets.make_rows(count, count).items() if name in read(net)}
        rows = {tensor.name: rows[tensor.name].astype(tensor.dtype) for tensor in net.inputs}
        theirs = np.empty((count, net.width))
        for part, values in zip(net.parts, net.predict(rows), strict=True):
            theirs[:, part.positions] = values
        np.testing.assert_allclose(ask(net, folder, rows), theirs, atol=1e-6, rtol=1e-6)


def read(net: Any) -> list[str]:
    return [tensor.name for tensor in net.inputs]


class TestTorchScript:
    @pytest.mark.parametrize("kind", ["module", "program", "file", "script", "script file"])
    def test_any_number_of_rows(self, kind: str, tmp_path: Path) -> None:
        module = nets.module()
        artifact, examples = module, nets.make_rows(2)
        if kind in ("program", "file"):
            artifact, examples = nets.program(module), None
        elif kind != "module":
            artifact = nets.scripted(module)
        if kind == "file":
            torch.export.save(artifact, tmp_path / "net.pt2")
            artifact = tmp_path / "net.pt2"
        if kind == "script file":
            torch.jit.save(artifact, tmp_path / "net.pt")
            artifact = tmp_path / "net.pt"
        net = write_native("nn", "pytorch", artifact, tmp_path, examples)
        its = native(net)
        assert [(own.name, own.dtype, own.width, own.flat) for own in its.inputs] == [
            ("INPUT__0", "int64", 7, False), ("INPUT__1", "int64", 1, True),
            ("INPUT__2", "float32", 3, False), ("INPUT__3", "bool", 1, True),
        ]  # fmt: skip
        assert [(own.name, own.dtype, own.width, own.flat) for own in its.outputs] == [
            ("OUTPUT__0", "float32", 2, False)
        ]
        agree(net, tmp_path)

    def test_several_answers_by_name(self, tmp_path: Path) -> None:
        net = write_native("nn", "pytorch", nets.module(nets.Several), tmp_path, nets.make_rows(2))
        assert [(output.name, output.columns) for output in net.outputs] == [
            ("buy", None),
            ("pair", 2),
            ("count", None),
        ]
        assert [own.dtype for own in native(net).outputs] == ["float32", "float32", "int64"]
        agree(net, tmp_path)

    def test_an_operator_that_onnx_lacks(self, tmp_path: Path) -> None:
        class Waves(torch.nn.Module):
            def forward(self, numeric: torch.Tensor) -> torch.Tensor:
                return torch.special.bessel_j0(numeric.clamp(-9, 9)).sum(1, keepdim=True)

        examples = {"numeric": nets.make_rows(3)["numeric"]}
        with pytest.raises(ArtifactError, match="bessel_j0, which torch cannot write as ONNX"):
            read_net("nn", Waves(), examples=examples)
        agree(write_native("nn", "pytorch", Waves(), tmp_path, examples), tmp_path)

    def test_called_with_a_dict(self, tmp_path: Path) -> None:
        class Merlin(torch.nn.Module):
            def forward(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
                return given["numeric"].sum(1, keepdim=True) + given["user"].unsqueeze(1)

        script = NamedTorchScript(Merlin(), (NetInput("numeric", "float32", 3), NetInput("user", "int64", None)))
        net = write_native("nn", "pytorch", script, tmp_path)
        agree(net, tmp_path)

    def test_its_own_tensors_are_made_where_its_inputs_are(self, tmp_path: Path) -> None:
        net = write_native("nn", "pytorch", nets.module(), tmp_path, nets.make_rows(2))
        code = torch.jit.load(tmp_path / native(net).file).code
        assert "torch.device(" not in code
        assert "ops.prim.device(" in code

    def test_equal_nets_are_equal_bytes_and_name_no_file(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            write_native("nn", "pytorch", nets.module(), tmp_path / name, nets.make_rows(2))
        first, second = ((tmp_path / name / "net-nn.pt") for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
        with zipfile.ZipFile(first) as archive:
            assert not any(name.endswith("debug_pkl") for name in archive.namelist())
            assert int(archive.read("model/version")) <= 10  # what libtorch of Triton 24.10 reads

    def test_a_width_that_may_change(self, tmp_path: Path) -> None:
        given = {"x": torch.zeros(3, 4)}

        class Any_(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.sum(1, keepdim=True)

        dims = {"x": {0: torch.export.Dim("rows"), 1: torch.export.Dim("wide")}}
        with pytest.raises(ArtifactError, match="input x takes any number of values a row"):
            write_native("nn", "pytorch", torch.export.export(Any_(), (), given, dynamic_shapes=dims), tmp_path)

    def test_what_is_no_torchscript(self, tmp_path: Path) -> None:
        class Chosen(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))

        exported = torch.export.export(
            Chosen(), (torch.zeros(3, 4),), dynamic_shapes={"x": {0: torch.export.Dim("rows")}}
        )
        with pytest.raises(ArtifactError, match="step nn: torch cannot write it as TorchScript"):
            write_native("nn", "pytorch", exported, tmp_path)


class TestSavedModel:
    @pytest.mark.parametrize("kind", ["model", "file", "outputs"])
    def test_keras(self, kind: str, tmp_path: Path) -> None:
        artifact: Any = nets.keras_net(*(("buy", "like") if kind == "outputs" else ("one",)))
        if kind == "file":
            artifact.save(tmp_path / "net.keras")
            artifact = tmp_path / "net.keras"
        net = write_native("nn", "tensorflow", artifact, tmp_path)
        assert [(own.name, own.dtype, own.width, own.flat) for own in native(net).inputs] == [
            ("items", "int64", 7, False), ("user", "int64", 1, True),
            ("numeric", "float32", 3, False), ("flag", "bool", 1, True),
        ]  # fmt: skip
        assert [output.name for output in net.outputs] == (["buy", "like"] if kind == "outputs" else [""])
        agree(net, tmp_path)

    @pytest.mark.parametrize("loaded", [False, True])
    def test_a_folder_as_it_is(self, loaded: bool, tmp_path: Path) -> None:
        folder = nets.saved(tmp_path / "given")
        artifact = tf.saved_model.load(str(folder)) if loaded else folder
        net = write_native("nn", "tensorflow", artifact, tmp_path)
        assert [(own.name, own.dtype, own.flat) for own in native(net).inputs] == [
            ("numeric", "float32", False), ("user", "int32", True)
        ]  # fmt: skip
        assert [(own.name, own.width, own.flat) for own in native(net).outputs] == [
            ("score", 1, True),
            ("two", 2, False),
        ]
        agree(net, tmp_path)
        if not loaded:
            for path in folder.rglob("*"):
                if path.is_file():
                    copy = tmp_path / native(net).file / path.relative_to(folder)
                    assert copy.read_bytes() == path.read_bytes()

    def test_shapes_that_triton_cannot_be_told(self, tmp_path: Path) -> None:
        class Wide(tf.Module):
            @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, "x")])
            def serve(self, x: Any) -> Any:
                return {"y": tf.reduce_sum(x, 1)}

        net = Wide()
        tf.saved_model.save(net, str(tmp_path / "given"), signatures={"serving_default": net.serve})
        with pytest.raises(ArtifactError, match=r"input x has the shape \[None, None\]"):
            write_native("nn", "tensorflow", tmp_path / "given", tmp_path)

    def test_every_process_writes_the_same(self, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from tests import native_nets as nets;"
            "from tristage.export.net.backends import write_native;"
            "write_native('nn', 'tensorflow', nets.keras_net('buy', 'like'), Path(sys.argv[1]))"
        )
        digests = []
        for seed in ("1", "2"):
            (tmp_path / seed).mkdir()
            here = Path(__file__).parents[2]
            environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3"}
            command = [sys.executable, "-c", code, str(tmp_path / seed)]
            subprocess.run(command, cwd=here, env=environment, check=True, capture_output=True)
            files = sorted(path for path in (tmp_path / seed).rglob("*") if path.is_file())
            digests.append(
                [(p.relative_to(tmp_path / seed), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]
            )
        assert digests[0] == digests[1]
        assert any(name.name == "saved_model.pb" for name, _ in digests[0])


class TestRequest:
    @pytest.mark.parametrize("target", ["pip-cpu", "ngc-cpu"])
    @pytest.mark.parametrize(
        ("backend", "kind", "fits"),
        [
            ("tensorflow", "torch", "step nn: Triton's tensorflow backend takes Keras.*write backend: pytorch"),
            ("pytorch", "keras", "step nn: Triton's pytorch backend takes.*of Keras; write backend: tensorflow"),
            ("pytorch", "onnx", "step nn: Triton's pytorch backend takes.*of ONNX; leave backend out"),
        ],
    )
    def test_a_backend_of_another_framework(
        self, backend: str, kind: str, fits: str, target: str, tmp_path: Path
    ) -> None:
        made = {
            "torch": lambda: nets.module(),
            "keras": lambda: nets.keras_net("one"),
            "onnx": lambda: read_net("nn", nets.module(), examples=nets.make_rows(2)).model,
        }[kind]()
        examples = nets.make_rows(2) if kind == "torch" else None
        step = NetStep(made, nets.READS, examples=examples, backend=backend)
        stack = Stack("s", {"nn": step}, {"score": "nn.score0"}, golden=nets.write_golden(tmp_path))
        with pytest.raises(StackError, match=fits) as caught:
            export(stack, tmp_path / "out", target=target)
        assert caught.value.step == "nn"

    def test_no_such_backend(self) -> None:
        with pytest.raises(StackError, match="no backend 'onnx'.*pytorch or tensorflow"):
            NetStep("net.pt2", {"x": "a"}, backend="onnx")

    def test_in_a_file(self, tmp_path: Path) -> None:
        text = "name: s\nsteps: {nn: {net: net.pt2, reads: {x: a}, backend: BACKEND}}\noutputs: {y: nn.score}\n"
        path = tmp_path / "stack.yaml"
        path.write_text(text.replace("BACKEND", "pytorch"))
        step = read_stack(path).steps["nn"]
        assert isinstance(step, NetStep)
        assert step.backend == "pytorch"
        path.write_text(text.replace("BACKEND", "torch"))
        with pytest.raises(StackError, match="step nn: there is no backend 'torch'"):
            read_stack(path)


@pytest.fixture(scope="module", params=["pytorch", "tensorflow"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stack(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    return nets.stack(tmp_path_factory.mktemp(backend), backend)


class TestStack:
    def test_pip_cpu_serves_onnx_as_ever(self, stack: Stack, tmp_path: Path) -> None:
        exported = export(stack, tmp_path / "out")
        assert exported.parity is not None
        assert max(exported.parity.differences.values()) < 1e-5
        assert not list((tmp_path / "out").rglob("model.pt")) + list((tmp_path / "out").rglob("model.savedmodel"))

    @pytest.mark.parametrize("layout", ["ensemble", "fused"])
    def test_models_of_their_own(self, stack: Stack, backend: str, layout: str, tmp_path: Path) -> None:
        out = tmp_path / "out"
        exported = export(stack, out, target="ngc-gpu", layout=layout, instances=2)
        assert exported.parity is not None
        assert max(exported.parity.differences.values()) < 1e-5
        its = [name for name, step in stack.steps.items() if isinstance(step, NetStep) and step.backend]
        for name in its:
            model = out / exported.manifest.models[name]
            config = text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())
            assert (config.backend, config.platform) == (backend, BACKENDS[backend].platform)
            assert (model / "1" / BACKENDS[backend].file).exists()
            assert [pb.ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group] == ["KIND_GPU"]
            flat = {tensor.name for tensor in config.input if tensor.HasField("reshape")}
            assert len(flat) == (1 if name == "folder" else 2)
            assert all(list(t.dims) == [1] and not t.reshape.shape for t in config.input if t.name in flat)
        files = read_manifest(out).files
        assert any(name.endswith(("model.pt", "variables.data-00000-of-00001")) for name in files)

    def test_fused_too_the_files_answer(self, stack: Stack, tmp_path: Path) -> None:
        placement = fuse(place(lower(stack, _golden(stack), tables=tmp_path, native=True), 64, native=True))
        parts = cut(placement)
        assert sum(isinstance(model.graph, NativeNet) for model in parts.models) == sum(
            isinstance(step, NetStep) and step.backend is not None for step in stack.steps.values()
        )
        rows = nets.make_rows(100, 3)
        inputs = {"items": rows["items"], "user": rows["user"][:, None], "flag": rows["flag"][:, None]}
        inputs |= {name: rows["numeric"][:, [at]] for at, name in enumerate(nets.NUMBERS)}
        answers = run_placement(parts, inputs)
        again = run_placement(parts, {name: values[::-1] for name, values in inputs.items()})
        for column in parts.signature.outputs:
            assert np.isfinite(answers[column.name]).all()
            np.testing.assert_allclose(answers[column.name], again[column.name][::-1], atol=1e-6)

    def test_a_damaged_file_is_not_exported(self, stack: Stack, tmp_path: Path) -> None:
        parts = cut(place(lower(stack, _golden(stack), tables=tmp_path, native=True), 64, native=True))
        model = next(model for model in parts.models if isinstance(model.graph, NativeNet))
        assert isinstance(model.graph, NativeNet)
        file = tmp_path / model.graph.file
        file = file / "saved_model.pb" if file.is_dir() else file
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(ArtifactError, match=f"step {model.steps[0]}: .* cannot be read back"):
            open_model(model, tmp_path)


def _golden(stack: Stack) -> Any:
    from tristage.export.golden import golden_columns, read_golden_rows

    return golden_columns(read_golden_rows(Path(str(stack.golden))))

"""Narrow weights: what they save, and that the difference in the manifest is the one that there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner

from tests import native_nets as nets
from tests.native_nets import USERS
from tristage.cli import app
from tristage.client.golden import Verification, largest_difference
from tristage.errors import ParityError, StackError
from tristage.export import export
from tristage.export.release import for_release
from tristage.export.rewrites import rewrite
from tristage.export.stack_file import read_stack
from tristage.export.tables import read_tensor
from tristage.export.weights import Narrowed, narrow
from tristage.manifest import read_manifest
from tristage.serving.runner import open_folder
from tristage.stack import ListInput, NetStep, Stack
from tristage.weights import WEIGHT_FORMATS

RNG = np.random.default_rng(7)
SMALLER = {"float16": 2, "bfloat16": 2, "int8": 3.4}


def net_of(kind: str) -> NetStep:
    if kind == "torch":
        return NetStep(nets.module(), nets.READS, examples=nets.make_rows(2))
    return NetStep(nets.keras_net("one"), nets.READS)


def stack_of(step: NetStep, folder: Path) -> Stack:
    outputs = {f"score{at}": f"nn.score{at}" for at in range(2)}
    return Stack("s", {"nn": step}, outputs, inputs={"items": ListInput(7)}, golden=nets.write_golden(folder))


def graph_of(table: np.ndarray, matrix: np.ndarray) -> onnx.ModelProto:
    """ids [rows] -> table[ids] @ matrix.T"""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Gemm", ["rows", "matrix"], ["y"], transB=1),
    ]
    constants = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(matrix, "matrix")]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", len(matrix)])
    graph = helper.make_graph(nodes, "g", [ids], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def narrowed(model: onnx.ModelProto, weights: str, tables: Path | None = None) -> tuple[onnx.ModelProto, Narrowed]:
    found: list[Narrowed] = []
    made, _ = rewrite(model, tables, (), change=lambda graph: found.append(narrow(graph, weights)))
    return made, found[0]


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0])


class TestGraph:
    @pytest.mark.parametrize("weights", WEIGHT_FORMATS)
    def test_what_it_computes(self, weights: str) -> None:
        """The arithmetic is that of float32, on weights that are rounded."""
        table, matrix = (RNG.normal(size=shape).astype(np.float32) for shape in ((50, 8), (3, 8)))
        table[3], matrix[1] = 0, 0
        made, found = narrowed(graph_of(table, matrix), weights)
        if weights == "int8":
            scales = [np.where((most := np.abs(v).max(1, keepdims=True)) > 0, most / 127, 1) for v in (table, matrix)]
            rounded = [np.rint(v / s).clip(-127, 127) * s for v, s in zip((table, matrix), scales, strict=True)]
        else:
            dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}[weights]
            rounded = [torch.from_numpy(v).to(dtype).float().numpy() for v in (table, matrix)]
        ids = np.arange(50)
        np.testing.assert_allclose(run(made, ids=ids), rounded[0][ids] @ rounded[1].T, atol=1e-5)
        assert found.before == 4 * (table.size + matrix.size)
        scales_too = 4 * (50 + 3) if weights == "int8" else 0
        assert found.after == (table.size + matrix.size) * (1 if weights == "int8" else 2) + scales_too
        assert not found.left
        assert not [t for t in made.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 50]

    @pytest.mark.parametrize("weights", WEIGHT_FORMATS)
    def test_tables_stay_narrow_in_their_files(self, weights: str, tmp_path: Path) -> None:
        table = RNG.normal(size=(40_000, 32)).astype(np.float32)
        made, found = narrowed(graph_of(table, np.eye(32, dtype=np.float32)), weights, tmp_path)
        large = [t for t in made.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        assert [(t.data_type, list(t.dims)) for t in large] == [(getattr(TensorProto, weights.upper()), [40_000, 32])]
        assert found.before / found.after >= SMALLER[weights]
        values = read_tensor(large[0], tmp_path).astype(np.float32)
        if weights == "int8":
            values *= np.abs(table).max(1, keepdims=True) / 127
        np.testing.assert_allclose(values, table, atol=np.abs(table).max() / 250)

    def test_what_is_not_finite_or_too_large_is_left(self) -> None:
        table, matrix = np.ones((5, 8), np.float32), np.ones((3, 8), np.float32)
        table[0, :3] = np.nan, np.inf, -np.inf
        matrix[0, 0] = 1e5
        made, found = narrowed(graph_of(table, matrix), "float16")
        assert found.left == ["matrix 3 x 8: it holds 1e+05, and float16 ends at 65,504"]
        np.testing.assert_array_equal(run(made, ids=np.arange(5)), run(graph_of(table, matrix), ids=np.arange(5)))
        _, found = narrowed(graph_of(table, matrix), "int8")
        assert found.left == ["table 5 x 8: it holds what is no finite number, which int8 lacks"]

    @pytest.mark.parametrize("weights", WEIGHT_FORMATS)
    def test_a_table_that_something_else_reads(self, weights: str) -> None:
        model = graph_of(np.ones((5, 8), np.float32), np.ones((3, 8), np.float32))
        model.graph.node.append(helper.make_node("ReduceSum", ["table"], ["total"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info("total", TensorProto.FLOAT, []))
        _, found = narrowed(model, weights)
        assert found.left == ["table 5 x 8: ReduceSum reads it too"]

    def test_int8_has_one_scale(self) -> None:
        """A matrix that one layer multiplies with and another with its transpose."""
        model = graph_of(np.ones((5, 8), np.float32), np.ones((8, 8), np.float32))
        model.graph.node.append(helper.make_node("Gemm", ["rows", "matrix"], ["other"]))
        model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["rows", 8]))
        why = "matrix 8 x 8: it is read by rows and by columns, and int8 has one scale"
        assert narrowed(model, "int8")[1].left == [why]
        assert narrowed(model, "float16")[1].left == []
        narrowest = graph_of(np.ones((5, 1), np.float32), np.ones((3, 1), np.float32))
        assert [left.partition(": ")[2] for left in narrowed(narrowest, "int8")[1].left] == [
            "its rows are single numbers, which scales would make larger"
        ] * 2

    @pytest.mark.parametrize("weights", WEIGHT_FORMATS)
    def test_a_graph_for_triton_24_10(self, weights: str) -> None:
        made, _ = narrowed(graph_of(np.ones((5, 8), np.float32), np.ones((3, 8), np.float32)), weights)
        made.graph.node.append(helper.make_node("Sqrt", ["y"], ["root"]))  # so that it is rewritten
        made.graph.output[0].name = "root"
        np.testing.assert_allclose(run(for_release(made), ids=np.arange(5)), np.sqrt(8), atol=1e-2)


class TestStack:
    @pytest.mark.parametrize("target", ["pip-cpu", "ngc-cpu"])
    @pytest.mark.parametrize("weights", WEIGHT_FORMATS)
    @pytest.mark.parametrize("kind", ["torch", "keras"])
    def test_the_difference_is_measured(self, kind: str, weights: str, target: str, tmp_path: Path) -> None:
        step = net_of(kind)
        stack = stack_of(dataclasses.replace(step, weights=weights), tmp_path)
        exported = export(stack, tmp_path / "out", target=target, layout="fused")
        assert exported.parity is not None
        assert exported.parity.differences["nn"] <= 1e-5  # with the weights as trained
        made = read_manifest(tmp_path / "out").weights
        assert made is not None
        (its,) = made.steps.values()
        assert its.format == weights
        assert its.before / its.after >= SMALLER[weights]
        assert its.before > USERS * 32 * 4
        golden = pq.read_table(tmp_path / "out" / "golden.parquet")
        expected = np.stack([golden[f"expected.score{at}"].to_numpy() for at in range(2)], 1)
        rows = nets.make_rows(300, 9)
        trained = self._ask_framework(kind, step, rows)
        np.testing.assert_allclose(expected, trained, atol=1e-6)
        answers = self._ask_files(tmp_path / "out" / exported.manifest.models["nn"] / "1", rows)
        differences = {f"score{at}": largest_difference(trained[:, at], answers[:, at]) for at in range(2)}
        assert {name: pytest.approx(value, abs=2e-7) for name, value in differences.items()} == made.outputs
        assert its.difference == max(made.outputs.values())
        assert 1e-6 < its.difference < 0.05
        said = CliRunner().invoke(app, ["inspect", str(tmp_path / "out")], env={"COLUMNS": "200"}).output
        assert "narrow weights" in said
        assert f"{its.difference:.1e}" in said
        assert any(f"nn has {weights} weights" in note for note in exported.manifest.notes)

    @staticmethod
    def _ask_framework(kind: str, step: NetStep, rows: dict[str, np.ndarray]) -> np.ndarray:
        if kind == "torch":
            with torch.no_grad():
                return np.asarray(step.net(**{name: torch.from_numpy(v) for name, v in rows.items()}))
        return np.asarray(step.net([rows[tensor.name] for tensor in step.net.inputs], training=False))

    @staticmethod
    def _ask_files(version: Path, rows: dict[str, np.ndarray]) -> np.ndarray:
        """What the written files answer for rows, by ONNX Runtime and our engine."""
        given: dict[str, Any] = {"items": rows["items"], "user": rows["user"][:, None], "flag": rows["flag"][:, None]}
        given |= {name: rows["numeric"][:, [at]] for at, name in enumerate(nets.NUMBERS)}
        made = open_folder(version).run(given)
        return np.concatenate([made[f"score{at}"] for at in range(2)], axis=1)

    def test_a_folded_recurrence_keeps_its_table_outside(self, tmp_path: Path) -> None:
        """The engine's file holds float32: a narrow table is looked up before it."""

        class Words(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.gru, self.top = (
                    nn.Embedding(20_000, 24),
                    nn.GRU(24, 8, batch_first=True),
                    nn.Linear(8, 2),
                )

            def forward(self, items: Any, user: Any, numeric: Any, flag: Any) -> Any:
                last = self.gru(self.words(items))[0][:, -1] + numeric.sum(1, keepdim=True).clamp(-1, 1)
                return torch.sigmoid(self.top(last) + flag.float()[:, None] + user[:, None] * 0)

        torch.manual_seed(3)
        step = NetStep(Words().eval(), nets.READS, examples=nets.make_rows(2))
        sizes = {}
        for weights in (None, "float16"):
            out = tmp_path / str(weights)
            export(stack_of(dataclasses.replace(step, weights=weights), tmp_path), out)
            version = out / "s_nn" / "1"
            sizes[weights] = sum(path.stat().st_size for path in version.iterdir())
            assert list(version.glob("recurrence-*.bin"))
        assert sizes["float16"] < 0.6 * sizes[None]

    def test_weights_as_trained_are_untouched(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            export(stack_of(net_of("torch"), tmp_path), tmp_path / name)
        first, second = (read_manifest(tmp_path / name) for name in ("a", "b"))
        assert first == second
        assert first.weights is None
        assert "narrow" not in (tmp_path / "a" / "manifest.json").read_text()

    def test_equal_bytes(self, tmp_path: Path) -> None:
        step = dataclasses.replace(net_of("torch"), weights="int8")
        for name in ("a", "b"):
            export(stack_of(step, tmp_path), tmp_path / name)
        assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()

    def test_without_golden_rows(self) -> None:
        with pytest.raises(StackError, match="step nn has int8 weights.*name golden rows") as caught:
            Stack("s", {"nn": NetStep("net.pt2", {"x": "a"}, weights="int8")}, {"y": "nn.score"})
        assert caught.value.step == "nn"

    def test_no_such_weights(self, tmp_path: Path) -> None:
        with pytest.raises(StackError, match="no weights of 'fp8'.*float16, bfloat16, int8"):
            NetStep("net.pt2", {"x": "a"}, weights="fp8")
        with pytest.raises(StackError, match="leave weights or backend out"):
            NetStep("net.pt2", {"x": "a"}, weights="int8", backend="pytorch")
        steps = "{nn: {net: n.pt2, reads: {x: a}, weights: int8}}"
        text = f"name: s\ngolden: g.parquet\nsteps: {steps}\noutputs: {{y: nn.score}}\n"
        (tmp_path / "stack.yaml").write_text(text)
        step = read_stack(tmp_path / "stack.yaml").steps["nn"]
        assert isinstance(step, NetStep)
        assert step.weights == "int8"

    def test_what_becomes_no_number_is_not_exported(self, tmp_path: Path) -> None:
        """float16 has no 1e-8: what was divided by it becomes infinite."""

        class Tiny(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.sizes = nn.Embedding(USERS, 2)
                nn.init.constant_(self.sizes.weight, 1e-8)

            def forward(self, items: Any, user: Any, numeric: Any, flag: Any) -> Any:
                return (
                    self.sizes(user).reciprocal() * 1e-8
                    + (items[:, :2] + numeric[:, :2].clamp(0, 0) + flag[:, None]) * 0
                )

        step = NetStep(Tiny().eval(), nets.READS, examples=nets.make_rows(2), weights="float16")
        with pytest.raises(ParityError, match="step nn with float16 weights answers no number"):
            export(stack_of(step, tmp_path), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_verify_allows_what_was_measured() -> None:
    recorded = {"p": 1e-3}
    assert Verification("s", "u", 3, 1e-5, {"p": 1.005e-3, "q": 1e-5}, recorded).passed
    found = Verification("s", "u", 3, 1e-5, {"p": 1e-3, "q": 2e-5}, recorded)
    assert not found.passed
    with pytest.raises(ParityError, match='"q" differs by 2e-05, more than 1e-05;'):
        found.check()
    with pytest.raises(ParityError, match='"p" differs by 0.002, more than 0.00101 .*narrow weights'):
        Verification("s", "u", 3, 1e-5, {"p": 2e-3, "q": 0.0}, recorded).check()

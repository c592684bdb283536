"""Programs on a device: recurrences, tables that do not fit, graphs with texts; equal to the host's engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
import xgboost
from onnx import TensorProto, helper, numpy_helper

from tristage.export import export
from tristage.export.forest.to_engine import Member, pack
from tristage.export.rewrites.cell import Cell
from tristage.export.rewrites.pack import pack as pack_layer
from tristage.serving.device import tables
from tristage.serving.device.operators import Faults
from tristage.serving.device.parts import HostPart
from tristage.serving.device.program import DeviceProgram
from tristage.serving.device.recurrence import DeviceRecurrence
from tristage.serving.device.stretch import Stretch
from tristage.serving.device.tables import Budget, HotTable, WholeTable
from tristage.serving.graph import GraphError
from tristage.serving.program import open_compiled
from tristage.serving.program_file import Choice, ForestCall, ProgramFile, RecurrenceCall
from tristage.serving.recurrence import RecurrenceEngine
from tristage.stack import CandidatesStep, ForestStep, ListInput, Stack

CPU = torch.device("cpu")
KINDS = ("GRU after", "GRU before", "LSTM")
MAKES = {"every": "e", "last": "l", "cells": "c"}


def cell_of(kind: str, width: int) -> Cell:
    draw = np.random.default_rng(0)
    gates = (4 if kind == "LSTM" else 3) * width

    def some(*shape: int) -> Any:
        return draw.normal(scale=0.6, size=shape).astype(np.float32)

    weights = some(width, gates) / np.float32(width**0.5)
    return Cell(kind.split()[0], some(7, gates), weights, some(gates), some(gates), kind != "GRU before")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("looked_up", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_recurrences(kind: str, masked: bool, looked_up: bool, backwards: bool, tmp_path: Path) -> None:
    for width in (1, 20, 64):
        cell = cell_of(kind, width)
        draw = np.random.default_rng(1)
        wide = cell.recurrent.shape[1]
        table = draw.normal(size=(50, wide)).astype(np.float32)
        options: dict[str, Any] = {"rows": 50, "table": (table,)} if looked_up else {}
        file = pack_layer(cell, tmp_path, backwards=backwards, zeros=masked, **options)
        call = RecurrenceCall(file, "x", "m" if masked else None, MAKES)
        faults = Faults()
        layer = DeviceRecurrence.open(tmp_path, call, Budget(CPU, 1 << 40).place, CPU, faults)
        x = draw.integers(-50, 50, (9, 5)) if looked_up else draw.normal(size=(9, 5, wide)).astype(np.float32)
        mask = draw.random((9, 5, 1)) < 0.6
        given = {"x": torch.from_numpy(x), "m": torch.from_numpy(mask)}
        made = layer.run({name: given[name] for name in layer.reads})
        expected = RecurrenceEngine(tmp_path / file).run(x, mask[:, :, 0] if masked else None)
        for name, tensor in MAKES.items():
            if name != "cells" or kind == "LSTM":
                np.testing.assert_allclose(made[tensor].numpy(), expected[name], atol=2e-6)
        if looked_up:
            layer.run({"x": torch.full((1, 1), 50), "m": torch.ones((1, 1, 1), dtype=torch.bool)})
            _, flags = faults.take()
            assert flags is not None
            assert flags.tolist() == [False, True]


def test_a_table_that_does_not_fit_keeps_its_most_asked_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_SETTLE", 20_000)
    draw = np.random.default_rng(0)
    values = torch.from_numpy(draw.normal(size=(5000, 8)).astype(np.float32))
    table = HotTable(values, 500, CPU)
    favourites = draw.permutation(5000)  # asked for by a power law, whose first ids are anywhere in the table
    shares = []
    for _ in range(30):
        ids = torch.from_numpy(favourites[np.minimum(draw.zipf(1.3, 4000) - 1, 4999)])
        before = table.asked, table.found
        torch.testing.assert_close(table.rows(ids), values[ids], rtol=0, atol=0)
        shares.append((table.found - before[1]) / (table.asked - before[0]))
    assert table.asked == 30 * 4000
    assert shares[0] < 0.5 < 0.8 < shares[-1], shares
    assert len(table.rows(torch.tensor([], dtype=torch.int64))) == 0


def test_tables_go_to_the_device_while_they_fit() -> None:
    large = torch.zeros(tables.LARGE // 4 + 1, 1)
    budget = Budget(CPU, int(large.nbytes * 1.5))
    assert isinstance(budget.place(torch.zeros(3, 1)), WholeTable)
    assert isinstance(budget.place(large), WholeTable)
    second = budget.place(large)
    assert isinstance(second, HotTable)
    assert budget.hot == [second]
    assert 0.2 < len(second._hot) / len(large) < 0.3
    assert budget.bytes_left > 0


def mixed_graph() -> onnx.ModelProto:
    """A text that is looked up, a number of its own, and a number that the host makes and that is an answer too."""
    nodes = [
        helper.make_node(
            "LabelEncoder", ["text"], ["id"], domain="ai.onnx.ml",
            keys_strings=["a", "b"], values_int64s=[1, 2], default_int64=0,
        ),
        helper.make_node("Gather", ["table", "id"], ["found"]),
        helper.make_node("Mul", ["found", "x"], ["product"]),
        helper.make_node("Identity", ["id"], ["number"]),
    ]  # fmt: skip
    given = [helper.make_tensor_value_info("text", TensorProto.STRING, ["rows", 1])]
    given += [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])]
    made = [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["rows", 1])]
    made += [helper.make_tensor_value_info("number", TensorProto.INT64, ["rows", 1])]
    table = numpy_helper.from_array(np.array([0.5, 1.5, 2.5], np.float32), "table")
    graph = helper.make_graph(nodes, "mixed", given, made, [table])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 4)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_texts_stay_on_the_host_and_all_else_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(mixed_graph(), tmp_path / "graph.onnx")
    program = DeviceProgram.open(tmp_path, "cpu")
    host, device = program.stages
    assert isinstance(host, HostPart)
    assert isinstance(device, Stretch)
    assert "text" in host.why
    given = {"text": np.array([["b"], ["?"], ["a"]], object), "x": np.array([[2], [4], [np.nan]], np.float32)}
    expected = open_compiled(tmp_path).run(given)
    for rows in (3, 1, 0):
        made = program.run({name: array[:rows] for name, array in given.items()})
        assert made.keys() == expected.keys() == {"product", "number"}
        for name, array in expected.items():
            assert made[name].dtype == array.dtype
            np.testing.assert_array_equal(made[name], array[:rows])
    monkeypatch.setattr("tristage.serving.device.program._AT_ONCE", 2)
    for name, array in expected.items():  # in turns
        np.testing.assert_array_equal(program.run(given)[name], array)
    assert {t.name: t.triton_type for t in program.inputs} == {"text": "TYPE_STRING", "x": "TYPE_FP32"}
    with pytest.raises(GraphError, match="input x is missing"):
        program.run({"text": given["text"]})
    with pytest.raises(GraphError, match="x must be float32"):
        program.run({**given, "x": given["x"].astype(np.float64)})


def test_a_fault_of_a_row_is_the_error_of_its_request(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "id"], ["y"], name="look")],
        "one",
        [helper.make_tensor_value_info("id", TensorProto.INT64, ["rows", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(np.arange(3, dtype=np.float32), "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "graph.onnx")
    program = DeviceProgram.open(tmp_path, "cpu")
    with pytest.raises(GraphError, match="an index of look is out of range"):
        program.run({"id": np.array([[0], [3]])})
    assert program.run({"id": np.array([[-1]])})["y"].tolist() == [[2.0]]


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    onnx.save(mixed_graph(), tmp_path / "graph.onnx")
    for device in ("cuda:7", "nonsense"):
        with pytest.raises(GraphError, match=f"no device {device}"):
            DeviceProgram.open(tmp_path, device)
    (tmp_path / "program.json").write_text("{", encoding="utf-8")
    with pytest.raises(GraphError, match=r"program.json cannot be read"):
        DeviceProgram.open(tmp_path, "cpu")


def booster(rows: pd.DataFrame, seed: int) -> xgboost.Booster:
    labels = (rows["a"] > rows["b"]).to_numpy(np.float32)
    return xgboost.train(
        {"max_depth": 4, "seed": seed, "objective": "binary:logistic"}, xgboost.DMatrix(rows, labels), 8
    )


def test_a_forest_that_another_engine_answers_stays_on_the_host(tmp_path: Path) -> None:
    import treelite

    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32), columns=["a", "b"])
    packed = pack([Member(treelite.frontend.from_xgboost(booster(rows, 0)))], 2)
    (tmp_path / "f.bin").write_bytes(packed)
    for engine, on_host in (("tristage", False), ("onnxruntime", True)):
        call = ForestCall("xgb", "", "rows", None, "out", (Choice(None, engine, "f.bin"),))
        (tmp_path / "program.json").write_text(ProgramFile((call,), {"out": "out"}).to_json(), encoding="utf-8")
        if on_host:
            with pytest.raises(GraphError):  # what another engine would open is no ONNX file
                DeviceProgram.open(tmp_path, "cpu")
        else:
            (stage,) = DeviceProgram.open(tmp_path, "cpu").stages
            assert isinstance(stage, Stretch)


@pytest.mark.parametrize("layout", ["fused", "ensemble"])
def test_candidates_are_answered_on_the_device(layout: str, tmp_path: Path) -> None:
    """One user, many items: the stack that is asked about every candidate is opened on the device as well."""
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"a": draw.normal(size=60), "b": draw.normal(size=60)}).astype(np.float32)
    inner = Stack("inner", {"xgb": ForestStep(booster(rows, 1), ("a", "b"))}, {"score": "xgb.score"})
    asked = pd.DataFrame({"a": rows["a"], "b": [draw.normal(size=5).astype(np.float32) for _ in range(60)]})
    asked.to_parquet(tmp_path / "golden.parquet")
    stack = Stack(
        "outer",
        {"each": CandidatesStep(inner, each={"b": ("b",)}, shared={"a": ("a",)})},
        {"scores": "each.score*"},
        inputs={"b": ListInput(5)},
        golden=tmp_path / "golden.parquet",
    )
    export(stack, tmp_path / "models", layout=layout)
    (folder,) = (path.parent for path in (tmp_path / "models").rglob("program.json") if "candidates-" not in str(path))
    given = {"a": asked[["a"]].to_numpy(np.float32), "b": np.stack(asked["b"].to_list())}
    expected = open_compiled(folder).run(given)
    program = DeviceProgram.open(folder, "cpu")
    for name, array in program.run(given).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-6)

"""Graphs cut at their forests for Triton's native backends: the parts together answer what the whole does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xgboost

from tristage.columns import Column, Signature
from tristage.export.check import run_placement
from tristage.export.cut import cut
from tristage.export.forest import read_forests
from tristage.export.forest.native import add_checkpoint
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.place import Checkpoint, PlacedModel, Placement, Tensor

ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
MODEL = xgboost.train({"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(ROWS, ROWS[:, 0] > 0), 4)


def placement(folder: Path) -> Placement:
    """A forest on all columns, one on those and its answer, and what passes by both: an input, and a shape."""
    forests = read_forests("f", MODEL, (), grouped=False)
    graph = GraphBuilder()
    x = graph.input("x", "float32", 3)
    shape = graph.add("Shape", x)  # of no rows: it cannot travel to the part that reads it
    first = add_checkpoint(graph, x, forests, None, folder, "one")
    second = add_checkpoint(graph, graph.concat([first, graph.columns(x, [1, 2], 3)]), forests, None, folder, "two")
    tall = graph.add("Expand", second, graph.add("Mul", shape, graph.constant(np.array([1, 0], np.int64) + [0, 1])))
    outputs = [("same", x, "float32", 3), ("one", first, "float32", 1), ("two", second, "float32", 1)]
    made = graph.model([*outputs, ("tall", tall, "float32", 3)])
    tensors = (Tensor("same", "float32", 3), Tensor("one", "float32", 1), Tensor("two", "float32", 1))
    model = PlacedModel(
        "s_fused",
        ("one", "two", "last"),
        made,
        (Tensor("x", "float32", 3),),
        (*tensors, Tensor("tall", "float32", 3)),
        {},
        stages={"one": 0, "two": 1, "last": 2},
        on_gpu=frozenset({"one", "two"}),
    )
    signature = Signature("s", 64, (Column("x", "float32"),), (Column("one", "float32"),))
    return Placement(signature, (model,), folder)


def test_the_parts_answer_what_the_whole_does(tmp_path: Path) -> None:
    parts = cut(placement(tmp_path))
    answers = run_placement(parts, {"x": ROWS})
    first = MODEL.inplace_predict(ROWS).reshape(-1, 1)
    second = MODEL.inplace_predict(np.concatenate([first, ROWS[:, 1:]], axis=1)).reshape(-1, 1)
    np.testing.assert_array_equal(answers["same"], ROWS)
    np.testing.assert_allclose(answers["one"], first, atol=1e-6)
    np.testing.assert_allclose(answers["two"], second, atol=1e-6)
    np.testing.assert_allclose(answers["tall"], np.repeat(second, 3, axis=1), atol=1e-6)


def test_what_the_parts_are(tmp_path: Path) -> None:
    models = cut(placement(tmp_path)).models
    assert [(model.name, model.steps) for model in models] == [
        ("s_fused__0", ()),
        ("s_one", ("one",)),
        ("s_fused__1", ()),
        ("s_two", ("two",)),
        ("s_fused__2", ("last",)),
        ("s_fused__copies", ()),
    ]
    assert [model.name for model in models if isinstance(model.graph, Checkpoint)] == ["s_one", "s_two"]
    assert [model.name for model in models if model.on_gpu] == ["s_one", "s_two"]
    made = {"x"}
    for model in models:  # each after those it reads
        assert {tensor.name for tensor in model.inputs} <= made
        assert all(len(tensor.name) and tensor.width for tensor in (*model.inputs, *model.outputs))
        made |= {tensor.name for tensor in model.outputs}


def test_all_nodes_have_names_of_their_own(tmp_path: Path) -> None:
    for model in cut(placement(tmp_path)).models:
        if not isinstance(model.graph, Checkpoint):
            names = [node.name for node in model.graph.graph.node]
            assert all(names)
            assert len(set(names)) == len(names)

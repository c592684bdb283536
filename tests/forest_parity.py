"""What the tests of every forest library share: awkward rows, and graphs run on them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tristage.columns import Column, Signature
from tristage.export.check import run_placement
from tristage.export.cut import cut
from tristage.export.forest import Forest, ForestSet, read_forests
from tristage.export.forest.native import add_checkpoint
from tristage.export.forest.to_onnx import add_forests
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.place import PlacedModel, Placement, Tensor

Ask = Callable[[np.ndarray], Any]

# what a number can be, at its worst
ODD = np.array(
    [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 0.0, -0.0, 1e-30, -1e-30, 0.5, -0.5, -1, 1, 2.7, 17, 2**24, 4e9],
    np.float32,
)


def rows_of(seed: int, count: int, width: int, missing: float = 0.1) -> np.ndarray:
    """Random float32 rows with missing values."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, width)).astype(np.float32)
    rows[random.random(rows.shape) < missing] = np.nan
    return rows


def awkward(rows: np.ndarray, odd: np.ndarray = ODD) -> list[np.ndarray]:
    """Many rows, one, none, rows of odd values alone, and rows with an odd value in one column at a time."""
    width = rows.shape[1]
    alone = np.repeat(odd[:, None], width, axis=1)
    mixed = np.concatenate([np.where(np.arange(width) == column, alone, rows[:1]) for column in range(width)]).astype(
        np.float32
    )
    return [rows, rows[:1], rows[:0], alone, mixed]


def around(thresholds: Any, width: int) -> np.ndarray:
    """Rows that lie on thresholds, and on the next float32 values to either side, in all columns."""
    exact = np.unique(np.asarray(thresholds, np.float64))
    near = exact[np.abs(exact) < np.finfo(np.float32).max].astype(np.float32)
    near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
    return np.repeat(near[:, None], width, axis=1)


def served(forests: ForestSet, rows: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """What ONNX Runtime answers: [rows, forests.width]."""
    graph = GraphBuilder()
    group = None if groups is None else graph.input("group", "int64", 1)
    answers = add_forests(graph, graph.input("rows", "float32", rows.shape[1]), forests, group)
    model = graph.model([("out", answers, "float32", forests.width)])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {"rows": rows} if groups is None else {"rows": rows, "group": groups.reshape(-1, 1).astype(np.int64)}
    feeds = {value.name: feeds[value.name] for value in session.get_inputs()}
    return np.asarray(session.run(None, feeds)[0])


def natively(forests: ForestSet, rows: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """What the checkpoint for FIL answers, through Treelite's interpreter, and the graphs around it."""
    with tempfile.TemporaryDirectory() as folder:
        graph = GraphBuilder(fingerprints=False)
        group = None if groups is None else graph.input("group", "int64", 1)
        given = graph.input("rows", "float32", rows.shape[1])
        answers = add_checkpoint(graph, given, forests, group, Path(folder), "f")
        inputs = (Tensor("rows", "float32", rows.shape[1]), *([] if group is None else [Tensor("group", "int64", 1)]))
        emitted = Tensor("out", "float32", forests.width)
        made = graph.model([("out", answers, "float32", forests.width)])
        model = PlacedModel("s_f", ("f",), made, inputs, (emitted,), {}, {"f": 0})
        signature = Signature("s", 4096, (Column("rows", "float32"),), (Column("out", "float32"),))
        feeds = {"rows": rows} if groups is None else {"rows": rows, "group": groups.reshape(-1, 1).astype(np.int64)}
        return run_placement(cut(Placement(signature, (model,), Path(folder))), feeds)["out"]


def agree(artifact: Any, every: list[np.ndarray], ask: Ask | None = None, margins: Ask | None = None) -> Forest:
    """Check a model against its own library, to 1e-6, on batches of rows; answers the converted forest.

    Args:
        artifact: what a step's `forest` may be.
        every: batches of rows.
        ask: the library, asked in the test's own way; None where `Forest.predict` is all there is.
        margins: the same for margins, which are then asked for as well.
    """
    forests = read_forests("f", artifact, (), grouped=False, margins=margins is not None, trust=True)
    (forest,) = forests.all()
    for rows in every:
        answers = served(forests, rows)
        assert answers.shape == (len(rows), forests.width)
        assert answers.dtype == np.float32
        expected = [forest.predict(rows)]
        assert expected[0].shape == (len(rows), forest.outputs)
        if margins is not None:
            assert forest.margins is not None
            expected.append(forest.margins(rows))
        close(answers, np.concatenate(expected, axis=1))
        close_in_float32(natively(forests, rows), answers)
        if len(rows) and ask is not None:
            close(answers[:, : forest.outputs], np.asarray(ask(rows)).reshape(len(rows), -1))
        if len(rows) and margins is not None:
            close(answers[:, forest.outputs :], np.asarray(margins(rows)).reshape(len(rows), -1))
    return forest


def close_in_float32(answers: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to the rounding of sums in float32, which FIL computes in."""
    np.testing.assert_allclose(answers, expected, atol=2e-6, rtol=1e-5)


def close(answers: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-6, relative above 1."""
    np.testing.assert_allclose(answers, expected, atol=1e-6, rtol=1e-6)

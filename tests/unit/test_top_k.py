"""Top-k steps: what is served is what NumPy's stable sort answers, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import xgboost

from tristage.errors import StackError
from tristage.export import export
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.stack_file import read_stack
from tristage.export.top_k import CARRIED, MASK, SCORES, TopK
from tristage.serving.graph import Graph
from tristage.stack import ForestStep, Stack, TopKStep

AWKWARD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 1.0, -3e38, 3e38, 1e-45], np.float32)
COUNT = 6


def feeds_of(rows: int, body: TopK) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    scores = draw.choice(AWKWARD, (rows, COUNT))
    scores[::5] = np.nan
    given = {SCORES: scores, CARRIED + "item": draw.integers(-(2**62), 2**62, (rows, COUNT))}
    given[CARRIED + "price"] = draw.normal(size=(rows, COUNT)).astype(np.float32)
    if body.masked:
        given[MASK] = draw.integers(0, 2, (rows, COUNT)).astype(np.float32)
        given[MASK][1::7] = 0
    return given


@pytest.mark.parametrize("k", [1, 3, COUNT])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [400, 1, 0])
def test_it_is_what_numpy_answers(k: int, masked: bool, rows: int, tmp_path: Path) -> None:
    body = TopK(k, (("item", "int64"), ("price", "float32")), masked)
    given = feeds_of(rows, body)
    graph = GraphBuilder()
    names = {name: name.replace(" ", "_") for name in given}
    inputs = {name: graph.input(names[name], str(array.dtype), COUNT) for name, array in given.items()}
    made = body.lower(graph, inputs, "top")
    outputs = [(f"y{n}", t, p.dtype, k * len(p.outputs)) for n, (t, p) in enumerate(zip(made, body.parts, strict=True))]
    onnx.save(graph.model(outputs), tmp_path / "top.onnx")
    served = Graph.open(tmp_path / "top.onnx").run({names[name]: array for name, array in given.items()})
    for number, wanted in enumerate(body.predict(given)):
        assert served[f"y{number}"].dtype == wanted.dtype
        np.testing.assert_array_equal(served[f"y{number}"], wanted)
    suffixes = [""] if k == 1 else [str(n) for n in range(k)]
    assert [column.name for column in body.columns] == [f"{w}{s}" for w in ("score", "item", "price") for s in suffixes]
    assert [column.dtype for column in body.columns] == ["float32"] * k + ["int64"] * k + ["float32"] * k


def test_what_it_answers_is_what_people_expect() -> None:
    body = TopK(3, (("item", "int64"),), True)
    scores = np.array([[0.2, 0.9, 0.9, np.nan, 0.5]], np.float32)
    given = {SCORES: scores, CARRIED + "item": np.array([[10, 11, 12, 13, 14]]), MASK: np.array([[1, 0, 1, 1, 1]])}
    best, items = body.predict(given)
    assert best.tolist() == np.float32([[0.9, 0.5, 0.2]]).tolist()
    assert items.tolist() == [[12, 14, 10]]
    best, items = body.predict({**given, MASK: np.array([[0, 0, 0, 1, 1]])})
    assert items.tolist() == [[14, -1, -1]]
    assert np.isnan(best[0, 1:]).all()


def stack_of(folder: Path, step: TopKStep, **outputs: str) -> Stack:
    draw = np.random.default_rng(1)
    rows = pd.DataFrame({f"p{n}": draw.normal(size=50).astype(np.float32) for n in range(4)})
    rows = rows.assign(**{f"id{n}": draw.integers(0, 9, 50) for n in range(4)}, text="a", low=-1.0)
    data = [xgboost.DMatrix(rows[[f"p{n}"]].rename(columns={f"p{n}": "p"}), draw.random(50)) for n in range(4)]
    trees = {
        f"t{n}": ForestStep(xgboost.train({"max_depth": 3}, data[n], 4), (f"p{n}",))
        for n in range(4)
        if data[n].set_info(feature_names=[f"p{n}"]) is None
    }
    rows.to_parquet(folder / "golden.parquet")
    return Stack("best", {**trees, "top": step}, outputs or {"best": "top.score*"}, golden=folder / "golden.parquet")


SCORED = ("t0.score", "t1.score", "t2.score", "t3.score")
IDS = ("id0", "id1", "id2", "id3")


@pytest.mark.parametrize("target", ["pip-cpu", "pip-gpu", "ngc-cpu"])
def test_in_a_stack(target: str, tmp_path: Path) -> None:
    step = TopKStep(SCORED, 2, {"item": IDS, "mixed": ("id0", "low", "id2", "id3")}, mask=("id3", "id2", "id1", "id0"))
    stack = stack_of(tmp_path, step, best="top.score*", items="top.item*", mixed="top.mixed*", first="top.item0")
    made = export(stack, tmp_path / "models", target=target, layout="ensemble")
    assert made.parity is not None
    columns = {column.name: (column.dtype, column.length) for column in made.manifest.signature.outputs}
    assert columns == {"best": ("float32", 2), "items": ("int64", 2), "mixed": ("float32", 2), "first": ("int64", None)}


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (TopKStep(SCORED, 5), "takes the best 5 of 4 candidates"),
        (TopKStep(SCORED, 2, {"item": IDS[:3]}), "top is 4 columns, one for each candidate, and item is 3"),
        (TopKStep(SCORED, 2, mask=("id0",)), "and mask is 1"),
        (TopKStep(SCORED, 2, {"what": ("id0", "id1", "text", "id3")}), "what reads text, which is no column of single"),
    ],
)
def test_what_does_not_fit(step: TopKStep, why: str, tmp_path: Path) -> None:
    with pytest.raises(StackError, match=why):
        export(stack_of(tmp_path, step), tmp_path / "models")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": True}, "k is True"),
        ({"k": 1, "carry": {"score": IDS}}, "carry names 'score'"),
        ({"k": 1, "carry": {"a b": IDS}}, "carry names 'a b'"),
    ],
)
def test_what_is_wrong_is_said(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(StackError, match=why):
        TopKStep(SCORED, **arguments)


def test_written_down(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text(
        "name: best\nsteps:\n  near: {index: i.faiss, reads: v, k: 4}\n"
        "  top: {top: near.score*, k: 2, carry: {item: near.item*}, mask: [a, b, c, d]}\noutputs: {items: top.item*}\n"
    )
    step = read_stack(tmp_path / "stack.yaml").steps["top"]
    assert step == TopKStep(("near.score*",), 2, {"item": ("near.item*",)}, ("a", "b", "c", "d"))
    (tmp_path / "stack.yaml").write_text("name: best\nsteps:\n  top: {top: [a, b]}\noutputs: {x: top.score}\n")
    with pytest.raises(StackError, match="k"):
        read_stack(tmp_path / "stack.yaml")

"""Candidates steps: every candidate of a row is answered as its stack's training libraries answer it as a row."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost
from onnx import TensorProto, helper, numpy_helper

from tristage.client.codec import encode
from tristage.columns import Column
from tristage.errors import ArtifactError, ParityError, StackError
from tristage.export import export
from tristage.export.check import check_parity, run_placement
from tristage.export.golden import golden_columns
from tristage.export.lower import lower
from tristage.export.place import Placement, fuse, place
from tristage.export.reference import reference_answers
from tristage.export.size.repository import sizes_of
from tristage.export.stack_file import read_stack
from tristage.manifest import check_files, read_manifest
from tristage.stack import CandidatesStep, ForestStep, ListInput, MeanStep, NetStep, Stack, WorkflowStep

nvt = pytest.importorskip("nvtabular")
ops = nvt.ops
RANDOM = np.random.default_rng(5)
ROWS, COUNT, LENGTH = 80, 5, 3
ITEMS = pd.DataFrame({"item": np.arange(100, 140), "price": RANDOM.lognormal(size=40), "kind": RANDOM.choice(9, 40)})
UNSEEN = [-1, 0, 2**62, 99]


def raw_rows() -> pd.DataFrame:
    items = RANDOM.choice([*ITEMS["item"], *UNSEEN], (ROWS, COUNT))
    counts = RANDOM.integers(0, COUNT + 1, ROWS)
    return pd.DataFrame(
        {
            "items": [its[:count].tolist() for its, count in zip(items, counts, strict=True)],
            "words": [RANDOM.choice(["a", "b", "ü", ""], count).tolist() for count in counts],
            **{f"s{number}": RANDOM.choice([0.5, np.nan, np.inf, -2.0, 1e-3], ROWS) for number in range(COUNT)},
            "user": RANDOM.choice(["ann", "bob", "", "zoë", None], ROWS),
            "age": RANDOM.choice([20.0, 35.5, np.nan], ROWS),
            "visits": pd.Series(RANDOM.choice([1, 7, None], ROWS), dtype="Int64"),
            "tokens": [RANDOM.integers(1, 20, RANDOM.integers(0, LENGTH + 2)).tolist() for _ in range(ROWS)],
        }
    )


def scorer() -> onnx.ModelProto:
    """tanh of the numbers, the mean of an embedding of the tokens, and twice the code."""
    draw = np.random.default_rng(1)
    constants = [
        numpy_helper.from_array(draw.normal(size=(3, 2)).astype(np.float32), "w"),
        numpy_helper.from_array(draw.normal(size=(20, 2)).astype(np.float32), "table"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ]
    nodes = [
        helper.make_node("IsNaN", ["x"], ["none"]),
        helper.make_node("Where", ["none", "zero", "x"], ["known"]),
        helper.make_node("Clip", ["known"], ["inside"], min=-3.0, max=3.0),
        helper.make_node("MatMul", ["inside", "w"], ["product"]),
        helper.make_node("Gather", ["table", "tokens"], ["words"]),
        helper.make_node("ReduceMean", ["words"], ["text"], axes=[1], keepdims=0),
        helper.make_node("Add", ["product", "text"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["both"]),
        helper.make_node("Add", ["code", "code"], ["twice"]),
    ]
    nodes[2] = helper.make_node("Clip", ["known", "low", "high"], ["inside"])
    constants += [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("low", -3), ("high", 3))]
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3]),
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", LENGTH]),
            helper.make_tensor_value_info("code", TensorProto.INT64, ["rows", 1]),
        ],
        [
            helper.make_tensor_value_info("both", TensorProto.FLOAT, ["rows", 2]),
            helper.make_tensor_value_info("twice", TensorProto.INT64, ["rows", 1]),
        ],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def forest(width: int, seed: int = 0) -> xgboost.Booster:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(300, width)) * draw.choice([1, 30], width)
    data = xgboost.DMatrix(rows, draw.integers(0, 2, 300))
    return xgboost.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1, "seed": seed}, data, 5)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return raw_rows()


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rows = pd.DataFrame({"item": np.resize(ITEMS["item"], 90), "user": np.resize(np.array(["ann", "bob", "cy"]), 90)})
    codes = ["user", "item"] >> ops.Categorify(out_path=str(tmp_path_factory.mktemp("codes")))
    joined = ["item"] >> ops.JoinExternal(ITEMS, on="item", columns_ext=["item", "price", "kind"])
    facts = joined["price", "kind"]
    fitted = nvt.Workflow((codes >> ops.Rename(postfix="_code")) + facts)
    fitted.fit(nvt.Dataset(rows, cpu=True))
    return fitted


@pytest.fixture(scope="module")
def inner(workflow: Any) -> Stack:
    return Stack(
        "scoring",
        {
            "facts": WorkflowStep(workflow),
            "net": NetStep(scorer(), {"x": ("s", "facts.price", "age"), "tokens": "tokens", "code": "facts.item_code"}),
            "trees": ForestStep(
                forest(6), ("facts.price", "facts.kind", "facts.user_code", "net.both0", "s", "visits")
            ),
            "mean": MeanStep(("trees", "also")),
            "also": ForestStep(forest(2, 3), ("net.both1", "facts.item_code")),
        },
        {
            "click": "mean.score",
            "kind": "facts.kind",
            "code": "facts.item_code",
            "twice": "net.twice",
        },
    )


def outer(inner: Stack, **more: Any) -> Stack:
    step = CandidatesStep(
        inner,
        each={"item": "items", "s": tuple(f"s{number}" for number in range(COUNT))},
        shared={"user": "user", "age": "age", "visits": "visits", "tokens": "tokens"},
    )
    outputs = {"clicks": "scored.click*", "kinds": "scored.kind*", "codes": "scored.code*", "twice": "scored.twice*"}
    inputs = {"items": ListInput(COUNT, -1), "tokens": ListInput(LENGTH), "words": ListInput(COUNT)}
    return Stack("s", {"scored": step}, {"best": "scored.click0", **outputs}, inputs=inputs, **more)


@pytest.fixture(scope="module")
def golden(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def placed(stack: Stack, golden: pa.Table, folder: Path) -> tuple[Any, Placement]:
    lowered = lower(stack, golden_columns(golden), tables=folder)
    placement = place(lowered, 32)
    inputs = tuple(
        dataclasses.replace(column, nullable=True)
        if column.length is None and column.dtype in ("string", "float64")
        else column
        for column in placement.signature.inputs
    )
    return lowered, dataclasses.replace(placement, signature=dataclasses.replace(placement.signature, inputs=inputs))


def tensors(placement: Placement, golden: pa.Table) -> dict[str, Any]:
    return dict(encode(golden, placement.signature, unknown="ignore"))


def exploded(frame: pd.DataFrame) -> pd.DataFrame:
    """The candidates as rows, by hand."""
    rows = []
    for _, row in frame.iterrows():
        for at in range(COUNT):
            item = row["items"][at] if at < len(row["items"]) else -1
            tokens = list(row["tokens"])[:LENGTH]
            shared = {name: row[name] for name in ("user", "age", "visits")}
            rows.append({"item": item, "s": row[f"s{at}"], "tokens": tokens + [0] * (LENGTH - len(tokens)), **shared})
    return pd.DataFrame(rows)


@pytest.mark.filterwarnings("ignore")
class TestWhole:
    def test_every_candidate_is_answered_as_a_row(
        self, inner: Stack, workflow: Any, golden: pa.Table, tmp_path: Path
    ) -> None:
        """By NVTabular, XGBoost and NumPy, without any of ours."""
        lowered, placement = placed(outer(inner), golden, tmp_path)
        served = run_placement(placement, tensors(placement, golden))
        rows = exploded(golden.to_pandas())
        made = workflow.transform(rows[["user", "item"]])
        weights = {t.name: numpy_helper.to_array(t) for t in scorer().graph.initializer}
        x = np.stack([rows["s"], made["price"], rows["age"]], 1).astype(np.float32)
        product = np.clip(np.where(np.isnan(x), 0, x), -3, 3) @ weights["w"]
        both = np.tanh(product + weights["table"][np.stack(rows["tokens"])].mean(1))
        features = [made["price"], made["kind"], made["user_code"], both[:, 0], rows["s"], rows["visits"]]
        trees = forest(6).inplace_predict(np.stack(features, 1).astype(np.float32))
        also = forest(2, 3).inplace_predict(np.stack([both[:, 1], made["item_code"]], 1).astype(np.float32))
        np.testing.assert_allclose(served["clicks"].ravel(), (trees + also) / 2, atol=1e-6)
        np.testing.assert_array_equal(served["kinds"].ravel(), made["kind"].to_numpy(np.float32))
        np.testing.assert_array_equal(served["codes"].ravel(), made["item_code"])
        np.testing.assert_array_equal(served["twice"].ravel(), 2 * made["item_code"])
        assert served["codes"].dtype == served["twice"].dtype == np.int64
        np.testing.assert_array_equal(served["best"], served["clicks"][:, :1])

    def test_reference_and_layouts(self, inner: Stack, golden: pa.Table, tmp_path: Path) -> None:
        lowered, placement = placed(outer(inner), golden, tmp_path)
        table = golden.to_pandas()
        answers = reference_answers(lowered, table)
        inputs = tensors(placement, golden)
        parity = check_parity(lowered, placement, inputs, answers, table, 1e-5)
        assert list(parity.differences) == ["scored"]
        assert parity.differences["scored"] < 1e-6
        one, fused = run_placement(placement, inputs), run_placement(fuse(placement), inputs)
        for name in lowered.outputs:
            np.testing.assert_array_equal(one[name], fused[name])

    @pytest.mark.parametrize("rows", [0, 1, 2])
    def test_few_rows(self, inner: Stack, golden: pa.Table, tmp_path: Path, rows: int) -> None:
        _, placement = placed(outer(inner), golden, tmp_path)
        inputs = tensors(placement, golden)
        every = run_placement(placement, inputs)
        some = run_placement(placement, {name: array[:rows] for name, array in inputs.items()})
        for name in ("clicks", "kinds", "codes", "best"):
            assert some[name].shape == (rows, 1 if name == "best" else COUNT)
            np.testing.assert_allclose(some[name], every[name][:rows], atol=1e-6)

    def test_more_candidates_than_are_asked_at_once(
        self, inner: Stack, golden: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, placement = placed(outer(inner), golden, tmp_path)
        inputs = tensors(placement, golden)
        every = run_placement(placement, inputs)
        monkeypatch.setattr("tristage.serving.candidates._MOST", 3 * COUNT + 1)
        again = run_placement(placement, inputs)
        for name in ("clicks", "codes"):
            np.testing.assert_allclose(again[name], every[name], atol=1e-6)

    def test_exported(self, inner: Stack, golden: pa.Table, tmp_path: Path) -> None:
        pq.write_table(golden, tmp_path / "golden.parquet")
        stack = outer(inner, golden=tmp_path / "golden.parquet")
        for layout in ("ensemble", "fused"):
            made = export(stack, tmp_path / layout, layout=layout)
            assert made.parity is not None
            assert made.parity.differences["scored"] < 1e-5
            check_files(tmp_path / layout, read_manifest(tmp_path / layout))
            assert not list((tmp_path / layout).rglob("*.pkl"))
            sizes = sizes_of(tmp_path / layout, read_manifest(tmp_path / layout))
            assert sizes.served.trees_met == COUNT * 10
            assert sizes.served.trees == 10
        expected = pq.read_table(tmp_path / "fused" / "golden.parquet")["expected.codes"].to_pylist()
        assert [len(codes) for codes in expected] == [COUNT] * len(expected)

    def test_same_bytes_every_time(self, tmp_path: Path) -> None:
        code = (
            "import sys; sys.path.append(sys.argv[1]); import test_candidates as t; "
            "t.write(__import__('pathlib').Path(sys.argv[2]))"
        )
        manifests = []
        for seed in ("1", "2"):
            folder = tmp_path / seed
            folder.mkdir()
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            command = [sys.executable, "-c", code, str(Path(__file__).parent), str(folder)]
            subprocess.run(command, env=environment, check=True, timeout=200, capture_output=True)
            manifests.append(read_manifest(folder / "repository").files)
        assert manifests[0] == manifests[1]
        assert any("/candidates-" in name for name in manifests[0])


def write(folder: Path) -> None:
    """Write a stack that asks another about candidates, and export it by its file."""
    draw = np.random.default_rng(0)
    forest(3).save_model(folder / "trees.ubj")
    (folder / "scoring.yaml").write_text(
        "name: scoring\nsteps:\n  trees: {forest: trees.ubj, reads: [p, q, age]}\noutputs: {click: trees.score}\n"
    )
    (folder / "stack.yaml").write_text(
        "name: s\ngolden: golden.parquet\ninputs: {ps: {max_length: 3}, qs: {max_length: 3}}\nsteps:\n"
        "  scored: {stack: scoring.yaml, each: {p: ps, q: qs}, shared: {age: age}}\noutputs: {clicks: scored.click*}\n"
    )
    lists = {name: list(draw.normal(size=(20, 3))) for name in ("ps", "qs")}
    pd.DataFrame({**lists, "age": draw.normal(size=20)}).to_parquet(folder / "golden.parquet")
    export(read_stack(folder / "stack.yaml"), folder / "repository")


RAW = {name: Column(name, "float32", nullable=True) for name in ("p", "q", "r")}


def small(step: CandidatesStep, tables: Path, columns: dict[str, Column] = RAW, **more: Any) -> Any:
    return lower(Stack("s", {"scored": step}, {"y": "scored.*"}, **more), columns, tables=tables)


def trees(*reads: str, outputs: dict[str, str] | None = None, name: str = "trees") -> Stack:
    return Stack("t", {name: ForestStep(forest(len(reads)), reads)}, outputs or {"click": f"{name}.score"})


class TestColumns:
    def test_one_candidate(self, tmp_path: Path) -> None:
        made = small(CandidatesStep(trees("a", "b"), {"a": "p"}, {"b": "q"}), tmp_path)
        assert [column.name for column in made.steps[0].columns] == ["click"]
        placement = place(made, 8)
        rows = {name: np.array([[1.0], [np.nan]], np.float32) for name in RAW}
        want = forest(2).inplace_predict(np.concatenate([rows["p"], rows["q"]], 1))
        np.testing.assert_allclose(run_placement(placement, rows)["y"][:, 0], want, atol=1e-7)

    def test_several_columns_become_a_list(self, tmp_path: Path) -> None:
        net = scorer()
        stack = Stack(
            "t",
            {"net": NetStep(net, {"x": ("a", "a3"), "tokens": "tokens", "code": "code"})},
            {"both": "net.both0"},
        )
        columns = {
            **{f"v{n}": Column(f"v{n}", "float32") for n in range(2)},
            **{f"c{n}": Column(f"c{n}", "int64") for n in range(4)},
            "tokens": Column("tokens", "int64", LENGTH, 0),
        }
        step = CandidatesStep(
            stack,
            {"code": ("c0", "c1", "c2", "c3"), "a3": ("v0", "v1")},
            {"a": ("v0", "v1"), "tokens": "tokens"},
        )
        with pytest.raises(StackError, match=r"step scored reads 4 of code, 2 of a3; each has to hold one value"):
            small(step, tmp_path, columns, inputs={"tokens": ListInput(LENGTH)})
        step = CandidatesStep(
            stack, {"code": ("c0", "c1"), "a3": ("v0", "v1")}, {"a": ("v0", "v1"), "tokens": "tokens"}
        )
        made = small(step, tmp_path, columns, inputs={"tokens": ListInput(LENGTH)})
        draw = np.random.default_rng(2)
        given = {name: draw.normal(size=(6, 1)).astype(np.float32) for name in ("v0", "v1")}
        given |= {name: draw.integers(0, 9, (6, 1)) for name in ("c0", "c1")}
        given["tokens"] = draw.integers(0, 20, (6, LENGTH))
        served = run_placement(place(made, 8), given)["y"]
        weights = {t.name: numpy_helper.to_array(t) for t in net.graph.initializer}
        for at in range(2):
            x = np.concatenate([given["v0"], given["v1"], given[f"v{at}"]], 1)
            want = np.tanh(np.clip(x, -3, 3) @ weights["w"] + weights["table"][given["tokens"]].mean(1))[:, 0]
            np.testing.assert_allclose(served[:, at], want, atol=1e-6)

    def test_texts_of_candidates(self, tmp_path: Path) -> None:
        rows = pd.DataFrame({"word": ["a", "b", "ü", None]})
        fitted = nvt.Workflow(["word"] >> ops.Categorify(out_path=str(tmp_path / "codes")))
        fitted.fit(nvt.Dataset(rows, cpu=True))
        stack = Stack("t", {"codes": WorkflowStep(fitted)}, {"code": "codes.word"})
        columns = {"words": Column("words", "string", 4, "")}
        made = small(CandidatesStep(stack, {"word": "words"}), tmp_path, columns, inputs={"words": ListInput(4)})
        words = np.array([["a", "ü", "new", ""], ["\x01", "b", "b", "a"]], object)
        served = run_placement(place(made, 8), {"words": words})["y"]
        flat = pd.DataFrame({"word": [None if word == "\x01" else word for word in words.ravel()]})
        np.testing.assert_array_equal(served.ravel(), fitted.transform(flat)["word"])

    def test_a_stack_in_a_stack_in_a_stack(self, tmp_path: Path) -> None:
        inside = Stack(
            "u",
            {
                "again": CandidatesStep(trees("a", "b"), {"a": "as"}, {"b": "b"}),
                "last": NetStep(_sum(2), {"x": "again"}),
            },
            {"total": "last.score"},
            inputs={"as": ListInput(2)},
        )
        columns = {"as": Column("as", "float32", 2, np.nan), "p": RAW["p"], "q": RAW["q"]}
        step = CandidatesStep(inside, {"b": ("p", "q")}, {"as": "as"})
        made = small(step, tmp_path, columns, inputs={"as": ListInput(2)})
        draw = np.random.default_rng(4)
        given = {"as": draw.normal(size=(7, 2)).astype(np.float32)}
        given |= {name: draw.normal(size=(7, 1)).astype(np.float32) for name in ("p", "q")}
        served = run_placement(place(made, 8), given)["y"]
        for at, name in enumerate(("p", "q")):
            want = sum(
                forest(2).inplace_predict(np.concatenate([given["as"][:, [one]], given[name]], 1)) for one in range(2)
            )
            np.testing.assert_allclose(served[:, at], want, atol=1e-6)

    def test_what_nothing_depends_on_need_not_be_served(self, workflow: Any, tmp_path: Path) -> None:
        stack = Stack("t", {"facts": WorkflowStep(workflow)}, {"price": "facts.price"})
        columns = {"items": Column("items", "int64", 2, -1), "user": Column("user", "string", nullable=True)}
        step = CandidatesStep(stack, {"item": "items"}, {"user": "user"})
        made = small(step, tmp_path, columns, inputs={"items": ListInput(2)})
        assert [feed.name for feed in made.steps[0].feeds] == ["item"]
        served = run_placement(place(made, 8), {"items": np.array([[100, -1]])})["y"]
        assert served[0, 0] == np.float32(ITEMS["price"][0])
        assert np.isnan(served[0, 1])
        step = CandidatesStep(stack, {"user": ("user",)}, {"item": "item"})
        with pytest.raises(StackError, match=r"step scored: what its stack answers depends on nothing that differs"):
            small(step, tmp_path, {**columns, "item": Column("item", "int64")})


def _sum(width: int) -> onnx.ModelProto:
    axes = numpy_helper.from_array(np.array([1]), "axes")
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
        [axes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class TestEdges:
    """A forest in the stack splits where its net's rounding decides."""

    def stack(self, split: float) -> Stack:
        booster = xgboost.train(
            {
                "max_depth": 1,
                "nthread": 1,
                "tree_method": "exact",
                "base_score": 0.0,
                "eta": 1.0,
                "reg_lambda": 0,
                "min_child_weight": 0,
            },
            xgboost.DMatrix(np.array([[split - 1], [split + 1]], np.float32), np.array([0.0, 1.0])),
            1,
        )
        return Stack(
            "t",
            {"net": NetStep(_sum(2), {"x": ("a", "b")}), "trees": ForestStep(booster, ("net",))},
            {"y": "trees.score"},
        )

    def parity(self, tmp_path: Path, count: int, off: int) -> Any:
        columns = {"as": Column("as", "float32", count, np.nan), "b": Column("b", "float32")}
        step = CandidatesStep(self.stack(2.0), {"a": "as"}, {"b": "b"})
        lowered = small(step, tmp_path, columns, inputs={"as": ListInput(count)})
        placement = place(lowered, 64)
        body = lowered.steps[0].body
        net = body.lowered.steps[0]

        def nudged(feeds: Any) -> Any:  # what the framework answers lies beside what is served, below the tolerance
            made = net.body.predict(feeds)
            return [np.where(made[0] == 2.0, np.float32(1.9999999), made[0])]

        inner = dataclasses.replace(
            body.lowered,
            steps=(
                dataclasses.replace(net, body=dataclasses.replace(net.body, predict=nudged)),
                *body.lowered.steps[1:],
            ),
        )
        asked = dataclasses.replace(
            body,
            lowered=inner,
            ask=lambda tensors: {"y": reference_answers(inner, _frame(tensors))["trees"]["score"]},
        )
        lowered = dataclasses.replace(lowered, steps=(dataclasses.replace(lowered.steps[0], body=asked),))
        rows = np.zeros((200, count), np.float32)
        rows[:off, 0] = 1.0
        inputs = {"as": rows, "b": np.ones((200, 1), np.float32)}
        frame = pd.DataFrame({"as": list(rows), "b": np.ones(200, np.float32)})
        return check_parity(lowered, placement, inputs, reference_answers(lowered, frame), frame, 1e-5)

    def test_few_candidates_on_an_edge_leave_their_rows_out(self, tmp_path: Path) -> None:
        found = self.parity(tmp_path, 10, 9)
        assert found.edge.tolist() == [True] * 9 + [False] * 191
        assert found.differences["scored"] == 0

    def test_many_are_no_accident(self, tmp_path: Path) -> None:
        with pytest.raises(
            ParityError, match=r"step scored: 11 of 2000 candidates of golden rows are answered otherwise"
        ):
            self.parity(tmp_path, 10, 11)


def _frame(tensors: Any) -> pd.DataFrame:
    return pd.DataFrame({name: values[:, 0] for name, values in tensors.items()})


class TestRefused:
    def test_declarations(self) -> None:
        with pytest.raises(StackError, match="each names no column"):
            CandidatesStep(trees("a"), {})
        with pytest.raises(StackError, match="each and shared both name a; a raw column differs by candidate"):
            CandidatesStep(trees("a"), {"a": "p"}, {"a": "q"})
        with pytest.raises(StackError, match=r"step scored: its stack is a str; give a tristage\.stack\.Stack"):
            Stack("s", {"scored": CandidatesStep("scoring.yaml", {"a": "p"})}, {"y": "scored.click"})

    @pytest.mark.parametrize(
        ("each", "shared", "words"),
        [
            ({"a": "p"}, {}, r"step scored: step trees reads b, which is neither a step nor a raw column"),
            ({"a": "p"}, {"b": "q", "c": "r"}, r"step scored gives c, which its stack does not read; it reads a, b"),
            ({"a": "word"}, {"b": "q"}, r"step scored: step trees reads a, which holds text"),
            ({"a": ("p", "whole")}, {"b": "q"}, r"reads p, whole as one column, which are float32 and int64"),
            ({"a": ("p", "list")}, {"b": "q"}, r"reads p, list as one column; give one list column, or scalars"),
            ({"a": "p"}, {"b": "list"}, r"step scored: step trees reads b, which holds lists"),
            ({"a": ("p", "q")}, {"b": "nowhere"}, r"step scored reads nowhere, which is neither a step nor a raw"),
        ],
    )
    def test_columns(self, tmp_path: Path, each: Any, shared: Any, words: str) -> None:
        columns = {
            **RAW,
            "word": Column("word", "string"),
            "whole": Column("whole", "int64"),
            "list": Column("list", "float32", 2, np.nan),
        }
        with pytest.raises(StackError, match=words):
            small(CandidatesStep(trees("a", "b"), each, shared), tmp_path, columns, inputs={"list": ListInput(2)})

    def test_columns_of_a_workflow(self, workflow: Any, tmp_path: Path) -> None:
        stack = Stack("t", {"facts": WorkflowStep(workflow)}, {"price": "facts.price", "code": "facts.user_code"})
        with pytest.raises(StackError, match=r"step scored: its stack reads user, which neither each nor shared names"):
            small(CandidatesStep(stack, {"item": "item"}), tmp_path, {"item": Column("item", "int64")})
        columns = {"item": Column("item", "float64"), "user": Column("user", "string")}
        with pytest.raises(StackError, match=r"step scored gives float64 as item, and its stack reads int64"):
            small(CandidatesStep(stack, {"item": "item"}, {"user": "user"}), tmp_path, columns)

    def test_a_list_for_every_candidate(self, tmp_path: Path) -> None:
        stack = trees("a", "b", outputs={"both": "trees.sc*"})
        with pytest.raises(StackError, match=r"step scored: output both of its stack is a list; answer one number"):
            small(CandidatesStep(stack, {"a": "p"}, {"b": "q"}), tmp_path)

    def test_lists_of_two_lengths(self, tmp_path: Path) -> None:
        nets = {"net": NetStep(_sum(3), {"x": ("a", "b")})}
        stack = Stack("t", nets, {"y": "net.score"}, inputs={"b": ListInput(3)})
        columns = {**RAW, "list": Column("list", "float32", 2, np.nan)}
        words = r"step scored: lists of b have room for 2 here and the pad nan, and in its stack for 3 and None"
        with pytest.raises(StackError, match=words):
            small(CandidatesStep(stack, {"a": "p"}, {"b": "list"}), tmp_path, columns, inputs={"list": ListInput(2)})
        alike = dataclasses.replace(stack, inputs={"b": ListInput(2, float("nan"))})
        step = CandidatesStep(alike, {"a": "p"}, {"b": "list"})
        small(step, tmp_path, columns, inputs={"list": ListInput(2)})

    def test_narrow_weights(self, tmp_path: Path) -> None:
        nets = {"net": NetStep(_sum(2), {"x": ("a", "b")}, weights="int8")}
        stack = Stack("t", nets, {"y": "net.score"}, golden="golden.parquet")
        with pytest.raises(StackError, match=r"step scored: step net of its stack has int8 weights"):
            small(CandidatesStep(stack, {"a": "p"}, {"b": "q"}), tmp_path)

    def test_a_workflow_that_cannot_be_compiled(self, tmp_path: Path) -> None:
        fitted = nvt.Workflow(["word"] >> ops.LambdaOp(lambda column: column.str.len()))
        fitted.fit(nvt.Dataset(pd.DataFrame({"word": ["a", "bc"]}), cpu=True))
        stack = Stack("t", {"sizes": WorkflowStep(fitted)}, {"y": "sizes.word"})
        words = r"step scored: step sizes: LambdaOp on word: .*, so that it cannot be compiled; candidates are asked of"
        with pytest.raises(ArtifactError, match=words):
            small(CandidatesStep(stack, {"word": "p"}), tmp_path, {"p": Column("p", "string")})

    def test_a_missing_file_is_said_first(self, tmp_path: Path) -> None:
        stack = Stack("t", {"trees": ForestStep(tmp_path / "gone.ubj", ("a",))}, {"y": "trees.score"})
        with pytest.raises((ArtifactError, StackError), match=r"step scored: .*trees.*gone\.ubj"):
            small(CandidatesStep(stack, {"a": "p"}), tmp_path)

    def test_native_targets(self, inner: Stack, golden: pa.Table, tmp_path: Path) -> None:
        pq.write_table(golden, tmp_path / "golden.parquet")
        with pytest.raises(StackError, match=r"step scored answers candidates, which none of the container's own"):
            export(outer(inner, golden=tmp_path / "golden.parquet"), tmp_path / "repository", target="ngc-cpu")

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("each: {p: ps, q: qs}, ", "", r"step scored lacks the key 'each'"),
            ("each: {p: ps, q: qs}", "each: ps", r"each of step scored .* must be a mapping"),
            ("each: {p: ps, q: qs}", "each: {p: 3}", r"each\.p of step scored is 3; give one name or a list"),
            ("shared: {age: age}", "shared: {p: age}", r"step scored: each and shared both name p"),
            ("stack: scoring.yaml", "stack: gone.yaml", r"there is no file .*gone\.yaml"),
            ("stack: scoring.yaml", "stack: stack.yaml", r"stack\.yaml is a step of itself"),
            ("stack: scoring.yaml", "stack: 3", r"stack of step scored is 3; give a text"),
            ("shared:", "common:", r"step scored has an unknown key 'common'; it may have stack, each, shared"),
        ],
    )
    def test_in_a_file(self, tmp_path: Path, old: str, new: str, words: str) -> None:
        write(tmp_path)
        text = (tmp_path / "stack.yaml").read_text()
        assert text.count(old) == 1
        (tmp_path / "stack.yaml").write_text(text.replace(old, new))
        with pytest.raises(StackError, match=words):
            read_stack(tmp_path / "stack.yaml")

"""Workflows that cannot be compiled: which NVTabular itself serves, and serves right, and which are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost

from tristage.client.codec import encode
from tristage.columns import Column, Signature
from tristage.errors import ArtifactError, ParityError, RepositoryError, StackError
from tristage.export import export, prepare, write
from tristage.export.check import check_parity, run_placement
from tristage.export.golden import golden_columns
from tristage.export.lower import lower
from tristage.export.lowered import LoweredStack
from tristage.export.place import Placement, fuse, place
from tristage.export.reference import reference_answers
from tristage.export.workflow import NoLowering, compile_workflow, raw_columns
from tristage.export.workflow.lineage import raw_names
from tristage.manifest import read_manifest
from tristage.serving.graph import GraphError
from tristage.serving.interpreted import Interpreter
from tristage.serving.nvtabular import frame
from tristage.serving.runner import evaluate, open_folder
from tristage.serving.workflow_file import TRUST, WorkflowFile, check_folder
from tristage.stack import ForestStep, ListInput, Stack, WorkflowStep

nvt = pytest.importorskip("nvtabular")
ops = nvt.ops
pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.default_rng(5)
ROWS = 120


class Shout(ops.Operator):
    """Upper case; there is no lowering for it. A text with a question mark is an error."""

    def transform(self, col_selector: Any, df: pd.DataFrame) -> pd.DataFrame:
        if any(df[name].str.contains("?", regex=False).any() for name in col_selector.names):
            raise ValueError("a question mark")
        return pd.DataFrame({name: df[name].str.upper() for name in col_selector.names}, index=df.index)


class Same(ops.Operator):
    """Passes its columns on; there is no lowering for it."""

    def transform(self, col_selector: Any, df: pd.DataFrame) -> pd.DataFrame:
        return df[col_selector.names]


class Made(ops.Operator):
    """Whatever a function makes of its columns."""

    def __init__(self, function: Callable[[pd.Series], Any]) -> None:
        super().__init__()
        self.function = function

    def transform(self, col_selector: Any, df: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({name: self.function(df[name]) for name in col_selector.names})


def raw_rows(rows: int = ROWS) -> pd.DataFrame:
    lists = [RNG.integers(0, 9, size).tolist() for size in (2, *RNG.integers(0, 6, rows - 1))]
    return pd.DataFrame(
        {
            "word": ["ann", *RNG.choice(["ann", "bob", "", "zoë", None], rows - 1)],
            "x": np.where(RNG.random(rows) < 0.2, np.nan, RNG.normal(size=rows)),
            "n": np.append(1, RNG.integers(-5, 1000, rows - 1)),
            "flag": RNG.random(rows) < 0.5,
            "ids": lists,
            "tags": [[f"t{value}" for value in row] for row in lists],
            "y": RNG.integers(0, 2, rows).astype(np.float32),
        }
    )


def fit(nodes: Any, rows: pd.DataFrame) -> Any:
    return nvt.Workflow(nodes).fit(nvt.Dataset(rows.copy()))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # NVTabular writes its statistics into the working directory


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return raw_rows()


def compiled(nodes: Any, rows: pd.DataFrame) -> Any:
    workflow = fit(nodes, rows)
    lists = {name: ListInput(5, pad=-1 if name == "ids" else None) for name in ("ids", "tags")}
    lists = {name: options for name, options in lists.items() if name in workflow.input_schema.column_names}
    return compile_workflow(workflow, raw_columns(workflow, lists, frozenset()))


class TestWhatFallsBack:
    @pytest.mark.parametrize(
        ("nodes", "reason"),
        [
            (lambda: ["n"] >> Same(), "operator Same has no lowering"),
            (lambda: ["word"] >> ops.LambdaOp(lambda c: c.str.len()), "LambdaOp on word: column 'word' holds text"),
            (lambda: ["x"] >> ops.LambdaOp(lambda c: c.clip(0, 1)), r"LambdaOp on x: it uses \.clip"),
            (lambda: ["word"] >> ops.FillMissing(0), "FillMissing fills word"),
            (lambda: ["n"] >> ops.Clip(min_value=0.5), "Clip cuts the whole-number column n"),
            (lambda: ["x"] >> ops.ReduceDtypeSize(np.float16), "ReduceDtypeSize makes x float16"),
            (
                lambda: (["n"] >> Same()) + (["x"] >> ops.LambdaOp(lambda c: c.clip(0, 1)) >> ops.Normalize()),
                r"operator Same has no lowering; LambdaOp on x: it uses \.clip",
            ),
        ],
    )
    def test_a_lack(self, nodes: Any, reason: str, rows: pd.DataFrame) -> None:
        with pytest.raises(NoLowering, match=reason) as caught:
            compiled(nodes(), rows)
        assert caught.value.reason in str(caught.value)

    @pytest.mark.parametrize(
        ("nodes", "reason"),
        [
            (lambda: ["word"] >> ops.Dropna(), "Dropna leaves rows out"),
            (lambda: ["n"] >> ops.HashBucket(4), "HashBucket on a CPU"),
            (lambda: ["n"] >> Same() >> ops.HashBucket(4), "HashBucket on a CPU"),
            (
                lambda: ["word"] >> ops.LambdaOp(lambda c: c.str.slice(0, 1)) >> ops.Categorify(4, num_buckets=3),
                r"Categorify\(word\): num_buckets",
            ),
            (lambda: (["x"] >> Same()) + (["n"] >> ops.DifferenceLag("word", shift=1)), "DifferenceLag"),
            (lambda: (["x"] >> Same()) + (["ids"] >> ops.LogOp() >> ops.Clip(min_value=0)), "Clip reads the list"),
            (
                lambda: (["x"] >> Same()) + (["n"] >> ops.JoinExternal(pd.DataFrame({"n": [1]}), "n", how="inner")),
                "JoinExternal.*leaves out rows",
            ),
        ],
    )
    def test_a_refusal_wherever_it_stands(self, nodes: Any, reason: str, rows: pd.DataFrame) -> None:
        workflow = nvt.Workflow(nodes())
        workflow.fit_schema(nvt.Dataset(rows.copy()).schema)
        lists = {"ids": ListInput(5)} if "ids" in workflow.input_schema.column_names else {}
        raw = raw_columns(workflow, lists, frozenset())
        with pytest.raises(ArtifactError, match=f"cannot be served: .*{reason}") as caught:
            compile_workflow(workflow, raw)
        assert not isinstance(caught.value, NoLowering)

    def test_addresses_are_left_out(self, rows: pd.DataFrame) -> None:
        def fail(column: Any) -> Any:
            raise ValueError(f"{object()}\n  of two lines")

        with pytest.raises(NoLowering) as caught:
            compiled(["x"] >> ops.LambdaOp(lambda c: c + 1 if isinstance(c, pd.Series) else fail(c)), rows)
        assert "<object object at 0x...> of two lines" in caught.value.reason


class TestLineage:
    """Columns that nobody reads are not asked of a client."""

    @pytest.mark.parametrize(
        ("nodes", "names", "expected"),
        [
            (lambda: ["x", "n"] >> ops.FillMissing(add_binary_cols=True), {"x_filled"}, {"x"}),
            (lambda: (["x"] >> Same() >> ops.Rename(postfix="_s")) + ["y"], {"x_s"}, {"x"}),
            (lambda: (["x", "n"] >> Same()) + ["y"], {"x"}, {"x", "n"}),
            (lambda: ["word"] >> ops.TargetEncoding(["y"], kfold=3), {"TE_word_y"}, {"word"}),
            (lambda: ["word"] >> ops.JoinGroupby(cont_cols=["x"], stats=["mean"]), {"word_x_mean"}, {"word"}),
            (lambda: [["word", "n"]] >> ops.Categorify(encode_type="combo"), {"word_n"}, {"word", "n"}),
            (lambda: ["x", "n"] >> ops.LambdaOp(lambda c: c + 1), {"n"}, {"n"}),
            (lambda: ["x"] >> ops.LambdaOp(lambda c, f: c + f["n"], dependency=["n"]), {"x"}, {"x", "n"}),
            (
                lambda: ["n", "y"] >> ops.JoinExternal(pd.DataFrame({"n": [1], "e": [2.0]}), on="n"),
                {"e"},
                {"n", "y"},
            ),
        ],
    )
    def test_columns(self, nodes: Any, names: set[str], expected: set[str], rows: pd.DataFrame) -> None:
        assert raw_names(fit(nodes(), rows).output_node, names) == expected

    def test_a_graph_within_the_graph(self, rows: pd.DataFrame) -> None:
        from merlin.dag.ops.subgraph import Subgraph

        inner = Subgraph("inner", (["x"] >> ops.Normalize()) + (["n"] >> ops.FillMissing()))
        workflow = fit(inner + ["y"], rows)
        assert raw_names(workflow.output_node, {"x"}) == {"x"}
        assert raw_names(workflow.output_node, {"n", "y"}) == {"n", "y"}


class TestFrame:
    """What travels becomes the data frame that it was."""

    COLUMNS = (
        Column("text", "string", nullable=True),
        Column("real", "float32", nullable=True),
        Column("whole", "int16"),
        Column("hole", "int64", nullable=True),
        Column("maybe", "bool", nullable=True),
        Column("sure", "bool"),
        Column("ids", "int64", 3, 0),
        Column("words", "string", 2, ""),
        Column("reals", "float64", 3, float("nan")),
    )
    ROWS = pa.table(
        {
            "text": pa.array(["ü", None, "", "x\0"]),
            "real": pa.array([1.5, None, float("inf"), float("nan")], pa.float32()),
            "whole": pa.array([1, -2, 3, 32767], pa.int16()),
            "hole": pa.array([1, None, 2**53, -1]),
            "maybe": pa.array([True, None, False, True]),
            "sure": pa.array([True, False, False, True]),
            "ids": pa.array([[1, 0, 2], [], [7], [1, 2, 3]]),
            "words": pa.array([["a"], [], ["b", "ü"], ["", "c"]]),
            "reals": pa.array([[], [1.0, float("inf")], [0.0, 2.0, 3.0], [float("nan"), 1.0]]),
        }
    )

    def test_every_kind_of_column(self) -> None:
        tensors = encode(self.ROWS, Signature("s", 8, self.COLUMNS, ()))
        made, was = frame(tensors, self.COLUMNS), self.ROWS.to_pandas()
        for column in self.COLUMNS:
            if column.length is None:
                pd.testing.assert_series_equal(made[column.name], was[column.name])
                continue
            for row, expected in zip(made[column.name], was[column.name], strict=True):
                assert isinstance(row, list)
                np.testing.assert_array_equal(row, expected)
        nulls = (made["text"][1], made["maybe"][1])
        assert nulls == (None, None)

    def test_no_rows(self) -> None:
        tensors = {column.name: np.empty((0, column.width), column.numpy_dtype) for column in self.COLUMNS}
        made = frame(tensors, self.COLUMNS)
        assert (len(made), list(made)) == (0, [column.name for column in self.COLUMNS])


LISTS = {"ids": ListInput(5, pad=-1), "tags": ListInput(4)}


def everything() -> Any:
    """Nodes that only NVTabular itself can serve, over every kind of column."""
    prefix = ["word"] >> ops.LambdaOp(lambda c: c.str.slice(0, 2)) >> ops.Categorify() >> ops.Rename(postfix="_code")
    shouted = ["word"] >> Shout() >> ops.Rename(postfix="_loud")
    encoded = ["word"] >> ops.TargetEncoding(["y"], kfold=4, p_smooth=3)
    numbers = (["x", "n"] >> ops.FillMissing() >> ops.Normalize()) + (["flag"] >> Same())
    return prefix + shouted + encoded + numbers + (["tags"] >> ops.Categorify()) + ["ids", "y"]


FEATURES = ["word_code", "TE_word_y", "x", "n", "flag"]


def forest(width: int, names: list[str] | None = None) -> xgboost.Booster:
    draw = np.random.default_rng(width)
    data = xgboost.DMatrix(draw.normal(size=(200, width)), draw.integers(0, 2, 200), feature_names=names)
    return xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, data, 4)


@pytest.fixture(scope="module")
def saved(rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved workflow; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fitted"))
        fit(everything(), rows).save(str(folder / "workflow"))
    return folder / "workflow"


@pytest.fixture(scope="module")
def golden(rows: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(rows.drop(columns="y"), preserve_index=False)


def stack_of(workflow: Any, **more: Any) -> Stack:
    plain = fit(["n"] >> ops.Clip(min_value=0) >> ops.Rename(postfix="_cut"), raw_rows())
    steps = {
        "features": WorkflowStep(workflow),
        "plain": WorkflowStep(plain),
        "trees": ForestStep(forest(len(FEATURES), FEATURES), ("features",)),
        "more": ForestStep(forest(4), ("trees", "features.n", "plain.n_cut", "x")),
    }
    outputs = {"score": "more.score", "loud": "features.word_loud", "code": "features.word_code"}
    return Stack("s", steps, outputs, (), LISTS, **more)


@pytest.fixture(scope="module")
def lowered(saved: Path, golden: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> LoweredStack:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fitted"))
        return lower(stack_of(saved), golden_columns(golden), rows=golden.to_pandas(), trust=True)


@pytest.fixture(scope="module")
def placement(lowered: LoweredStack) -> Placement:
    placed = place(lowered, 50)
    inputs = tuple(
        dataclasses.replace(column, nullable=column.length is None and column.dtype in ("string", "float64"))
        for column in placed.signature.inputs
    )
    return dataclasses.replace(placed, signature=dataclasses.replace(placed.signature, inputs=inputs))


def tensors(placement: Placement, golden: pa.Table) -> dict[str, Any]:
    return dict(encode(golden, placement.signature, unknown="ignore"))


def file_of(placement: Placement) -> WorkflowFile:
    (file,) = (model.graph for model in placement.models if isinstance(model.graph, WorkflowFile))
    return file


class TestPlacement:
    def test_columns(self, lowered: LoweredStack) -> None:
        columns = {column.name: column for column in lowered.steps[0].columns}
        assert {name: column.dtype for name, column in columns.items()} == {
            "word_code": "int64",
            "word_loud": "string",
            "TE_word_y": "float32",
            "x": "float64",
            "n": "float64",
            "flag": "bool",
            "tags": "int64",
            "ids": "int64",
            "y": "float32",
        }
        assert (columns["tags"].length, columns["tags"].pad) == (4, 0)
        assert (columns["ids"].length, columns["ids"].pad) == (5, -1)

    def test_what_nobody_reads_is_not_asked_for(self, placement: Placement) -> None:
        assert {column.name for column in placement.signature.inputs} == {"word", "x", "n", "flag"}

    def test_a_model_of_its_own_in_both_layouts(self, placement: Placement) -> None:
        assert [model.name for model in placement.models] == ["s_features", "s_plain", "s_trees", "s_more"]
        fused = fuse(placement)
        assert fused.signature == placement.signature
        kept, one = fused.models
        assert kept is placement.models[0]
        assert (one.name, one.steps) == ("s_fused", ("plain", "trees", "more"))
        assert {tensor.name for tensor in one.inputs} == {"n", "x", "features__float32"}
        assert [tensor.name for tensor in one.outputs] == ["score"]
        assert {tensor.name for tensor in kept.outputs} == {"features__float32", "loud", "code"}

    def test_it_answers_what_nvtabular_answers(
        self, lowered: LoweredStack, placement: Placement, golden: pa.Table
    ) -> None:
        inputs, rows = tensors(placement, golden), golden.to_pandas()
        answers = reference_answers(lowered, rows)
        parity = check_parity(lowered, placement, inputs, answers, rows, 1e-6)
        assert parity.differences["features"] == 0
        one, other = run_placement(placement, inputs), run_placement(fuse(placement), inputs)
        for name in ("score", "loud", "code"):
            np.testing.assert_array_equal(one[name], other[name])
        loud = golden["word"].to_pandas().str.upper()
        assert [None if text == "\x01" else text for text in one["loud"][:, 0]] == loud.tolist()

    def test_a_stack_of_nothing_else(self, saved: Path, golden: pa.Table) -> None:
        stack = Stack("s", {"f": WorkflowStep(saved)}, {"code": "f.word_code"}, (), LISTS)
        placed = place(lower(stack, golden_columns(golden), rows=golden.to_pandas(), trust=True), 8)
        assert fuse(placed) == placed
        assert [column.name for column in placed.signature.inputs] == ["word"]

    def test_without_golden_rows(self, lowered: LoweredStack, placement: Placement, golden: pa.Table) -> None:
        again = lower(lowered.stack, {"x": Column("x", "float64", nullable=True)}, trust=True)
        assert again.steps[0].columns == lowered.steps[0].columns
        inputs = tensors(placement, golden)
        for name, values in run_placement(place(again, 50), inputs).items():
            np.testing.assert_array_equal(values, run_placement(placement, inputs)[name])

    def test_target_encoding_within_a_graph(self, rows: pd.DataFrame, golden: pa.Table, tmp_path: Path) -> None:
        from merlin.dag.ops.subgraph import Subgraph

        encoded = Subgraph("encoded", ["word"] >> ops.TargetEncoding(["y"], kfold=4))
        coded = Subgraph("coded", ["ids"] >> ops.Categorify())
        fit(encoded + coded + (["x"] >> Same()), rows).save(str(tmp_path / "workflow"))
        outputs = {"te": "f.TE_word_y", "m": "f.x"}
        stack = Stack("s", {"f": WorkflowStep(tmp_path / "workflow")}, outputs, (), LISTS)
        made = lower(stack, golden_columns(golden), rows=golden.to_pandas(), trust=True)
        assert made.steps[0].columns[1] == Column("ids", "int64", 5, 0)
        placed = place(made, 64)
        assert {column.name for column in placed.signature.inputs} == {"word", "x"}
        words = rows["word"].dropna()
        inputs = {"word": words.to_numpy(object)[:, None], "x": np.zeros((len(words), 1))}
        by_word = rows.groupby("word")["y"].agg(["sum", "count"]).loc[words]
        expected = (by_word["sum"] + 20 * rows["y"].mean()) / (by_word["count"] + 20)
        np.testing.assert_allclose(run_placement(placed, inputs)["te"][:, 0], expected, rtol=1e-6)


class TestInterpreter:
    @pytest.fixture
    def interpreter(self, placement: Placement) -> Interpreter:
        return Interpreter.open(file_of(placement))

    def test_nulls_alone_and_no_rows(self, interpreter: Interpreter, placement: Placement) -> None:
        # NVTabular's Categorify fails on a batch of nulls: it looks at the first value that is none
        row = {"word": [["\x01"]], "x": [[np.nan]], "n": [[3]], "flag": [[True]]}
        inputs = {t.name: np.array(row[t.name], t.dtype) for t in interpreter.inputs}
        answer = interpreter.run(inputs)
        assert answer["code"].tolist() == [[1]]
        assert answer["loud"].tolist() == [["\x01"]]
        empty = interpreter.run({name: array[:0] for name, array in inputs.items()})
        for tensor in interpreter.outputs:
            assert empty[tensor.name].shape == (0, tensor.width)
            assert empty[tensor.name].dtype == tensor.dtype

    def test_one_bad_request_among_good_ones(
        self, interpreter: Interpreter, placement: Placement, golden: pa.Table
    ) -> None:
        inputs = tensors(placement, golden)
        parts = [{name: array[at : at + 3] for name, array in inputs.items()} for at in (0, 3, 6)]
        parts[1] = {**parts[1], "word": np.array([["ok"], ["why?"], ["ok"]], object)}
        answers = evaluate(interpreter, parts)
        assert isinstance(answers[1], GraphError)
        assert str(answers[1]) == "NVTabular's transform fails: a question mark"
        for part, answer in zip(parts[::2], answers[::2], strict=True):
            assert not isinstance(answer, GraphError)
            for name, values in interpreter.run(part).items():
                np.testing.assert_array_equal(answer[name], values)

    def test_arrays_that_do_not_fit(self, interpreter: Interpreter, placement: Placement, golden: pa.Table) -> None:
        inputs = {name: array[:2] for name, array in tensors(placement, golden).items()}
        with pytest.raises(GraphError, match="input word is missing"):
            interpreter.run({name: array for name, array in inputs.items() if name != "word"})
        with pytest.raises(GraphError, match="input n must be int64, not float32"):
            interpreter.run(inputs | {"n": inputs["n"].astype(np.float32)})
        with pytest.raises(GraphError, match=r"input n must be of shape \[rows, 1\], not \[2, 2\]"):
            interpreter.run(inputs | {"n": np.zeros((2, 2), np.int64)})

    @pytest.mark.parametrize(
        ("function", "value", "words"),
        [
            (lambda c: c.where(c != 7, np.nan), 7, r"column n is not what it was at export, int64: it makes nan"),
            (lambda c: c.where(c != 7, 7.5), 7, r"column n is not .* it makes 7\.5"),
            (lambda c: c.astype(object).where(c != 7, "x"), 7, r"column n is not .* it makes 'x'"),
            (lambda c: c[c != 7], 7, "leaves rows out or adds some"),
            (lambda c: c.astype(str).where(c != 7, None), 7, None),  # a null text is one
            (lambda c: c.astype(str).astype(object).where(c != 7, 7), 7, r"column n is not .*, string: it makes 7"),
        ],
    )
    def test_answers_that_change_their_kind(self, function: Any, value: int, words: str | None, tmp_path: Path) -> None:
        golden = pd.DataFrame({"n": np.array([1, 2, 3], np.int64)})
        fit(["n"] >> Made(function), golden).save(str(tmp_path / "workflow"))
        stack = Stack("s", {"f": WorkflowStep(tmp_path / "workflow")}, {"m": "f.n"})
        placed = place(lower(stack, golden_columns(pa.Table.from_pandas(golden)), rows=golden, trust=True), 8)
        interpreter = Interpreter.open(file_of(placed))
        good = {"n": np.array([[5], [6]])}
        assert interpreter.run(good)["m"].shape == (2, 1)
        bad = {"n": np.array([[5], [value]])}
        if words is None:
            assert interpreter.run(bad)["m"].tolist() == [["5"], ["\x01"]]
            return
        with pytest.raises(GraphError, match=words):
            interpreter.run(bad)

    def test_whole_numbers_read_as_floats_may_be_null(self, tmp_path: Path) -> None:
        golden = pd.DataFrame({"n": np.array([1, 2, 3], np.int64)})
        fit(["n"] >> Made(lambda c: c.where(c != 7, np.nan)), golden).save(str(tmp_path / "workflow"))
        steps = {"f": WorkflowStep(tmp_path / "workflow"), "t": ForestStep(forest(1), "f.n")}
        placed = place(
            lower(
                Stack("s", steps, {"m": "t.score"}),
                golden_columns(pa.Table.from_pandas(golden)),
                rows=golden,
                trust=True,
            ),
            8,
        )
        made = Interpreter.open(file_of(placed)).run({"n": np.array([[5], [7]])})["f__float32"]
        np.testing.assert_array_equal(made, np.array([[5], [np.nan]], np.float32))

    def test_longer_lists_than_declared(self, tmp_path: Path) -> None:
        golden = pd.DataFrame({"ids": [[1, 2], [3], []]})
        nodes = ["ids"] >> Made(lambda c: c.map(lambda row: [*row, *row]))
        fit(nodes, golden).save(str(tmp_path / "workflow"))
        stack = Stack("s", {"f": WorkflowStep(tmp_path / "workflow")}, {"m": "f.ids"}, (), {"ids": ListInput(3)})
        with pytest.raises(
            StackError, match="reads f.ids, which holds lists of 4 elements, and inputs declares at most 3"
        ):
            lower(stack, golden_columns(pa.Table.from_pandas(golden)), rows=golden, trust=True)


class TestFile:
    def test_round_trip(self, placement: Placement, tmp_path: Path) -> None:
        file = file_of(placement)
        (tmp_path / "workflow.json").write_text(file.to_json())
        assert WorkflowFile.read(tmp_path / "workflow.json") == file
        (tmp_path / "workflow.json").write_text("{}")
        with pytest.raises(RepositoryError, match=r"workflow\.json cannot be read .*export the stack again"):
            WorkflowFile.read(tmp_path / "workflow.json")

    def test_the_folder_must_be_what_it_was(self, placement: Placement, saved: Path, tmp_path: Path) -> None:
        import shutil

        mine = shutil.copytree(saved, tmp_path / "mine")
        file = dataclasses.replace(file_of(placement), folder=str(mine))
        check_folder(file)
        (mine / "notes.txt").write_text("mine")  # nothing that serving reads
        check_folder(file)
        table = next((mine / "categories").glob("unique.word*.parquet"))
        before = table.read_bytes()
        table.write_bytes(before[:-1] + b"?")
        with pytest.raises(
            ArtifactError, match=rf"mine is not .*changed since export: categories/{table.name}.*put it"
        ):
            check_folder(file)
        with pytest.raises(GraphError, match="changed since export"):
            Interpreter.open(file)
        table.unlink()
        with pytest.raises(ArtifactError, match=rf"missing: categories/{table.name}"):
            check_folder(file)
        table.write_bytes(before)
        other = dataclasses.replace(file, versions={**file.versions, "python": "3.9"})
        with pytest.raises(
            ArtifactError, match=r"was exported with python 3\.9, and here is 3\.\d+; serve it with the"
        ):
            check_folder(other)
        shutil.rmtree(mine)
        with pytest.raises(ArtifactError, match="mine is gone; put it back"):
            check_folder(file)

    def test_read_only_with_the_users_word(
        self, placement: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "workflow.json").write_text(file_of(placement).to_json())
        for said in (None, "0", ""):
            if said is None:
                monkeypatch.delenv(TRUST, raising=False)
            else:
                monkeypatch.setenv(TRUST, said)
            with pytest.raises(GraphError, match=r"workflow\.json names a saved workflow, a pickle.*--trust"):
                open_folder(tmp_path)
        monkeypatch.setenv(TRUST, "1")
        assert isinstance(open_folder(tmp_path), Interpreter)
        (tmp_path / "workflow.json").write_text("[]")
        with pytest.raises(GraphError, match="cannot be read"):
            open_folder(tmp_path)

    def test_a_module_that_is_not_there(self, placement: Placement, saved: Path, tmp_path: Path) -> None:
        import shutil

        mine = shutil.copytree(saved, tmp_path / "mine")
        (mine / "workflow.pkl").write_bytes(b"cno_such_module\nThing\n.")
        file = dataclasses.replace(file_of(placement), folder=str(mine), files={})
        with pytest.raises(GraphError, match=r"NVTabular cannot load .*no_such_module.*set PYTHONPATH"):
            Interpreter.open(file)


class TestExport:
    @pytest.fixture
    def whole(self, saved: Path, golden: pa.Table, tmp_path: Path) -> Stack:
        pq.write_table(golden, tmp_path / "golden.parquet")
        return stack_of(saved, golden=tmp_path / "golden.parquet")

    def test_what_is_said(self, whole: Stack, saved: Path, tmp_path: Path) -> None:
        made = export(whole, tmp_path / "repository", trust=True)
        (fallback,) = made.fallbacks
        assert fallback.step == "features"
        assert fallback.milliseconds > 0
        assert "operator Shout has no lowering" in fallback.reason
        assert "LambdaOp on word" in fallback.reason
        note = made.manifest.notes[-1]
        assert note.startswith("features is served by NVTabular itself")
        assert fallback.reason in note
        model = tmp_path / "repository" / "s_features" / "1"
        assert sorted(path.name for path in model.iterdir()) == ["model.py", "workflow.json"]
        assert json.loads((model / "workflow.json").read_text())["folder"] == str(saved)

    def test_the_same_bytes_every_time(self, whole: Stack, tmp_path: Path) -> None:
        for layout in ("ensemble", "fused"):
            folders = [tmp_path / layout / name for name in ("one", "two")]
            for folder in folders:
                write(prepare(whole, trust=True), folder, layout=layout)
            one, two = (
                {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
                for folder in folders
            )
            assert one == two
            assert read_manifest(folders[0]).models["features"] == "s_features"

    def test_a_compiled_stack_has_none(self, golden: pa.Table, tmp_path: Path) -> None:
        steps = {"plain": WorkflowStep(fit(["n"] >> ops.FillMissing(), raw_rows()))}
        made = export(Stack("s", steps, {"m": "plain.n"}), tmp_path / "repository")
        assert made.fallbacks == ()

    def test_without_golden_rows(self, whole: Stack, tmp_path: Path) -> None:
        made = export(dataclasses.replace(whole, golden=None), tmp_path / "repository", trust=True)
        assert made.fallbacks[0].milliseconds > 0
        assert "no golden rows" in made.manifest.notes[0]

    def test_a_workflow_in_memory(self, rows: pd.DataFrame, golden: pa.Table) -> None:
        workflow = fit(["word"] >> Shout(), rows)
        words = r"step f: operator Shout has no lowering, so .*workflow\.save\(folder\), and give the stack the folder"
        with pytest.raises(ArtifactError, match=words):
            lower(Stack("s", {"f": WorkflowStep(workflow)}, {"m": "f.word"}), golden_columns(golden))

    @pytest.mark.parametrize(
        "function",
        [
            lambda c: c - c.mean(),
            lambda c: c.rank(),
            lambda c: c - c.shift(1).fillna(0),
            lambda c: c + (c > 900).any(),
            lambda c: c + np.arange(len(c)),
        ],
    )
    def test_rows_that_change_each_others_answers(self, function: Any, golden: pa.Table, tmp_path: Path) -> None:
        pq.write_table(golden, tmp_path / "golden.parquet")
        fit(["n"] >> Made(function), golden.to_pandas()).save(str(tmp_path / "workflow"))
        stack = Stack("s", {"f": WorkflowStep(tmp_path / "workflow")}, {"m": "f.n"}, golden=tmp_path / "golden.parquet")
        with pytest.raises(ParityError, match=r"step f: .*alone.*operator mixes rows.*operator Made|differs from its"):
            export(stack, tmp_path / "repository", trust=True)
        assert not (tmp_path / "repository").exists()

    def test_rows_left_out(self, golden: pa.Table, tmp_path: Path) -> None:
        pq.write_table(golden, tmp_path / "golden.parquet")
        fit(["n"] >> Made(lambda c: c[c > 0]), golden.to_pandas()).save(str(tmp_path / "workflow"))
        stack = Stack("s", {"f": WorkflowStep(tmp_path / "workflow")}, {"m": "f.n"}, golden=tmp_path / "golden.parquet")
        with pytest.raises(
            ArtifactError, match=r"step f: operator Made .*NVTabular's transform fails on the golden rows"
        ):
            export(stack, tmp_path / "repository", trust=True)

    def test_columns_that_cannot_be_served(self, rows: pd.DataFrame, golden: pa.Table, tmp_path: Path) -> None:
        later = ["n"] >> Made(lambda c: pd.to_datetime(c, unit="s")) >> ops.Rename(postfix="_when")
        lists = ["word"] >> Made(lambda c: c.fillna("").map(list)) >> ops.Rename(postfix="_letters")
        fit(later + lists + ["x"], rows).save(str(tmp_path / "workflow"))

        def read(column: str) -> Any:
            stack = Stack("s", {"f": WorkflowStep(tmp_path / "workflow")}, {"m": f"f.{column}"})
            return lower(stack, golden_columns(golden), rows=golden.to_pandas(), trust=True)

        assert [column.name for column in read("x").steps[0].columns] == ["x"]
        with pytest.raises(
            StackError, match=r"output m reads f\.n_when, which is datetime64\[ns\], which is not served"
        ):
            read("n_when")
        with pytest.raises(StackError, match=r"reads f\.word_letters, which holds lists.*ListSlice"):
            read("word_letters")

    def test_a_row_of_zeros_that_fails(self, rows: pd.DataFrame, tmp_path: Path) -> None:
        def picky(column: pd.Series) -> pd.Series:
            if (column == "").all():
                raise ValueError("no text")
            return column

        fit(["word"] >> Made(picky), rows.fillna({"word": "x"})).save(str(tmp_path / "workflow"))
        stack = Stack("s", {"f": WorkflowStep(tmp_path / "workflow")}, {"m": "f.word"})
        with pytest.raises(ArtifactError, match=r"fails on a row of zeros.*give the stack golden rows \(no text\)"):
            lower(stack, {}, trust=True)

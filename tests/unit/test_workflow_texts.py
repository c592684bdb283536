"""Texts taken apart in a compiled workflow, against Python's own `str.split` and int."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest

from tristage.errors import ArtifactError
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow import Value, lowers, split_text
from tristage.serving.graph import Graph, GraphError
from tristage.serving.runner import evaluate
from tristage.stack import ListInput

nvt = pytest.importorskip("nvtabular")
ops = nvt.ops

sys.path.append(str(Path(__file__).parent))
from test_workflow_compiler import _own_folder, fit, serve  # noqa: E402, F401
from test_workflow_more import agree_on_lists  # noqa: E402


class SplitAt(ops.Operator):
    """Text to lists, row by row as Python does it."""

    def __init__(self, separator: str, max_length: int, dtype: str = "string") -> None:
        super().__init__()
        self.separator, self.max_length, self.dtype = separator, max_length, dtype

    def transform(self, col_selector: Any, df: Any) -> Any:
        kind = int if self.dtype == "int64" else str
        made = type(df)()
        for name in col_selector.names:
            texts = df[name].fillna("")
            made[name] = [[kind(v) for v in t.split(self.separator)][: self.max_length] if t else [] for t in texts]
        return made

    def _compute_dtype(self, col_schema: Any, input_schema: Any) -> Any:
        return col_schema.with_dtype(self.dtype)

    def _compute_shape(self, col_schema: Any, input_schema: Any) -> Any:
        return col_schema.with_shape((None, (0, self.max_length)))


@lowers(SplitAt)
def _split_at(node: Any, graph: GraphBuilder) -> dict[str, Value]:
    op = node.op
    return {
        name: split_text(graph, node.columns[name], op.separator, op.max_length, what=name, dtype=op.dtype)
        for name in node.names
    }


class TestSplitText:
    @pytest.mark.parametrize("length", [1, 2, 3, 50])
    @pytest.mark.parametrize("separator", ["\t", ",", " ", "|", ".", "\\", "^$", "||", "é", "漢字"])
    def test_separators(self, separator: str, length: int) -> None:
        pieces = [["a", "b"], ["", ""], ["a", "", "b"], ["ü漢", "é"], ["a"], [" ", "\n"], ["a", "b", "c", "", "d"]]
        texts = [separator.join(row) for row in pieces] + [separator * 5, "", None, "\\x", "|é,. ^$", separator]
        frame = pd.DataFrame({"text": texts})
        agree_on_lists(fit(["text"] >> SplitAt(separator, length), frame), frame, {})

    @pytest.mark.parametrize("separator", ["\t", " ", "|", ".", "^$", "漢字"])
    def test_whole_numbers(self, separator: str) -> None:
        rows = [["1", "-2", "03"], ["9" * 18, "-" + "9" * 18], ["0"], ["-0", "007", "5", "6", "7"]]
        frame = pd.DataFrame({"text": [*map(separator.join, rows), "", None]})
        agree_on_lists(fit(["text"] >> SplitAt(separator, 3, "int64"), frame), frame, {})

    @pytest.mark.parametrize("dtype", ["string", "int64"])
    @pytest.mark.parametrize("texts", [[""], [None], ["", None, ""]], ids=str)
    def test_nothing_in_the_whole_batch(self, texts: list[str | None], dtype: str) -> None:
        served = serve(fit(["text"] >> SplitAt(",", 3, dtype), pd.DataFrame({"text": ["1,2"]})))
        answers = served(pd.DataFrame({"text": texts}))["text"]
        assert answers.tolist() == [["" if dtype == "string" else 0] * 3] * len(texts)

    def test_then_other_operators(self) -> None:
        frame = pd.DataFrame({"text": ["b,a", "", "c,,a,b", None, "a"]})
        new = pd.DataFrame({"text": [None, "zz,a", "", "b,,,a", "a,b,c,d,e"]})
        split = ["text"] >> SplitAt(",", 4)
        agree_on_lists(fit(split >> ops.Categorify(), frame), new, {})
        agree_on_lists(fit(split >> ops.ListSlice(-2) >> ops.Categorify(), frame), new, {})
        numbers = ["n"] >> SplitAt(",", 4, "int64")
        frame = pd.DataFrame({"n": ["1,2", "-3", "", "8,8,8,8,8", None]})
        agree_on_lists(fit(numbers >> ops.ListSlice(1, 3), frame), frame, {})
        agree_on_lists(fit(numbers >> ops.Normalize(), frame), frame, {})

    def test_a_long_text_does_not_widen_its_batch(self) -> None:
        served = serve(fit(["text"] >> SplitAt(",", 2, "int64"), pd.DataFrame({"text": ["1,2"]})))
        model = served.compiled.graph.model([("out", served.compiled.values["text"].tensor, "int64", 2)])
        (split,) = [node for node in model.graph.node if node.op_type == "StringSplit"]
        assert onnx.helper.get_node_attr_value(split, "maxsplit") == 2
        answers = served(pd.DataFrame({"text": ["7," * 300_000 + "7", *["5"] * 500]}))["text"]
        assert answers[:2].tolist() == [[7, 7], [5, 0]]

    @pytest.mark.parametrize(("values", "holds"), [([1, 2], "int64"), ([["a"], ["b"]], "lists of string")], ids=str)
    def test_refused_columns(self, values: list[Any], holds: str) -> None:
        workflow = nvt.Workflow(["text"] >> SplitAt(",", 2))
        workflow.fit_schema(nvt.Dataset(pd.DataFrame({"text": values})).schema)
        with pytest.raises(ArtifactError, match=f"text is split as text, and holds {holds}"):
            serve(workflow, {"text": ListInput(3)} if isinstance(values[0], list) else {})


class TestNoNumber:
    FAULT = "text must hold whole numbers of at most 18 digits, separated by ','"
    NO_NUMBERS = ("x", "1,x", "1,2,3,x", "1,", ",1", "1,,2", ",", " 1", "1 ", "1\n", "1.0", "1e3", "0x1", "+1", "1_0")
    MORE = ("--1", "-", "nan", "9" * 19, "9223372036854775808", "１", "١", "12abc", "1;2", "1\x002")

    @pytest.fixture
    def graph(self, tmp_path: Path) -> Graph:
        served = serve(fit(["text"] >> SplitAt(",", 2, "int64"), pd.DataFrame({"text": ["1,2"]})))
        model = served.compiled.graph.model([("out", served.compiled.values["text"].tensor, "int64", 2)])
        fused = GraphBuilder()
        (made,) = fused.embed(model, {"text": fused.input("text", "string", 1)})
        onnx.save(fused.model([("out", made, "int64", 2)]), tmp_path / "graph.onnx")
        return Graph.open(tmp_path / "graph.onnx")

    @pytest.mark.parametrize("text", [*NO_NUMBERS, *MORE])
    def test_is_an_error_of_its_request_alone(self, graph: Graph, text: str) -> None:
        requests = [[["1,2"], ["3"]], [["4"], [text]], [["5,6,7"]]]
        answers = evaluate(graph, [{"text": np.array(rows, object)} for rows in requests])
        assert answers[0]["out"].tolist() == [[1, 2], [3, 0]]  # type: ignore[index,union-attr]
        assert answers[2]["out"].tolist() == [[5, 6]]  # type: ignore[index,union-attr]
        assert isinstance(answers[1], GraphError)
        assert self.FAULT in str(answers[1])

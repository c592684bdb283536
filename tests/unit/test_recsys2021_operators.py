"""The RecSys 2021 example's own operators: what they answer in training, and that their lowerings answer the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tristage.errors import ArtifactError

nvt = pytest.importorskip("nvtabular")
ops = nvt.ops

from examples.recsys2021.operators import SplitTabs, TokenCounts  # noqa: E402

sys.path.append(str(Path(__file__).parent))
from test_workflow_compiler import _own_folder, agree, fit, serve  # noqa: E402, F401
from test_workflow_more import agree_on_lists  # noqa: E402

AT = 137
FIT = pd.DataFrame({"tokens": ["137\t5", "", None, "7"], "tags": ["a\tb", None, "", "a\tc"]})
numbers = st.integers(-(10**18) + 1, 10**18 - 1).map(str)
pieces = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\t\x01"), max_size=4)


def whole() -> Any:
    return ["tokens"] >> SplitTabs(4, "int64")


class TestSplitTabs:
    TEXTS = (None, "", "1", "1\t2\t3", "1\t2\t3\t4\t5\t6", "-7\t0", "007\t-0", "9" * 18, None)

    @pytest.mark.parametrize("length", [1, 3, 48])
    def test_whole_numbers(self, length: int) -> None:
        frame = pd.DataFrame({"tokens": self.TEXTS})
        workflow = fit(["tokens"] >> SplitTabs(length, "int64"), FIT[["tokens"]])
        expected = [[int(piece) for piece in (text or "").split("\t") if piece][:length] for text in self.TEXTS]
        made = workflow.transform(frame.copy())["tokens"]
        assert [row.tolist() for row in made] == expected
        assert {row.dtype.name for row in made} == {"int64"}
        agree_on_lists(workflow, frame, {})

    @pytest.mark.parametrize("length", [1, 3, 48])
    def test_texts(self, length: int) -> None:
        texts = [None, "", "a", "\t", "a\t\tb", "\ta", "a\t", " a \t b ", "é漢\tnaïve", "a\tb\tc\td\te", "x,y\n\tz"]
        frame = pd.DataFrame({"tags": texts})
        workflow = fit(["tags"] >> SplitTabs(length), FIT[["tags"]])
        expected = [text.split("\t")[:length] if text else [] for text in texts]
        assert [list(row) for row in workflow.transform(frame.copy())["tags"]] == expected
        agree_on_lists(workflow, frame, {})

    def test_what_the_workflow_says_of_it(self) -> None:
        workflow = fit(whole() + (["tags"] >> SplitTabs(3)), FIT)
        for name, length in (("tokens", 4), ("tags", 3)):
            schema = workflow.output_schema[name]
            assert schema.is_list
            assert schema.is_ragged
            assert schema.shape.dims[1].max == length
        assert workflow.output_schema["tokens"].dtype.to_numpy == np.dtype("int64")

    def test_keeps_the_frame_s_rows(self) -> None:
        frame = FIT.set_index(pd.Index([5, 3, 3, 1]))
        made = SplitTabs(2).transform(nvt.ColumnSelector(["tags"]), frame)
        assert made.index.tolist() == [5, 3, 3, 1]
        assert [list(row) for row in made["tags"]] == [["a", "b"], [], [], ["a", "c"]]
        empty = SplitTabs(2, "int64").transform(nvt.ColumnSelector(["tokens"]), FIT.iloc[:0])
        assert empty["tokens"].tolist() == []

    def test_then_categorify(self) -> None:
        new = pd.DataFrame({"tags": ["", "zz\tb", None, "c\t\ta", "a\tb\tc\td"]})
        agree_on_lists(fit(["tags"] >> SplitTabs(3) >> ops.Categorify(), FIT[["tags"]]), new, {})

    @given(
        rows=st.lists(st.one_of(st.none(), st.lists(numbers, max_size=7).map("\t".join)), min_size=1, max_size=9),
        length=st.integers(1, 6),
    )
    @settings(max_examples=40, deadline=None, derandomize=True)
    def test_any_whole_numbers(self, rows: list[str | None], length: int) -> None:
        workflow = fit(["tokens"] >> SplitTabs(length, "int64"), FIT[["tokens"]])
        agree_on_lists(workflow, pd.DataFrame({"tokens": rows}, dtype=object), {})

    @given(
        rows=st.lists(st.one_of(st.none(), st.lists(pieces, max_size=7).map("\t".join)), min_size=1, max_size=9),
        length=st.integers(1, 6),
    )
    @settings(max_examples=40, deadline=None, derandomize=True)
    def test_any_texts(self, rows: list[str | None], length: int) -> None:
        workflow = fit(["tags"] >> SplitTabs(length), FIT[["tags"]])
        agree_on_lists(workflow, pd.DataFrame({"tags": rows}, dtype=object), {})

    @given(st.text("019-\t +.x\n١", max_size=6))
    @settings(max_examples=120, deadline=None, derandomize=True)
    def test_both_sides_refuse_the_same(self, text: str) -> None:
        served = serve(fit(whole(), FIT[["tokens"]]))
        frame = pd.DataFrame({"tokens": ["1", text]})
        try:
            expected = SplitTabs(4, "int64").transform(nvt.ColumnSelector(["tokens"]), frame)["tokens"][1]
        except ValueError:
            with pytest.raises(Exception, match="tokens must hold whole numbers"):
                served(frame)
        else:
            assert served(frame)["tokens"][1].tolist() == [*expected, *[0] * (4 - len(expected))]

    def test_names_the_column_and_the_text_that_is_no_number(self) -> None:
        frame = pd.DataFrame({"tokens": ["1", "2\t3x\t4"]})
        with pytest.raises(ValueError, match=r"tokens holds '2\\t3x\\t4', which are not whole numbers between tabs"):
            SplitTabs(4, "int64").transform(nvt.ColumnSelector(["tokens"]), frame)


class TestTokenCounts:
    def counts(self) -> Any:
        tokens = whole()
        return tokens + (tokens >> TokenCounts(AT))

    def test_counts(self) -> None:
        workflow = fit(self.counts(), FIT)
        rows = ["137\t5\t137", "", None, "137\t137\t137\t1\t137\t137", "0\t0", "5", "-137\t137"]
        frame = pd.DataFrame({"tokens": rows})
        made = workflow.transform(frame.copy())
        assert made["tokens_count"].tolist() == [3, 0, 0, 4, 2, 1, 2]
        assert made["tokens_mentions"].tolist() == [2, 0, 0, 3, 0, 0, 1]
        served = agree(workflow, frame)
        assert served.dtypes == dict.fromkeys(("tokens", "tokens_count", "tokens_mentions"), "int64")

    def test_of_lists_without_a_first_element(self) -> None:
        frame = pd.DataFrame({"tokens": [None, "", "137"]})
        agree(fit(["tokens"] >> SplitTabs(2, "int64") >> TokenCounts(AT), FIT), frame, frame.iloc[:1])

    def test_other_operators_read_them(self) -> None:
        scaled = whole() >> TokenCounts(AT) >> ops.LogOp() >> ops.Normalize()
        agree(fit(scaled, FIT), pd.DataFrame({"tokens": ["137\t137", "", "4\t5\t6\t7\t8"]}), rtol=1e-6)

    def test_a_column_of_no_lists(self) -> None:
        workflow = nvt.Workflow(["n"] >> TokenCounts(AT))
        workflow.fit_schema(nvt.Dataset(pd.DataFrame({"n": [1, 2]})).schema)
        with pytest.raises(ArtifactError, match="TokenCounts reads n, which holds no lists"):
            serve(workflow)

    @given(st.lists(st.lists(st.integers(AT - 2, AT + 2).map(str), max_size=6).map("\t".join), min_size=1, max_size=9))
    @settings(max_examples=30, deadline=None, derandomize=True)
    def test_any_counts(self, rows: list[str]) -> None:
        agree(fit(self.counts(), FIT), pd.DataFrame({"tokens": rows}))

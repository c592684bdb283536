"""More operators against NVTabular's own transform: lists, casts, joined tables, subgraphs, and what is refused."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tristage.errors import ArtifactError
from tristage.serving.nvtabular import at_serving_time, transform
from tristage.stack import ListInput

nvt = pytest.importorskip("nvtabular")
ops = nvt.ops
dag = pytest.importorskip("merlin.dag.ops")

sys.path.append(str(Path(__file__).parent))
from test_workflow_compiler import FIT, NEW, Served, _own_folder, agree, compare, fit, serve  # noqa: E402, F401


def agree_on_lists(workflow: Any, frame: pd.DataFrame, lists: dict[str, ListInput], rtol: float = 0) -> Served:
    """As `agree`, where NVTabular cannot answer frames whose first rows are short."""
    served = serve(workflow, lists)
    expected, answers = workflow.transform(frame.copy()), served(frame)
    assert list(answers) == list(expected.columns)
    for column in served.compiled.outputs:
        wanted = np.full((len(frame), column.length), column.pad, column.numpy_dtype)
        for row, values in enumerate(expected[column.name]):
            wanted[row, : len(values)] = values
        assert answers[column.name].dtype == wanted.dtype
        if rtol:
            np.testing.assert_allclose(answers[column.name], wanted, rtol=rtol, atol=0)
        else:
            np.testing.assert_array_equal(answers[column.name], wanted)
    for rows in (0, 1):
        for name, values in served(frame.iloc[:rows]).items():
            np.testing.assert_array_equal(values, answers[name][:rows])
    return served


class TestMetadata:
    LISTS = pd.DataFrame({"ids": [[1, 2, 3], [], [5]], "words": [["a"], ["b", "ç"], []], "x": [1.0, np.nan, 3.0]})

    def test_value_count(self) -> None:
        workflow = fit(["ids", "words", "x"] >> ops.ValueCount(), self.LISTS)
        served = agree(workflow, self.LISTS, lists={"ids": ListInput(4), "words": ListInput(3)})
        assert served.dtypes == {"ids": "int64", "words": "string", "x": "float64"}

    def test_value_count_then_categorify(self) -> None:
        workflow = fit(["words"] >> ops.ValueCount() >> ops.Categorify(), self.LISTS)
        agree_on_lists(workflow, self.LISTS, {"words": ListInput(3)})

    @pytest.mark.parametrize(
        "make",
        [
            lambda: dag.AddMetadata(["one"], {"a": 1}),
            lambda: dag.AddTags(["one"]),
            lambda: dag.AddProperties({"a": 1}),
            lambda: dag.TagAsUserID(),
            lambda: dag.TagAsItemID(),
            lambda: dag.TagAsUserFeatures(),
            lambda: dag.TagAsItemFeatures(),
            lambda: dag.SubsetColumns("some"),
            lambda: dag.GroupingOp(),
            lambda: dag.Rename(postfix="_more"),
            lambda: ops.AddProperties({"a": 1}),
        ],
    )
    def test_merlins_own(self, make: Any) -> None:
        agree(fit(["x64", "n64", "word"] >> make(), FIT), FIT, NEW)

    def test_grouped_columns(self) -> None:
        agree(fit([["u", "v"]] >> dag.TagAsUserID() >> ops.Categorify(), FIT), FIT, NEW)


class TestSingleTable:
    @pytest.mark.parametrize(
        "options",
        [{}, {"max_size": 6}, {"freq_threshold": 2}, {"dtype": np.int32}, {"cat_cache": "disk"}],
        ids=str,
    )
    def test_codes_follow_each_other(self, options: dict[str, Any]) -> None:
        workflow = fit(["word", "id", "u"] >> ops.Categorify(single_table=True, **options), FIT)
        agree(workflow, FIT, NEW)

    def test_nulls_have_the_code_of_the_first_category(self) -> None:
        workflow = fit(["u", "v"] >> ops.Categorify(single_table=True), FIT)
        asked = pd.DataFrame({"u": [None, "a", "zz"], "v": [None, "b", "zz"]})
        answers = agree(workflow, FIT, asked)(asked)
        assert answers["u"].tolist() == [[3], [3], [4]]
        assert answers["v"].tolist() == [[7], [7], [8]]

    def test_joint_and_combo(self) -> None:
        agree(fit([["u", "v"], "word"] >> ops.Categorify(single_table=True), FIT), FIT, NEW)
        combo = ops.Categorify(single_table=True, encode_type="combo")
        agree(fit([["u", "v"], "word"] >> combo, FIT), FIT, NEW)

    def test_lists(self) -> None:
        frame = pd.DataFrame({"ids": [[5, 6], [5], [], [7, 5, 6]], "words": [["a"], ["b"], ["a", "é"], []]})
        new = pd.DataFrame({"ids": [[7, 8], [], [-1]], "words": [["é", "zz"], ["b"], []]})
        workflow = fit(["ids", "words"] >> ops.Categorify(single_table=True), frame)
        agree_on_lists(workflow, new, {"ids": ListInput(3), "words": ListInput(2)})


class TestReduceDtypeSize:
    def test_of_every_type(self) -> None:
        frame = FIT.assign(
            tiny=np.array([1, -2, 3, 100, 0, 6, 7, 8], np.int64),
            byte=np.array([1, 2, 3, 255, 0, 6, 7, 8], np.uint8),
            flag=FIT["n32"] > 2,
        )
        columns = ["tiny", "byte", "flag", "id", "id32", "n32", "n64", "x32", "x64"]
        served = agree(fit(columns >> ops.ReduceDtypeSize(), frame), frame)
        assert served.dtypes == {
            "tiny": "int8",
            "byte": "uint8",
            "flag": "bool",
            "id": "int64",
            "id32": "int32",
            "n32": "int16",
            "n64": "int32",
            "x32": "float32",
            "x64": "float32",
        }

    def test_new_values_that_do_not_fit(self) -> None:
        agree(fit(["n32", "n64", "x64"] >> ops.ReduceDtypeSize(), FIT), NEW)
        wide = pd.DataFrame({"n64": np.array([2**31, -(2**63), 2**63 - 1, -1], np.int64), "x64": [1e300, -1e39, 1, 0]})
        agree(fit(["n64", "x64"] >> ops.ReduceDtypeSize(), FIT), wide)

    def test_float64(self) -> None:
        served = agree(fit(["x32", "x64", "n64"] >> ops.ReduceDtypeSize(np.float64), FIT), FIT, NEW)
        assert served.dtypes == {"x32": "float64", "x64": "float64", "n64": "int32"}

    def test_text_stays(self) -> None:
        frame = FIT.assign(word=FIT["word"].fillna(""))  # NVTabular fails to find the least of texts and nulls
        agree(fit(["word", "n64"] >> ops.ReduceDtypeSize(), frame), frame)

    def test_after_categorify(self) -> None:
        served = agree(fit(["word", "id"] >> ops.Categorify() >> ops.ReduceDtypeSize(), FIT), FIT, NEW)
        assert served.dtypes == {"word": "int8", "id": "int8"}

    def test_half_precision(self) -> None:
        with pytest.raises(ArtifactError, match=r"ReduceDtypeSize makes x64 float16.*float32"):
            serve(fit(["x64"] >> ops.ReduceDtypeSize(np.float16), FIT))

    def test_nullable_integers(self) -> None:
        with pytest.raises(ArtifactError, match=r"ReduceDtypeSize makes n64 int32, which holds no nulls.*FillMissing"):
            serve(fit(["n64"] >> ops.ReduceDtypeSize(), FIT), nullable=("n64",))


class TestSubgraphs:
    def test_at_the_root(self) -> None:
        from merlin.dag.ops.subgraph import Subgraph

        numbers = Subgraph("numbers", ["x64", "n64"] >> ops.FillMissing(0) >> ops.Normalize())
        words = Subgraph("words", ["word"] >> ops.Categorify())
        workflow = fit(numbers + words + ["id"], FIT)
        served = agree(workflow, FIT, NEW)
        assert list(served.dtypes) == list(workflow.output_schema.column_names)
        assert set(workflow.subworkflows) == {"numbers", "words"}
        for name, columns in (("numbers", {"x64", "n64"}), ("words", {"word"})):
            part = agree(workflow.get_subworkflow(name), FIT, NEW)
            assert set(part.dtypes) == columns
            assert {value.name for value in part.session.get_inputs()} == columns

    def test_in_a_chain(self) -> None:
        from merlin.dag.ops.subgraph import Subgraph

        inner = Subgraph("inner", ["x64"] >> ops.Normalize() >> ops.Rename(postfix="_normal"))
        workflow = fit((["x64", "n64"] >> ops.FillMissing(3)) >> inner, FIT)
        served = agree(workflow, FIT, NEW)
        assert list(served.dtypes) == ["x64_normal"]

    def test_within_each_other(self) -> None:
        from merlin.dag.ops.subgraph import Subgraph

        inner = Subgraph("inner", ["x64"] >> ops.FillMissing(1))
        outer = Subgraph("outer", inner + (["word"] >> ops.Categorify()))
        agree(fit(outer + ["n64"], FIT), FIT, NEW)

    def test_repeated(self) -> None:
        from merlin.dag.ops.subgraph import Subgraph

        loop = Subgraph("halves", ["n64"] >> ops.LambdaOp(lambda c: c // 2), loop_until=lambda f: f["n64"].max() < 9)
        with pytest.raises(ArtifactError, match=r"Subgraph halves is repeated until"):
            serve(fit(loop + ["id"], FIT))

    def test_columns_by_tag(self) -> None:
        from merlin.dag import ColumnSelector
        from merlin.schema import Schema, Tags

        dataset = nvt.Dataset(FIT.copy())
        schema = Schema(
            [
                column.with_tags([Tags.CONTINUOUS]) if column.name in ("x32", "n64") else column
                for column in dataset.schema
            ]
        )
        workflow = nvt.Workflow(ColumnSelector(tags=[Tags.CONTINUOUS]) >> ops.FillMissing(0) >> ops.Normalize())
        workflow.fit(nvt.Dataset(FIT.copy(), schema=schema))
        served = agree(workflow, FIT, NEW)
        assert set(served.dtypes) == {"x32", "n64"}

    def test_columns_of_a_node_by_name(self) -> None:
        filled = ["x64", "n64", "x32"] >> ops.FillMissing(0)
        served = agree(fit(filled["x64"] >> ops.Normalize(), FIT), FIT, NEW)
        assert list(served.dtypes) == ["x64"]


_SLICES = [(-2,), (-3, -1), (-4, 2), (-1,), (-10,), (-10, -2), (-3, 10), (-2, 1)]


class TestListSlice:
    LISTS = pd.DataFrame(
        {
            "ids": [[1, 2, 3, 4], [5], [6, 7], [8, 9, 10, 11, 12], []],
            "words": [["a"], ["b", "", "ç漢"], [], ["d", "e", "f", "g", "h"], ["i", "j"]],
            "floats": [[1.5], [], [2.5, -1.0], [3.0, 4.0, 5.0, 6.0, 7.0], [0.0, -0.0, np.inf]],
        }
    )
    LENGTHS = {"ids": ListInput(5), "words": ListInput(6, pad="-"), "floats": ListInput(5)}

    @pytest.mark.parametrize("arguments", _SLICES, ids=str)
    def test_from_the_end(self, arguments: tuple[int, ...]) -> None:
        workflow = fit(list(self.LISTS) >> ops.ListSlice(*arguments), self.LISTS)
        agree_on_lists(workflow, self.LISTS, self.LENGTHS)

    @pytest.mark.parametrize("arguments", [*_SLICES, (2,), (1, 3), (3,), (7,), (2, 9)], ids=str)
    def test_padded(self, arguments: tuple[int, ...]) -> None:
        # NVTabular pads rows that are Python lists
        frame = self.LISTS[["ids", "floats"]]
        workflow = fit(list(frame) >> ops.ListSlice(*arguments, pad=True, pad_value=-7), frame)
        served = agree_on_lists(workflow, frame, {"ids": ListInput(5), "floats": ListInput(5)})
        expected = workflow.transform(frame.copy())
        longest = max(len(values) for values in expected["ids"])
        assert {column.length for column in served.compiled.outputs} == {longest}
        assert served(frame)["ids"].tolist() == expected["ids"].tolist()

    def test_arrays_are_padded_too(self) -> None:
        # NVTabular throws their padding away
        arrays = pd.DataFrame({"ids": [np.array(row, np.int32) for row in self.LISTS["ids"]]})
        workflow = fit(["ids"] >> ops.ListSlice(-2, pad=True), arrays)
        assert workflow.transform(arrays.copy())["ids"].map(len).tolist() == [2, 1, 2, 2, 0]
        answers = serve(workflow, {"ids": ListInput(5)})(arrays)["ids"]
        assert answers.dtype == np.int32
        assert answers.tolist() == [[3, 4], [5, 0], [6, 7], [11, 12], [0, 0]]

    @pytest.mark.parametrize("arguments", [(-2,), (-3, -1), (-4, 2)], ids=str)
    def test_then_categorify(self, arguments: tuple[int, ...]) -> None:
        frame = self.LISTS.iloc[[3, 1, 0, 2, 4]].reset_index(drop=True)
        workflow = fit(["words"] >> ops.ListSlice(*arguments) >> ops.Categorify(), frame)
        agree_on_lists(workflow, frame, {"words": ListInput(6, pad="-")})

    def test_twice(self) -> None:
        workflow = fit(["ids"] >> ops.ListSlice(-4) >> ops.ListSlice(1, 3), self.LISTS)
        agree_on_lists(workflow, self.LISTS, self.LENGTHS)
        workflow = fit(["ids"] >> ops.ListSlice(1, 4) >> ops.ListSlice(-2), self.LISTS)
        agree_on_lists(workflow, self.LISTS, self.LENGTHS)

    def test_an_element_that_equals_the_pad(self) -> None:
        frame = pd.DataFrame({"ids": [[1, 0, 2, 3], [4, 0, 5]]})
        workflow = fit(["ids"] >> ops.ListSlice(-2), frame)
        served = agree(workflow, frame, lists={"ids": ListInput(5)})
        assert served(frame)["ids"].tolist() == [[2, 3], [0, 5]]

    @given(
        rows=st.lists(st.lists(st.integers(1, 2**60), max_size=6), min_size=1, max_size=8),
        start=st.integers(-7, -1),
        stop=st.one_of(st.none(), st.integers(-6, 8)),
    )
    @settings(max_examples=30, deadline=None, derandomize=True)
    def test_any_slice(self, rows: list[list[int]], start: int, stop: int | None) -> None:
        if stop is not None and (stop == 0 or (stop < 0 and stop <= start)):
            return  # no element is left
        frame = pd.DataFrame({"ids": [[9], *rows]})
        workflow = fit(["ids"] >> ops.ListSlice(start, stop), frame)
        agree_on_lists(workflow, frame, {"ids": ListInput(6)})


class TestNumbersInLists:
    LISTS = pd.DataFrame(
        {
            "f64": [[1.5, np.nan, -2.0], [], [1e9, 0.0], [3.25], [np.inf]],
            "f32": [np.array(row, np.float32) for row in ([0.1, 7], [], [np.nan], [3.1, -0.5, 1e6], [0])],
            "i64": [[1, -2, 4_000_000], [5], [], [0, 7], [-1]],
            "i32": [np.array(row, np.int32) for row in ([3], [1, 2, 3], [], [0, -9], [2**31 - 1])],
            "few": [[1.0], [1.0, 1.0], [], [1.0], [1.0]],
        }
    )
    LENGTHS = {
        "f64": ListInput(4),
        "f32": ListInput(3),
        "i64": ListInput(3, pad=-99),
        "i32": ListInput(3, pad=-99),
        "few": ListInput(2),
    }

    @pytest.mark.parametrize("dtype", [None, np.float32])
    @pytest.mark.parametrize("column", list(LENGTHS))
    def test_normalize(self, column: str, dtype: Any) -> None:
        # fitted without what leaves no mean
        fitted = self.LISTS[[column]].iloc[[0, 1, 3] if column == "f64" else [3, 4, 0]].reset_index(drop=True)
        workflow = fit([column] >> ops.Normalize(out_dtype=dtype), fitted)
        frame = self.LISTS[[column]].iloc[[3, 0, 1, 2, 4]].reset_index(drop=True)
        served = agree_on_lists(workflow, frame, {column: self.LENGTHS[column]})
        assert served.dtypes == {column: "float32" if dtype else "float64"}

    def test_normalize_of_several(self) -> None:
        workflow = fit(["f32", "i64", "i32"] >> ops.Normalize(), self.LISTS)
        agree_on_lists(workflow, self.LISTS, self.LENGTHS)

    @pytest.mark.parametrize("column", list(LENGTHS))
    def test_log(self, column: str) -> None:
        frame = self.LISTS[[column]].iloc[[3, 0, 1, 2, 4]].reset_index(drop=True)
        served = agree_on_lists(fit([column] >> ops.LogOp(), frame), frame, {column: self.LENGTHS[column]}, rtol=1.2e-7)
        assert served.dtypes == {column: "float32"}

    @given(
        rows=st.lists(st.lists(st.floats(-(2.0**50), 2.0**50, width=32), max_size=4), min_size=1, max_size=8),
        whole=st.lists(st.integers(-98, 2**31 - 1), min_size=1, max_size=4),
    )
    @settings(max_examples=20, deadline=None, derandomize=True)
    def test_any_number(self, rows: list[list[float]], whole: list[int]) -> None:
        frame = pd.DataFrame({"x": [[0.5], *rows], "n": [whole] * (len(rows) + 1)})
        workflow = fit(["x", "n"] >> ops.Normalize(), frame)
        agree_on_lists(workflow, frame, {"x": ListInput(4), "n": ListInput(4, pad=-99)})

    def test_log_of_whole_numbers_padded_with_0(self) -> None:
        # log(0 + 1) is 0: an element that equals the pad is answered as an element
        agree_on_lists(fit(["i64"] >> ops.LogOp(), self.LISTS), self.LISTS, {"i64": ListInput(3)}, rtol=1.2e-7)

    def test_slice_log_and_normalize(self) -> None:
        nodes = ["f32"] >> ops.ListSlice(-2) >> ops.LogOp() >> ops.Normalize()
        frame = self.LISTS[["f32"]].iloc[[3, 4, 0, 1]].reset_index(drop=True)
        agree_on_lists(fit(nodes, frame.iloc[[1, 2]].reset_index(drop=True)), frame, {"f32": ListInput(3)}, rtol=2e-6)

    def test_normalize_padded_with_0(self) -> None:
        workflow = fit(["i64"] >> ops.Normalize(), self.LISTS)
        with pytest.raises(ArtifactError, match=r"Normalize of i64: the pad 0 .* declare a pad that no list holds"):
            serve(workflow, {"i64": ListInput(3)})

    @pytest.mark.parametrize("binary", [False, True])
    def test_fill_missing_looks_for_null_lists(self, binary: bool) -> None:
        # NVTabular leaves a null within a list as it is
        frame = self.LISTS.assign(words=[["a"], [], ["b", "c"], ["d"], []])
        workflow = fit(["f64", "i64", "words"] >> ops.FillMissing(5, add_binary_cols=binary), frame)
        served = serve(workflow, {**self.LENGTHS, "words": ListInput(2)})
        expected, answers = workflow.transform(frame.copy()), served(frame)
        assert list(answers) == list(expected.columns)
        for column in served.compiled.outputs:
            compare(column, answers[column.name], expected[column.name], 0, True)

    @pytest.mark.parametrize("op", [ops.Clip(min_value=1), ops.Bucketize([1, 2])])
    def test_what_nvtabular_fails_on(self, op: Any) -> None:
        workflow = nvt.Workflow(["few"] >> op)
        workflow.fit_schema(nvt.Dataset(self.LISTS[["few"]].copy()).schema)
        with pytest.raises(TypeError, match="not supported between instances of"):
            workflow.transform(self.LISTS[["few"]].copy())
        named = rf"{type(op).__name__} reads the list column few, which NVTabular 23.8 fails on"
        with pytest.raises(ArtifactError, match=named):
            serve(workflow, {"few": ListInput(2)})

    @pytest.mark.parametrize("op", [ops.FillMedian(), ops.NormalizeMinMax()])
    def test_what_nvtabular_fails_to_fit(self, op: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            fit(["few"] >> op, self.LISTS)

    @pytest.mark.parametrize("op", [ops.LogOp(), ops.Clip(min_value=1)])
    def test_text(self, op: Any) -> None:
        workflow = nvt.Workflow(["word"] >> op)
        workflow.fit_schema(nvt.Dataset(FIT[["word"]].copy()).schema)
        with pytest.raises(ArtifactError, match=rf"{type(op).__name__} reads word, which holds text; .*Categorify"):
            serve(workflow)


def test_many_columns_warn_of_nothing() -> None:
    frame = pd.DataFrame({f"x{at}": np.arange(5, dtype=np.float32) for at in range(120)})
    workflow = fit(list(frame) >> ops.Normalize(), frame)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = transform(at_serving_time(workflow), frame)
    assert list(made) == list(frame)
    assert not [one for one in said if one.category is pd.errors.PerformanceWarning]


def test_data_stats_passes_its_columns_on() -> None:
    agree(fit(["x64", "n64", "word"] >> ops.DataStats(), FIT), FIT, NEW)


class TestRefusals:
    """Operators that drop or mix rows are refused by name, with what to do instead."""

    def test_drop_low_cardinality(self) -> None:
        nodes = ["word", "id"] >> ops.Categorify() >> ops.DropLowCardinality(min_cardinality=2)
        with pytest.raises(ArtifactError, match=r"DropLowCardinality chooses columns.*; select the columns"):
            serve(fit(nodes, FIT))

    def test_dropna(self) -> None:
        with pytest.raises(ArtifactError, match=r"Dropna leaves rows out.*; drop them from the training rows"):
            serve(fit(["word", "id"] >> ops.Dropna(), FIT))

    def test_filter(self) -> None:
        nodes = ["id"] >> ops.Filter(lambda frame: frame[frame["id"] > 0])
        with pytest.raises(ArtifactError, match=r"Filter leaves rows out.*; filter the training rows"):
            serve(fit(nodes, FIT))

    def test_groupby(self) -> None:
        nodes = ["id", "x64"] >> ops.Groupby(groupby_cols=["id"], aggs={"x64": ["mean"]})
        with pytest.raises(ArtifactError, match=r"Groupby makes one row of many; group the rows before"):
            serve(fit(nodes, FIT))

    def test_difference_lag(self) -> None:
        nodes = ["n64"] >> ops.DifferenceLag(partition_cols=["id"], shift=1)
        with pytest.raises(ArtifactError, match=r"DifferenceLag subtracts another row.*; send the earlier value"):
            serve(fit(nodes, FIT))

    def test_column_similarity(self) -> None:
        from scipy.sparse import eye

        nodes = [["n32", "w"]] >> ops.ColumnSimilarity(eye(500, format="coo"), on_device=False)
        frame = FIT[["n32", "w"]].abs()
        with pytest.raises(ArtifactError, match=r"ColumnSimilarity reads beyond .*; compute the similarity before"):
            serve(fit(nodes, frame))


class TestJoinExternal:
    TABLE = pd.DataFrame(
        {
            "id": np.array([5, -3, 0, 2**62 - 1], np.int64),
            "whole": np.array([1, -2, 2**53, 4], np.int64),
            "tiny": np.array([1, -2, 3, 4], np.int8),
            "byte": np.array([1, 2, 255, 4], np.uint8),
            "f32": np.array([1.1, np.nan, -0.0, np.inf], np.float32),
            "f64": np.array([1.1, np.nan, -0.0, -np.inf]),
            "text": ["a", None, "", "ç漢"],
            "more": [None, "b", "c", "d"],
        }
    )

    def test_every_type(self) -> None:
        workflow = fit(["id", "x64"] >> ops.JoinExternal(self.TABLE, on="id"), FIT)
        served = agree(workflow, FIT, NEW)
        assert served.dtypes == {
            "id": "int64",
            "x64": "float64",
            "whole": "float64",
            "tiny": "float64",
            "byte": "float64",
            "f32": "float32",
            "f64": "float64",
            "text": "string",
            "more": "string",
        }

    def test_nullable_whole_key(self) -> None:
        served = serve(fit(["id"] >> ops.JoinExternal(self.TABLE, on="id"), FIT), nullable=("id",))
        answers = served(pd.DataFrame({"id": [5.0, None, -3.0]}))
        assert answers["tiny"].ravel().tolist()[::2] == [1, -2]
        assert np.isnan(answers["tiny"][1, 0])
        assert answers["more"].ravel().tolist() == ["\x01", "\x01", "b"]

    def test_every_key_found(self) -> None:
        # pandas leaves whole numbers as they are, where a batch happens to have no other key
        agree(fit(["id"] >> ops.JoinExternal(self.TABLE, on="id"), FIT), FIT.iloc[[0, 1, 6]], dtypes=False)

    def test_chosen_columns(self) -> None:
        join = ops.JoinExternal(self.TABLE, on="id", columns_ext=["id", "text", "f32"])
        served = agree(fit(["word", "id"] >> join, FIT), FIT, NEW)
        assert list(served.dtypes) == ["word", "id", "text", "f32"]

    @pytest.mark.parametrize("key", ["id", "id32", "floating"])
    @pytest.mark.parametrize("dtype", ["int64", "int32", "float64", "float32"])
    def test_key_types(self, key: str, dtype: str) -> None:
        table = pd.DataFrame({key: np.array([5, -3, 1, 2]).astype(dtype), "text": ["a", "b", "c", "d"]})
        served = agree(fit([key] >> ops.JoinExternal(table, on=key), FIT), FIT, NEW)
        assert served.dtypes[key] == str(FIT[key].dtype)

    @pytest.mark.parametrize("key", ["id", "id32", "floating"])
    def test_key_of_another_name(self, key: str) -> None:
        table = self.TABLE[["id", "text"]].rename(columns={"id": "code"}).iloc[:3]
        served = agree(fit([key] >> ops.JoinExternal(table, on=key, on_ext="code"), FIT), FIT, NEW)
        assert served.dtypes == {key: str(FIT[key].dtype), "code": "float64", "text": "string"}

    def test_text_key_with_nulls(self) -> None:
        table = pd.DataFrame(
            {"word": ["apple", None, "", "naïve 漢字"], "size": [1, 2, 3, 4], "also": ["w", "x", "y", "z"]}
        )
        agree(fit(["word"] >> ops.JoinExternal(table, on="word"), FIT), FIT, NEW)
        agree(fit(["word"] >> ops.JoinExternal(table.iloc[[0, 2]], on="word"), FIT), FIT, NEW)

    def test_number_key_with_nulls(self) -> None:
        table = pd.DataFrame({"floating": [1.0, np.nan, 3.0], "size": [1, 2, 3]})
        agree(fit(["floating"] >> ops.JoinExternal(table, on="floating"), FIT), FIT, NEW)

    def test_several_keys(self) -> None:
        table = pd.DataFrame(
            {"u": ["a", "b", None, None, "c"], "code": ["b", "e", None, "d", "c"], "size": [1.5, 2.5, 3.5, 4.5, 5.5]}
        )
        agree(fit(["u", "v"] >> ops.JoinExternal(table, on=["u", "v"], on_ext=["u", "code"]), FIT), FIT, NEW)

    def test_equal_rows(self) -> None:
        table = pd.DataFrame({"id": [5, 5, -3], "size": [1.0, 1.0, 2.0]})
        agree(fit(["id"] >> ops.JoinExternal(table, on="id", drop_duplicates_ext=True), FIT), FIT, NEW)
        with pytest.raises(ArtifactError, match=r"JoinExternal on id: several rows .* key 5, .*keep one row"):
            serve(fit(["id"] >> ops.JoinExternal(table, on="id"), FIT))

    def test_dataset_and_arrow(self) -> None:
        import pyarrow

        table = self.TABLE[["id", "f64"]]
        agree(fit(["id"] >> ops.JoinExternal(nvt.Dataset(table.copy()), on="id"), FIT), FIT, NEW)
        agree(fit(["id"] >> ops.JoinExternal(pyarrow.Table.from_pandas(table), on="id"), FIT), FIT, NEW)

    def test_several_partitions(self) -> None:
        dask = pytest.importorskip("dask.dataframe")
        table = dask.from_pandas(self.TABLE[["id", "f64"]], npartitions=2)
        agree(fit(["id"] >> ops.JoinExternal(table, on="id"), FIT), FIT, NEW)

    def test_then_others(self) -> None:
        joined = ["id"] >> ops.JoinExternal(self.TABLE, on="id", columns_ext=["id", "text", "f64", "whole"])
        words = joined["text"] >> ops.Categorify()
        numbers = joined["f64", "whole"] >> ops.FillMissing(0) >> ops.Clip(min_value=-5, max_value=5)
        agree(fit(words + numbers, FIT), FIT, NEW)

    def test_of_categories(self) -> None:
        table = pd.DataFrame({"word": [1, 2, 3, 5], "size": [1.5, 2.5, 3.5, 4.5]})
        agree(fit(["word"] >> ops.Categorify() >> ops.JoinExternal(table, on="word"), FIT), FIT, NEW)

    def test_empty_table(self) -> None:
        agree(fit(["id"] >> ops.JoinExternal(self.TABLE[["id", "f64"]].iloc[:0], on="id"), FIT), FIT, NEW)

    def test_empty_table_by_text(self) -> None:
        table = pd.DataFrame({"word": np.array([], object), "f64": np.array([], np.float64)})
        agree(fit(["word"] >> ops.JoinExternal(table, on="word"), FIT), FIT, NEW)

    @given(
        keys=st.lists(st.one_of(st.none(), st.text(max_size=2)), max_size=8, unique=True),
        asked=st.lists(st.one_of(st.none(), st.text(max_size=2)), min_size=1, max_size=12),
        value=st.one_of(st.floats(width=32), st.integers(-(2**53), 2**53), st.text(max_size=2)),
    )
    @settings(max_examples=30, deadline=None, derandomize=True)
    def test_any_text_key(self, keys: list[str | None], asked: list[str | None], value: Any) -> None:
        clean = str.maketrans("", "", "\x00\x01")
        keys = [key and key.translate(clean) for key in keys]
        value = value.translate(clean) if isinstance(value, str) else value
        table = pd.DataFrame({"word": pd.Series(["known", *keys], dtype=object).drop_duplicates()})
        table["value"] = [value] * len(table)
        # a key that is not in the table, so that pandas makes whole numbers float64
        frame = pd.DataFrame({"word": ["unknown", *(key and key.translate(clean) for key in [*asked, *keys])]})
        agree(fit(["word"] >> ops.JoinExternal(table, on="word"), frame), frame)

    @given(
        keys=st.lists(st.integers(-(2**62), 2**62), max_size=8, unique=True),
        asked=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=12),
    )
    @settings(max_examples=20, deadline=None, derandomize=True)
    def test_any_whole_key(self, keys: list[int], asked: list[int]) -> None:
        table = pd.DataFrame({"id": np.array(keys, np.int64), "value": np.arange(len(keys), dtype=np.int32)})
        frame = pd.DataFrame({"id": np.array([2**62 + 1, *asked, *keys], np.int64)})
        agree(fit(["id"] >> ops.JoinExternal(table, on="id"), frame), frame)

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        workflow = fit(["id"] >> ops.JoinExternal(self.TABLE, on="id"), FIT)
        workflow.save(str(tmp_path / "saved"))
        agree(nvt.Workflow.load(str(tmp_path / "saved")), FIT, NEW)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"how": "inner"}, r'JoinExternal\(how="inner"\) leaves out rows.*use how="left"'),
            ({"columns_ext": ["f64"]}, r"columns_ext lacks the key id"),
        ],
    )
    def test_refused_options(self, options: dict[str, Any], named: str) -> None:
        with pytest.raises(ArtifactError, match=named):
            self._serve_unfitted(ops.JoinExternal(self.TABLE, on="id", **options))

    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ([True, False], r"JoinExternal on id: column value is bool, .* cast it"),
            (pd.to_datetime(["2021-02-01", "2021-02-02"]), r"column value is datetime64.* cast it"),
            (np.array([2**53 + 1, 0]), r"column value holds whole numbers beyond 2\*\*53"),
            ([[1], [2]], r"column value holds objects that are not texts"),
        ],
    )
    def test_refused_columns(self, values: Any, named: str) -> None:
        with pytest.raises(ArtifactError, match=named):
            self._serve_unfitted(ops.JoinExternal(pd.DataFrame({"id": [1, 2], "value": values}), on="id"))

    def test_column_of_both_tables(self) -> None:
        table = pd.DataFrame({"id": [1, 2], "x64": [1.0, 2.0]})
        with pytest.raises(ArtifactError, match=r"JoinExternal on id: x64 is in both tables"):
            self._serve_unfitted(ops.JoinExternal(table, on="id"))

    def test_keys_of_another_type(self) -> None:
        table = pd.DataFrame({"word": [1, 2], "size": [1.0, 2.0]})
        with pytest.raises(ArtifactError, match=r"a text column whose fitted categories are not texts"):
            self._serve_unfitted(ops.JoinExternal(table, on="word"))

    @staticmethod
    def _serve_unfitted(join: Any) -> None:
        workflow = nvt.Workflow(["id", "x64", "word"] >> join)
        workflow.fit_schema(nvt.Dataset(FIT[["id", "x64", "word"]].copy()).schema)
        serve(workflow)

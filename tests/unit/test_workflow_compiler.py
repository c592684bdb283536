"""Compiled workflows against the installed NVTabular's own transform, on awkward rows: same values, same dtypes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tristage.client.codec import encode
from tristage.columns import Column, Signature
from tristage.errors import ArtifactError, StackError
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.workflow import (
    CompiledWorkflow,
    Node,
    NoLowering,
    Value,
    compile_workflow,
    lowers,
    raw_columns,
)
from tristage.export.workflow.registry import LOWERINGS
from tristage.export.workflow.values import materialise, pack
from tristage.fingerprint import DERIVED, fingerprints
from tristage.stack import ListInput

nvt = pytest.importorskip("nvtabular")
ops = nvt.ops

_NUMBER = itertools.count()
TABLES: list[Path | None] = [None]  # where large tables go; None keeps them in memory


@dataclass(frozen=True)
class Served:
    """A compiled workflow that runs in this process."""

    compiled: CompiledWorkflow
    session: Any
    raw: tuple[Any, ...]

    @property
    def dtypes(self) -> dict[str, str]:
        return {column.name: column.dtype for column in self.compiled.outputs}

    @property
    def reads(self) -> set[str]:
        return {value.name.removeprefix(DERIVED) for value in self.session.get_inputs()}

    def __call__(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        read = {value.name for value in self.session.get_inputs()}
        columns = tuple(column for column in self.raw if column.name in self.reads)
        if len(frame):
            tensors = dict(encode(frame, Signature("s", 1024, columns, ()), unknown="ignore"))
        else:
            tensors = {c.name: np.empty((0, c.width), c.numpy_dtype) for c in columns}
        for name in read - self.reads:
            texts = tensors[name.removeprefix(DERIVED)]
            tensors[name] = fingerprints(texts.ravel().tolist()).reshape(texts.shape)
        answers = self.session.run(None, {name: tensors[name] for name in read})
        return dict(zip(self.dtypes, answers, strict=True))


def serve(workflow: Any, lists: Mapping[str, ListInput] | None = None, nullable: tuple[str, ...] = ()) -> Served:
    text_and_floats = {
        schema.name
        for schema in workflow.input_schema
        if schema.dtype.name in ("object", "string", "str", "float32", "float64")
    }
    raw = raw_columns(workflow, lists or {}, frozenset(text_and_floats | set(nullable)))
    compiled = compile_workflow(workflow, raw, TABLES[0])
    outputs = [
        (
            f"out {column.name}",
            pack(compiled.graph, [compiled.values[column.name]], column.dtype),
            column.dtype,
            column.width,
        )
        for column in compiled.outputs
    ]
    model = compiled.graph.model(outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if TABLES[0] is None:
        return Served(compiled, onnxruntime.InferenceSession(model.SerializeToString(), options), raw)
    file = TABLES[0] / "graph.onnx"
    file.write_bytes(model.SerializeToString())
    return Served(compiled, onnxruntime.InferenceSession(file, options), raw)


def fit(nodes: Any, frame: pd.DataFrame) -> Any:
    workflow = nvt.Workflow(nodes)
    workflow.fit(nvt.Dataset(frame.copy()))
    return workflow


def agree(
    workflow: Any,
    *frames: pd.DataFrame,
    lists: Mapping[str, ListInput] | None = None,
    nullable: tuple[str, ...] = (),
    rtol: float = 0,
    dtypes: bool = True,
) -> Served:
    """Both sides answer every frame alike, one row and no row of it too; bit for bit unless `rtol` is given."""
    served = serve(workflow, lists, nullable)
    for frame in frames:
        expected = workflow.transform(frame.copy())
        answers = served(frame)
        assert list(answers) == list(expected.columns)
        for column in served.compiled.outputs:
            compare(column, answers[column.name], expected[column.name], rtol, dtypes)
        for rows in (0, 1):  # NVTabular itself fails on many a frame as short
            for name, values in served(frame.iloc[:rows].reset_index(drop=True)).items():
                np.testing.assert_array_equal(values, answers[name][:rows], err_msg=name)
    return served


def compare(column: Any, answers: np.ndarray, expected: pd.Series, rtol: float, dtypes: bool) -> None:
    if column.length is not None:
        wanted = np.full((len(expected), column.length), column.pad, column.numpy_dtype)
        for row, values in enumerate(expected):
            wanted[row, : len(values)] = values
        np.testing.assert_array_equal(answers, wanted, err_msg=column.name)
        return
    wanted = np.asarray(expected).reshape(-1, 1)
    if column.dtype == "string":
        wanted = np.where(pd.isna(wanted), "\x01", wanted)
    elif dtypes:
        assert str(answers.dtype) == str(wanted.dtype), column.name
    if rtol:
        np.testing.assert_allclose(answers, wanted, rtol=rtol, atol=0, err_msg=column.name)
    else:
        np.testing.assert_array_equal(answers, wanted, err_msg=column.name)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from merlin.io.worker import clean_worker_cache

    # NVTabular writes its statistics below the current folder, and remembers them by path
    clean_worker_cache()
    monkeypatch.chdir(tmp_path)


FIT = pd.DataFrame(
    {
        "word": ["apple", "pear", "", "naïve 漢字", None, "apple", "pear", "apple"],
        "id": np.array([5, -3, 7, 5, 5, -3, 0, 2**62 - 1], np.int64),
        "id32": np.array([5, -3, 7, 5, 5, -3, 0, 2**31 - 1], np.int32),
        "floating": np.array([1, 2, np.nan, 1, 2, 3, np.nan, 1], np.float64),
        "u": ["a", "b", "a", None, "c", "b", "a", "d"],
        "v": ["b", "e", None, "a", "c", "b", "z", "d"],
        "x32": np.array([1.5, -2.25, np.nan, 1e6, 0, 3.1, 7, -0.1], np.float32),
        "x64": np.array([1.5, -2.25, np.nan, 1e9, 0, 3.1, 7, -0.1], np.float64),
        "n32": np.array([1, -2, 3, 400, 0, 6, 7, 8], np.int32),
        "n64": np.array([1, -2, 3, 4_000_000, 0, 6, 7, 8], np.int64),
        "same": np.full(8, 3.5, np.float64),
        "y": np.array([1, 0, 1, 0, 1, 1, 0, 0], np.float32),
        "w": np.array([0, 0, 1, 0, 1, 0, 0, 1], np.int64),
    }
)
NEW = pd.DataFrame(
    {
        "word": ["kiwi", "apple", None, "", "naïve 漢字", "Apple", "pear "],
        "id": np.array([-3, 8, 5, 0, 2**62 - 1, -(2**62), 7], np.int64),
        "id32": np.array([-3, 8, 5, 0, 2**31 - 1, -(2**31), 7], np.int32),
        "floating": np.array([np.nan, 3, 9, 1, 2.5, np.inf, -np.inf], np.float64),
        "u": [None, "a", "zz", "d", None, "b", "b"],
        "v": ["e", None, "a", "d", None, "e", "b"],
        "x32": np.array([np.nan, np.inf, -np.inf, 0.1, 3.1, -0.0, 1e-30], np.float32),
        "x64": np.array([np.nan, np.inf, -np.inf, 0.1, 3.1, -0.0, 1e-300], np.float64),
        "n32": np.array([5, 0, -1, 2**31 - 1, -(2**31), 3, 4], np.int32),
        "n64": np.array([5, 0, -1, 2**52, -(2**52), 3, 4], np.int64),
        "same": np.array([1.0, 3.5, np.nan, 0.0, 7, -2, 3.5]),
        "y": np.array([1, 0, 0, 1, 0, 1, 0], np.float32),
        "w": np.array([1, 0, 0, 1, 0, 1, 0], np.int64),
    }
)


class TestCategorify:
    @pytest.mark.parametrize("column", ["word", "id", "id32", "floating"])
    def test_one_column(self, column: str) -> None:
        served = agree(fit([column] >> ops.Categorify(), FIT), FIT, NEW)
        assert served.dtypes == {column: "int64"}

    @pytest.mark.parametrize(
        "options",
        [
            {"freq_threshold": 2},
            {"freq_threshold": {"word": 3, "id": 2}},
            {"max_size": 5},
            {"max_size": {"word": 4, "id": 5}},
            {"dtype": np.int32},
            {"dtype": np.float32},
            {"cat_cache": "disk"},
        ],
        ids=str,
    )
    def test_options(self, options: dict[str, Any]) -> None:
        agree(fit(["word", "id"] >> ops.Categorify(**options), FIT), FIT, NEW)

    def test_joint(self) -> None:
        workflow = fit([["u", "v"]] >> ops.Categorify(), FIT)
        answers = agree(workflow, FIT, NEW)(NEW)
        assert answers["u"][5] == answers["v"][6]  # both "b"

    def test_joint_beside_a_single_column(self) -> None:
        agree(fit([["u", "v"], "word"] >> ops.Categorify(), FIT), FIT, NEW)

    def test_combo(self) -> None:
        workflow = fit([["u", "v"], "word"] >> ops.Categorify(encode_type="combo"), FIT)
        answers = agree(workflow, FIT, NEW)(NEW)
        assert answers["u_v"][4] == 1  # both are null

    def test_combo_of_number_and_text(self) -> None:
        agree(fit([["id", "u"]] >> ops.Categorify(encode_type="combo"), FIT), FIT, NEW)

    def test_lists_of_text(self) -> None:
        words = [["a", "b"], [], ["c"], ["a", "a", "é"], ["d", "e", "f", "g"]]
        frame = pd.DataFrame({"tags": words})
        new = pd.DataFrame({"tags": [[], ["zzz", "a"], ["é"], ["g", "f", "e", "d"]]})
        workflow = fit(["tags"] >> ops.Categorify(), frame)
        served = serve(workflow, {"tags": ListInput(4)})
        for part in (frame, new):
            compare(
                served.compiled.outputs[0],
                served(part)["tags"],
                workflow.transform(part.copy())["tags"],
                rtol=0,
                dtypes=True,
            )
        assert served(new)["tags"].tolist()[0] == [0, 0, 0, 0]

    def test_lists_of_numbers_with_threshold(self) -> None:
        frame = pd.DataFrame({"ids": [[5, 6], [5], [], [7, 5, 6]]})
        new = pd.DataFrame({"ids": [[7, 5], [-1], [6, 6, 6]]})
        workflow = fit(["ids"] >> ops.Categorify(freq_threshold=2), frame)
        agree(workflow, new, lists={"ids": ListInput(3)})

    def test_a_pad_that_is_a_category(self) -> None:
        frame = pd.DataFrame({"ids": [[0, 6], [5], [0]]})
        workflow = fit(["ids"] >> ops.Categorify(), frame)
        with pytest.raises(ArtifactError, match=r"Categorify of ids: the pad 0"):
            serve(workflow, {"ids": ListInput(3)})
        agree(workflow, frame, lists={"ids": ListInput(3, pad=-1)})

    def test_nullable_integers_where_nvtabular_casts(self) -> None:
        # NVTabular cannot cast NaN to the fitted integers; a served null is the null category
        served = serve(fit(["id"] >> ops.Categorify(), FIT), nullable=("id",))
        assert served(pd.DataFrame({"id": [5.0, None]}))["id"].tolist()[1] == [1]

    def test_booleans_and_small_integers(self) -> None:
        frame = pd.DataFrame(
            {
                "flag": [True, False, True],
                "small": np.array([-4, 5, 5], np.int8),
                "short": np.array([300, -300, 3], np.int16),
                "byte": np.array([0, 255, 7], np.uint8),
            }
        )
        agree(fit(list(frame.columns) >> ops.Categorify(), frame), frame)

    def test_infinite_category(self) -> None:
        frame = pd.DataFrame({"x": [1.0, np.inf, 2.0]})
        with pytest.raises(ArtifactError, match="category inf"):
            serve(fit(["x"] >> ops.Categorify(), frame))

    def test_fractional_category(self) -> None:
        frame = pd.DataFrame({"x": [1.0, 2.5, 2.0]})
        with pytest.raises(ArtifactError, match=r"category 2.5"):
            serve(fit(["x"] >> ops.Categorify(), frame))

    def test_after_a_lambda(self) -> None:
        agree(fit(["n64"] >> ops.LambdaOp(lambda column: column // 3) >> ops.Categorify(), FIT), FIT)

    def test_vocabulary_given(self) -> None:
        vocabularies = {"word": pd.Series(["pear", "apple"])}
        agree(fit(["word"] >> ops.Categorify(vocabs=vocabularies), FIT), FIT, NEW)

    def test_lost_table(self) -> None:
        workflow = fit(["word"] >> ops.Categorify(), FIT)
        Path(next(iter(workflow.output_node.op.categories.values()))).unlink()
        with pytest.raises(ArtifactError, match=r"Categorify of word.*is gone"):
            serve(workflow)

    @given(
        words=st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=20),
        new=st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=20),
    )
    @settings(max_examples=15, deadline=None, derandomize=True)
    def test_any_text(self, words: list[str | None], new: list[str | None]) -> None:
        clean = [None if word is None else word.replace("\x01", "").replace("\x00", "") for word in ["", *words]]
        asked = [None if word is None else word.replace("\x01", "").replace("\x00", "") for word in [*new, "", *words]]
        if all(word is None for word in clean):
            return
        frame = pd.DataFrame({"word": clean})
        # a path of its own: NVTabular caches tables by path
        workflow = fit(["word"] >> ops.Categorify(out_path=f"stats{next(_NUMBER)}"), frame)
        expected = workflow.transform(pd.DataFrame({"word": asked}))["word"].to_numpy()
        answers = serve(workflow)(pd.DataFrame({"word": asked}))["word"][:, 0]
        np.testing.assert_array_equal(answers, expected)


class TestNumbers:
    @pytest.mark.parametrize("binary", [False, True])
    @pytest.mark.parametrize("fill", [0, -1.5, 0.1])
    def test_fill_missing(self, fill: float, binary: bool) -> None:
        columns = ["x32", "x64"]
        served = agree(fit(columns >> ops.FillMissing(fill, add_binary_cols=binary), FIT), FIT, dtypes=False)
        # pandas widens float32 where it holds a null and the value does not fit; a served column is always wide
        assert served.dtypes["x32"] == ("float64" if fill == 0.1 else "float32")
        assert served.dtypes["x64"] == "float64"
        assert ("x32_filled" in served.dtypes) == binary

    def test_fill_missing_text(self) -> None:
        agree(fit(["word", "u"] >> ops.FillMissing("?", add_binary_cols=True), FIT), FIT, NEW)

    def test_fill_missing_of_whole_numbers(self) -> None:
        frame = FIT.assign(tiny=FIT["n32"].to_numpy().astype(np.int8), flag=FIT["n32"] > 2)
        columns = ["n32", "n64", "tiny", "flag"]
        agree(fit(columns >> ops.FillMissing(7, add_binary_cols=True), frame), frame)

    def test_fill_missing_of_nullable_integers(self) -> None:
        served = serve(fit(["n64"] >> ops.FillMissing(7, add_binary_cols=True), FIT), nullable=("n64",))
        answers = served(pd.DataFrame({"n64": [1, None, 3]}))
        assert answers["n64"].tolist() == [[1], [7], [3]]
        assert answers["n64_filled"].tolist() == [[False], [True], [False]]

    def test_fill_missing_of_mixed_types(self) -> None:
        with pytest.raises(ArtifactError, match=r"FillMissing fills word .*mixes types"):
            serve(fit(["word"] >> ops.FillMissing(0), FIT))

    @pytest.mark.parametrize("binary", [False, True])
    def test_fill_median(self, binary: bool) -> None:
        frame = FIT.assign(n=FIT["n64"])
        agree(fit(["x32", "x64", "n"] >> ops.FillMedian(add_binary_cols=binary), frame), frame, dtypes=False)

    @pytest.mark.parametrize("dtype", [None, np.float32, np.float64])
    def test_normalize(self, dtype: Any) -> None:
        columns = ["x32", "x64", "n32", "n64", "same"]
        agree(fit(columns >> ops.Normalize(out_dtype=dtype), FIT), FIT, NEW)

    @pytest.mark.parametrize("dtype", [None, np.float32])
    def test_normalize_min_max(self, dtype: Any) -> None:
        columns = ["x32", "x64", "n32", "n64", "same"]
        agree(fit(columns >> ops.NormalizeMinMax(out_dtype=dtype), FIT), FIT, NEW)

    def test_normalize_min_max_of_one_column_each(self) -> None:
        # alone, a column's bounds keep its own dtype
        for column in ("x32", "n32", "n64"):
            agree(fit([column] >> ops.NormalizeMinMax(), FIT), FIT)

    def test_log(self) -> None:
        agree(fit(["x32", "x64", "n32", "n64"] >> ops.LogOp(), FIT), FIT, NEW, rtol=1.2e-7)

    @pytest.mark.parametrize("bounds", [{"min_value": 0}, {"max_value": 5}, {"min_value": -1, "max_value": 3}], ids=str)
    def test_clip(self, bounds: dict[str, float]) -> None:
        agree(fit(["x32", "x64", "n32", "n64"] >> ops.Clip(**bounds), FIT), FIT, NEW)

    def test_clip_floats_at_a_fraction(self) -> None:
        agree(fit(["x32", "x64"] >> ops.Clip(min_value=-0.1, max_value=0.7), FIT), FIT, NEW, dtypes=False, rtol=6e-8)

    def test_clip_of_small_integers(self) -> None:
        frame = pd.DataFrame({"byte": np.array([0, 200, 3], np.uint8), "tiny": np.array([-100, 0, 100], np.int8)})
        agree(fit(["byte", "tiny"] >> ops.Clip(min_value=-3, max_value=90), frame), frame, dtypes=False)
        agree(fit(["byte", "tiny"] >> ops.Clip(min_value=-300, max_value=1000), frame), frame, dtypes=False)

    def test_clip_integers_at_a_fraction(self) -> None:
        with pytest.raises(ArtifactError, match=r"Clip cuts the whole-number column n64 at 0.5"):
            serve(fit(["n64"] >> ops.Clip(min_value=0.5), FIT))

    def test_bucketize(self) -> None:
        boundaries = {"x32": [0, 0.1, 3.1], "x64": [-1.0, 0.0, 3.1], "n64": [0, 5]}
        served = agree(fit(["x32", "x64", "n64"] >> ops.Bucketize(boundaries), FIT), FIT, NEW)
        assert set(served.dtypes.values()) == {"int32"}
        agree(fit(["n32"] >> ops.Bucketize([1, 2, 3]), FIT), FIT, NEW)

    def test_bucketize_boundaries_that_fall(self) -> None:
        with pytest.raises(ArtifactError, match=r"Bucketize of n64 has boundaries that do not rise"):
            serve(fit(["n64"] >> ops.Bucketize([3, 2]), FIT))

    def test_small_integers(self) -> None:
        frame = pd.DataFrame(
            {"byte": np.array([0, 200, 3], np.uint8), "short": np.array([-300, 0, 300], np.int16), "flag": [1, 0, 1]}
        ).astype({"flag": bool})
        agree(fit(["byte", "short"] >> ops.Normalize(), frame), frame)
        agree(fit(["byte", "short"] >> ops.LogOp(), frame), frame, rtol=1.2e-7)
        agree(fit(["byte", "short"] >> ops.Bucketize([1, 2]), frame), frame)

    def test_chain(self) -> None:
        nodes = (
            ["x32", "n64"] >> ops.FillMissing(0) >> ops.Clip(min_value=0) >> ops.LogOp() >> ops.Normalize(np.float32)
        )
        agree(fit(nodes, FIT), FIT, NEW.iloc[3:].reset_index(drop=True), rtol=2e-6)

    @given(
        values=st.lists(
            st.one_of(st.floats(width=32, min_value=-(2.0**50), max_value=2.0**50), st.just(np.nan)), min_size=1
        )
    )
    @settings(max_examples=25, deadline=None, derandomize=True)
    def test_any_number(self, values: list[float]) -> None:
        workflow = _numbers()
        frame = pd.DataFrame({"x32": np.array(values, np.float32), "x64": np.array(values, np.float64)})
        expected = workflow.transform(frame.copy())
        for name, answers in _served_numbers()(frame).items():
            np.testing.assert_array_equal(answers[:, 0], expected[name].to_numpy(), err_msg=name)


_KEPT: dict[str, Any] = {}


def _numbers() -> Any:
    if "numbers" not in _KEPT:
        normal = ["x32", "x64"] >> ops.FillMissing(0) >> ops.Normalize() >> ops.Rename(postfix="_normal")
        bucket = ["x32", "x64"] >> ops.Bucketize([-1, 0, 0.1, 1e9]) >> ops.Rename(postfix="_bucket")
        clipped = ["x32", "x64"] >> ops.Clip(min_value=-2, max_value=3) >> ops.Rename(postfix="_clipped")
        _KEPT["numbers"] = fit(normal + bucket + clipped, FIT)
    return _KEPT["numbers"]


def _served_numbers() -> Served:
    if "served" not in _KEPT:
        _KEPT["served"] = serve(_numbers())
    return _KEPT["served"]


class TestTargetEncoding:
    KEYS = ("word", "id", "floating", ["u", "v"])

    @pytest.mark.parametrize("dtype", [None, "float32", "float64"])
    def test_one_fold(self, dtype: str | None) -> None:
        encoded = list(self.KEYS) >> ops.TargetEncoding(["y", "w"], kfold=1, p_smooth=20, out_dtype=dtype)
        served = agree(fit(encoded, FIT), FIT, NEW)
        assert set(served.dtypes.values()) == {dtype or "float32"}
        assert served.reads == {"word", "id", "floating", "u", "v"}

    def test_no_smoothing(self) -> None:
        agree(fit(["word"] >> ops.TargetEncoding(["y"], kfold=1, p_smooth=0), FIT), FIT, NEW)

    def test_five_folds_answer_with_all_folds(self) -> None:
        keys, targets, smooth = ["word", ["u", "v"]], ["y", "w"], 7
        workflow = fit(keys >> ops.TargetEncoding(targets, kfold=5, p_smooth=smooth), FIT)
        served = serve(workflow)
        answers = served(NEW)
        for key in (["word"], ["u", "v"]):
            sums = FIT.groupby(key, dropna=False)[targets].agg(["sum", "count"])
            if len(key) == 1:
                sums.loc[sums.index.isna(), (slice(None), "count")] = 0  # NVTabular counts the keys that are not null
            for target in targets:
                mean = FIT[target].astype(np.float64).mean()
                for row in range(len(NEW)):
                    value = tuple(NEW.loc[row, key])
                    match = [
                        at
                        for at, known in enumerate(sums.index.to_frame().itertuples(index=False))
                        if all(a == b or (pd.isna(a) and pd.isna(b)) for a, b in zip(known, value, strict=True))
                    ]
                    total, count = sums[target].iloc[match[0]] if match else (0, 0)
                    wanted = (total + smooth * mean) / (count + smooth)
                    got = answers[f"TE_{'_'.join(key)}_{target}"][row, 0]
                    assert got == pytest.approx(wanted, rel=1e-6), (key, target, row)

    def test_reads_no_target(self) -> None:
        served = serve(fit(["word"] >> ops.TargetEncoding(["y", "w"], kfold=5), FIT))
        assert served.reads == {"word"}
        served(NEW[["word"]])

    def test_computed_targets(self) -> None:
        label = ["n64"] >> ops.LambdaOp(lambda column: (column > 2).astype("int8")) >> ops.Rename(name="label")
        workflow = fit(["word"] >> ops.TargetEncoding(label, kfold=1), FIT)
        served = agree(workflow, FIT, NEW)
        assert served.reads == {"word"}

    def test_categories_encoded_first(self) -> None:
        codes = ["word", "id"] >> ops.Categorify()
        agree(fit(codes >> ops.TargetEncoding(["y"], kfold=1), FIT), FIT, NEW)

    def test_overwritten_statistics(self) -> None:
        # the two keep their statistics in one file of one layout, so NVTabular would read the wrong ones
        workflow = fit(["word"] >> ops.TargetEncoding(["y"], kfold=1), FIT)
        fit(["word"] >> ops.JoinGroupby(cont_cols=["n64"], stats=["count", "sum"]), FIT)
        with pytest.raises(ArtifactError, match=r"TargetEncoding on word were overwritten.*word_n64_sum.*Rename"):
            serve(workflow)

    def test_overwritten_the_other_way_round(self) -> None:
        workflow = fit(["word"] >> ops.JoinGroupby(cont_cols=["n64"], stats=["count", "sum"]), FIT)
        fit(["word"] >> ops.TargetEncoding(["y"], kfold=1), FIT)
        with pytest.raises(ArtifactError, match=r"JoinGroupby on word were overwritten.*word_y_sum"):
            serve(workflow)

    def test_statistics_in_folders_of_their_own(self) -> None:
        encoded = ["word"] >> ops.TargetEncoding(["y"], kfold=1, out_path="encoded")
        counted = ["word"] >> ops.JoinGroupby(cont_cols=["n64"], stats=["sum", "mean"], out_path="counted")
        agree(fit(encoded + counted, FIT), FIT, dtypes=False)


class TestJoinGroupby:
    @pytest.mark.parametrize("key", ["word", "id", ["u", "v"]], ids=str)
    def test_statistics(self, key: Any) -> None:
        op = ops.JoinGroupby(cont_cols=["x32", "n64"], stats=["sum", "mean", "std", "var", "min", "max"])
        workflow = fit([key] >> op, FIT)
        # a whole number becomes float64 in pandas only where some key of the frame is unseen
        served = agree(workflow, FIT, NEW, dtypes=False)
        assert served.dtypes[f"{'_'.join(key) if isinstance(key, list) else key}_n64_mean"] == "float32"

    def test_count(self) -> None:
        workflow = fit(["word", ["u", "v"]] >> ops.JoinGroupby(cont_cols=["n64"], stats=["count", "sum"]), FIT)
        served = agree(workflow, FIT, dtypes=False)
        assert served.dtypes["word_count"] == "int32"
        # NVTabular fails on a CPU: it casts the NaN of an unseen key to int32. Nobody was counted, so the answer is 0
        answers = served(NEW)
        assert answers["word_count"][:4, 0].tolist() == [0, 3, 0, 1]  # nulls are not counted
        assert np.isnan(answers["word_n64_sum"][0, 0])

    def test_of_transformed_columns(self) -> None:
        filled = ["x64"] >> ops.FillMissing(0)
        agree(fit(["word"] >> ops.JoinGroupby(cont_cols=filled, stats=["mean"]), FIT), FIT, NEW)


class TestSelection:
    LISTS = pd.DataFrame({"ids": [[1, 2, 3, 4], [], [5], [6, 7]], "words": [["a"], ["b", "c"], [], ["d", "e", "f"]]})

    @pytest.mark.parametrize("arguments", [(2,), (1, 3), (0, 10), (3,), (0, 4)], ids=str)
    def test_list_slice(self, arguments: tuple[int, ...]) -> None:
        workflow = fit(["ids", "words"] >> ops.ListSlice(*arguments), self.LISTS)
        agree(workflow, self.LISTS, lists={"ids": ListInput(4), "words": ListInput(3)})

    def test_list_slice_then_categorify(self) -> None:
        nodes = ["words"] >> ops.ListSlice(2) >> ops.Categorify()
        workflow = fit(nodes, self.LISTS)
        expected = workflow.transform(self.LISTS.copy())["words"]
        served = serve(workflow, {"words": ListInput(3)})
        compare(served.compiled.outputs[0], served(self.LISTS)["words"], expected, 0, True)

    def test_list_slice_pads(self) -> None:
        workflow = fit(["ids"] >> ops.ListSlice(3, pad=True, pad_value=-1), self.LISTS)
        served = serve(workflow, {"ids": ListInput(4)})
        assert served(self.LISTS)["ids"].tolist() == [[1, 2, 3], [-1, -1, -1], [5, -1, -1], [6, 7, -1]]

    def test_list_slice_beyond_the_declared_length(self) -> None:
        workflow = fit(["ids"] >> ops.ListSlice(2, 4), self.LISTS)
        with pytest.raises(ArtifactError, match=r"ListSlice.*ids"):
            serve(workflow, {"ids": ListInput(2)})

    def test_rename(self) -> None:
        nodes = (
            (["x64"] >> ops.Rename(name="first"))
            + (["x32"] >> ops.Rename(postfix="_second"))
            + (["n64", "n32"] >> ops.Rename(f=lambda name: f"third {name}"))
        )
        served = agree(fit(nodes, FIT), FIT, NEW)
        assert set(served.dtypes) == {"first", "x32_second", "third n64", "third n32"}

    def test_subtract_and_concatenate(self) -> None:
        normal = ["x64", "n64", "n32"] >> ops.FillMissing(0) >> ops.Normalize()
        without = normal - (["n64"] >> ops.LogOp())  # NVTabular fails to subtract a name
        agree(fit(without, FIT), FIT, NEW)
        both = without + (["word"] >> ops.Categorify()) + ["id"]
        served = agree(fit(both, FIT), FIT, NEW)
        assert "n64" not in served.dtypes

    def test_tags(self) -> None:
        nodes = (
            (["x64"] >> ops.AddMetadata(tags=["one"], properties={"a": 1}))
            + (["n64"] >> ops.AddTags(tags=["two"]))
            + (["id"] >> ops.TagAsUserID())
            + (["word"] >> ops.Categorify() >> ops.TagAsItemID())
            + (["n32"] >> ops.TagAsUserFeatures())
            + (["u"] >> ops.TagAsItemFeatures())
        )
        agree(fit(nodes, FIT), FIT, NEW)

    def test_columns_as_they_are(self) -> None:
        served = agree(fit(["x64", "n64", "word"] >> ops.Rename(f=str), FIT), FIT, NEW)
        assert served.dtypes == {"x64": "float64", "n64": "int64", "word": "string"}

    def test_columns_named_like_the_graphs_own_tensors(self) -> None:
        frame = pd.DataFrame({"t0": [1.0, 2.0], "t1": [3.0, 4.0], "c0": [5.0, 6.0], "c1": [7.0, 8.0]})
        agree(fit(list(frame.columns) >> ops.Normalize(), frame), frame)


class TestRawColumns:
    def test_length_is_needed(self) -> None:
        workflow = fit(["ids"] >> ops.Categorify(), TestSelection.LISTS)
        with pytest.raises(StackError, match=r"raw column ids holds lists.*inputs: \{ids: \{max_length: N\}\}"):
            serve(workflow)

    def test_length_of_a_scalar(self) -> None:
        with pytest.raises(StackError, match="inputs declares a length for word"):
            serve(fit(["word"] >> ops.Categorify(), FIT), {"word": ListInput(3)})

    def test_pad_of_another_type(self) -> None:
        workflow = fit(["ids"] >> ops.Categorify(), TestSelection.LISTS)
        with pytest.raises(StackError, match=r"ids.*pad 'x'"):
            serve(workflow, {"ids": ListInput(3, pad="x")})

    def test_type_that_nvtabular_did_not_find_out(self) -> None:
        # it looks at the first row, and an empty list says nothing
        frame = pd.DataFrame({"tags": [[], ["a"], ["b", "a"]]})
        workflow = fit(["tags"] >> ops.Categorify(), frame)
        with pytest.raises(ArtifactError, match=r"did not find out the type of raw column tags.*golden rows"):
            serve(workflow)
        known = {"tags": Column("tags", "string", 2, "")}
        (column,) = raw_columns(workflow, {"tags": ListInput(5)}, frozenset(), known)
        assert column == Column("tags", "string", 5, "")

    def test_type_without_a_tensor(self) -> None:
        frame = pd.DataFrame({"when": pd.to_datetime(["2021-02-01", "2021-02-02"])})
        with pytest.raises(ArtifactError, match=r"raw column when has type datetime64"):
            serve(fit(["when"] >> ops.Rename(postfix="x"), frame))


class Doubled(ops.Operator):
    """An operator of a user's own."""

    def transform(self, col_selector: Any, df: pd.DataFrame) -> pd.DataFrame:
        return df[col_selector.names] * 2


class Tripled(ops.Normalize):
    """A subclass computes something else than its parent."""

    def transform(self, col_selector: Any, df: pd.DataFrame) -> pd.DataFrame:
        return df[col_selector.names] * 3


class TestRegistry:
    def test_own_operator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        workflow = fit(["x64", "n64"] >> Doubled(), FIT)
        with pytest.raises(ArtifactError, match=r"operator Doubled has no lowering.*lowers"):
            serve(workflow)
        for name in list(LOWERINGS):
            monkeypatch.setitem(LOWERINGS, name, LOWERINGS[name])  # restores the table afterwards

        @lowers(Doubled)
        def doubled(node: Node, graph: Any) -> dict[str, Value]:
            made = {}
            for name in node.names:
                value = node.columns[name]
                two = graph.scalar(2, value.dtype)
                made[name] = Value(graph.add("Mul", materialise(graph, value), two), value.dtype)
            return made

        try:
            agree(workflow, FIT, NEW)
            with pytest.raises(ValueError, match="already has a lowering, doubled"):
                lowers(Doubled)(doubled)
        finally:
            LOWERINGS.pop(f"{Doubled.__module__}.{Doubled.__qualname__}")

    def test_a_subclass_is_another_operator(self) -> None:
        with pytest.raises(ArtifactError, match="operator Tripled has no lowering"):
            serve(fit(["x64"] >> Tripled(), FIT))

    def test_registered_twice(self) -> None:
        with pytest.raises(ValueError, match="already has a lowering, categorify"):
            lowers(ops.Categorify)(lambda node, graph: {})

    @pytest.mark.parametrize(
        ("nodes", "named"),
        [
            (lambda: ["word"] >> ops.HashBucket(4), "HashBucket"),
            (lambda: ["word", "id"] >> ops.Dropna(), "Dropna"),
            (lambda: ["id"] >> ops.Filter(lambda frame: frame[frame["id"] > 0]), "Filter"),
            (lambda: [["u", "v"]] >> ops.HashedCross(4), "HashedCross"),
            (lambda: ["word"] >> ops.Categorify(num_buckets=3, max_size=6), r"Categorify\(word\): num_buckets"),
        ],
    )
    def test_not_servable(self, nodes: Any, named: str) -> None:
        with pytest.raises(ArtifactError, match=rf"cannot be served: .*{named}") as caught:
            serve(fit(nodes(), FIT))
        assert not isinstance(caught.value, NoLowering)

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        workflow = fit((["word"] >> ops.Categorify()) + (["u"] >> ops.TargetEncoding(["y"], kfold=1)), FIT)
        workflow.save(str(tmp_path / "saved"))
        agree(nvt.Workflow.load(str(tmp_path / "saved")), FIT, NEW)


def test_same_graph_every_time() -> None:
    workflow = fit((["word"] >> ops.Categorify()) + (["x64"] >> ops.FillMissing(0) >> ops.Normalize()), FIT)
    graphs = []
    for _ in range(2):
        compiled = compile_workflow(workflow, raw_columns(workflow, {}, frozenset()))
        outputs = [(c.name, materialise(compiled.graph, compiled.values[c.name]), c.dtype, 1) for c in compiled.outputs]
        graphs.append(compiled.graph.model(outputs).SerializeToString(deterministic=True))
    assert graphs[0] == graphs[1]


def test_texts_made_and_dropped_are_not_mixed_up() -> None:
    # constants are shared by content; an array of objects has only pointers for bytes
    graph = GraphBuilder()
    names = {graph.scalar("".join(["fill", str(number)]), "string") for number in range(200)}
    assert len(names) == 200
    assert graph.scalar("fill7", "string") in names

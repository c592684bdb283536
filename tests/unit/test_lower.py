"""A whole small stack, lowered, placed and checked in this process: raw rows in, the libraries' answers out."""

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
from tristage.errors import ArtifactError, ExportError, InputError, ParityError, StackError
from tristage.export import export
from tristage.export.check import check_parity, run_placement
from tristage.export.golden import golden_columns, read_golden_rows
from tristage.export.lower import lower
from tristage.export.place import Placement, fuse, place
from tristage.export.reference import reference_answers
from tristage.manifest import check_files, read_manifest
from tristage.stack import ForestStep, ListInput, MeanStep, NetStep, Stack, WorkflowStep

nvt = pytest.importorskip("nvtabular")
ops = nvt.ops
RNG = np.random.default_rng(11)
ROWS = 300


def raw_rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user": RNG.choice(["ann", "bob", "", "zoë", None], ROWS),
            "age": RNG.choice([20.0, 35.5, np.nan], ROWS),
            "count": RNG.integers(-5, 1000, ROWS),
            "group": RNG.integers(0, 3, ROWS),
            "unread": RNG.normal(size=ROWS),
            "idle": RNG.choice(["x", "y"], ROWS),
            "tokens": [list(map(int, RNG.integers(1, 50, RNG.integers(0, 6)))) for _ in range(ROWS)],
            "y": RNG.integers(0, 2, ROWS).astype(np.float32),
        }
    )


def net(width: int, outputs: int, seed: int, *, tokens: bool = False) -> onnx.ModelProto:
    """tanh(x @ w), and the mean of an embedding of the tokens."""
    draw = np.random.default_rng(seed)
    constants = [numpy_helper.from_array(draw.normal(size=(width, outputs)).astype(np.float32) / 9, "w")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product"])]
    if tokens:
        constants.append(numpy_helper.from_array(draw.normal(size=(50, outputs)).astype(np.float32), "table"))
        inputs.append(helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", 4]))
        nodes += [
            helper.make_node("Gather", ["table", "tokens"], ["words"]),
            helper.make_node("ReduceMean", ["words"], ["text"], axes=[1], keepdims=0),
            helper.make_node("Add", ["product", "text"], ["sum"]),
        ]
    nodes.append(helper.make_node("Tanh", ["sum" if tokens else "product"], ["answer"]))
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["rows", outputs])
    graph = helper.make_graph(nodes, "net", inputs, [answer], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def forest(width: int, *, names: list[str] | None = None, seed: int = 0) -> xgboost.Booster:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(200, width)) * draw.choice([1, 300], width)
    data = xgboost.DMatrix(rows, draw.integers(0, 2, 200), feature_names=names)
    return xgboost.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1, "seed": seed}, data, 5)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return raw_rows()


@pytest.fixture(scope="module")
def workflow(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("workflow")
    codes = ["user", "idle"] >> ops.Categorify(out_path=str(folder / "codes"))
    encoded = ["user"] >> ops.TargetEncoding(["y"], kfold=5, p_smooth=5, out_path=str(folder / "encoded"))
    filled = ["age", "count"] >> ops.FillMissing(-1, add_binary_cols=True)
    fitted = nvt.Workflow(codes + encoded + filled + (["group"] >> ops.Rename(name="author_group")) + ["tokens"])
    fitted.fit(nvt.Dataset(frame.copy()))
    return fitted


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    for group in (0, 1):  # a row of group 2 has no forest
        forest(3, seed=group).save_model(folder / f"{group}.ubj")
    return folder / "{group}.ubj"


def parts(workflow: Any, groups: Path) -> dict[str, Any]:
    """A stack that reads in every way there is."""
    return {
        "features": WorkflowStep(workflow),
        "nn": NetStep(net(3, 2, 1, tokens=True), {"x": ("features.age", "count", "features.TE_*"), "tokens": "tokens"}),
        # raw, workflow's, model's, workflow's, raw
        "mixed": ForestStep(forest(6), ("count", "features.TE_user_y", "nn", "features.user", "age")),
        "named": ForestStep(
            forest(4, names=["nn.b", "age_filled", "mixed.score", "count"], seed=2),
            ("features.*_filled", "features.count", "nn", "mixed"),
        ),
        "grouped": ForestStep(groups, ("nn.b", "features.user", "nn.a"), group="features.author_group"),
        "other": NetStep(net(2, 2, 3), {"x": ("nn.b", "named")}),
        "score": MeanStep(("nn", "other")),
    }


OUTPUTS = {"a": "score.a", "b": "score.b", "g": "grouped.score", "again": "named.score", "code": "features.user"}


@pytest.fixture(scope="module")
def stack(workflow: Any, groups: Path) -> Stack:
    return Stack("s", parts(workflow, groups), OUTPUTS, ("a", "b"), {"tokens": ListInput(4)})


@pytest.fixture(scope="module")
def golden(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame.drop(columns="y"), preserve_index=False)


@pytest.fixture(scope="module")
def lowered(stack: Stack, golden: pa.Table) -> Any:
    return lower(stack, golden_columns(golden))


@pytest.fixture(scope="module")
def placement(lowered: Any) -> Placement:
    placed = place(lowered, 64)
    inputs = tuple(
        dataclasses.replace(column, nullable=column.length is None and column.dtype in ("string", "float64"))
        for column in placed.signature.inputs
    )
    return dataclasses.replace(placed, signature=dataclasses.replace(placed.signature, inputs=inputs))


def tensors(placement: Placement, golden: pa.Table) -> dict[str, Any]:
    return dict(encode(golden, placement.signature, unknown="ignore"))


@pytest.mark.filterwarnings("ignore")
class TestWhole:
    def test_every_way_of_reading(self, lowered: Any, placement: Placement, golden: pa.Table) -> None:
        frame = golden.to_pandas()
        answers = reference_answers(lowered, frame)
        parity = check_parity(lowered, placement, tensors(placement, golden), answers, frame, 1e-5)
        assert set(parity.differences) == set(lowered.stack.steps)
        assert max(parity.differences.values()) < 1e-6
        assert not parity.edge.any()

    def test_by_hand(self, workflow: Any, placement: Placement, golden: pa.Table, groups: Path) -> None:
        """The same once more without any of ours: NVTabular, NumPy and xgboost."""
        frame = golden.to_pandas()
        served = run_placement(placement, tensors(placement, golden))
        assert served["code"][:, 0].tolist() == workflow.transform(frame.assign(y=0.0))["user"].tolist()
        nn = served["nn__float32"]
        answers = np.full(ROWS, np.nan)
        rows = np.stack([nn[:, 1], served["code"][:, 0], nn[:, 0]], 1).astype(np.float32)
        for group in (0, 1):
            members = (frame["group"] == group).to_numpy()
            booster = xgboost.Booster(model_file=str(groups).replace("{group}", str(group)))
            answers[members] = booster.inplace_predict(rows[members])
        np.testing.assert_allclose(served["g"][:, 0], answers, atol=1e-6)
        assert np.isnan(answers).sum() == (frame["group"] == 2).sum()
        weights = np.random.default_rng(3).normal(size=(2, 2)).astype(np.float32) / 9
        other = np.tanh(np.stack([nn[:, 1], served["again"][:, 0]], 1) @ weights)
        np.testing.assert_allclose(np.concatenate([served["a"], served["b"]], 1), (nn + other) / 2, atol=1e-6)

    def test_fused_answers_alike(self, lowered: Any, placement: Placement, golden: pa.Table) -> None:
        fused = fuse(placement)
        assert [set(model.steps) for model in fused.models] == [set(lowered.stack.steps)]
        assert fused.signature == placement.signature
        onnx.checker.check_model(fused.models[0].graph)
        inputs = tensors(placement, golden)
        one, other = run_placement(placement, inputs), run_placement(fused, inputs)
        for name in OUTPUTS:
            np.testing.assert_array_equal(one[name], other[name])

    def test_only_what_is_read_goes_in(self, placement: Placement) -> None:
        assert {column.name for column in placement.signature.inputs} == {"user", "age", "count", "group", "tokens"}

    def test_chunks_answer_alike(self, placement: Placement, golden: pa.Table) -> None:
        small = dataclasses.replace(placement, signature=dataclasses.replace(placement.signature, max_batch=7))
        inputs = tensors(placement, golden)
        one, other = run_placement(placement, inputs), run_placement(small, inputs)
        for name in OUTPUTS:
            np.testing.assert_array_equal(one[name], other[name])

    def test_every_tensor_read_is_one_made(self, placement: Placement) -> None:
        known = {column.name: (column.triton_dtype, column.width) for column in placement.signature.inputs}
        for model in placement.models:
            for tensor in model.inputs:
                assert tensor.name in known
            assert not known.keys() & {tensor.name for tensor in model.outputs}
            for tensor in model.outputs:
                known[tensor.name] = ("", tensor.width)
                assert sum(1 for _ in model.columns[tensor.name]) >= 1
            onnx.checker.check_model(model.graph)
            named = [value.name for value in model.graph.graph.input]
            assert named == [tensor.name for tensor in model.inputs]
        assert set(OUTPUTS) <= known.keys()

    @pytest.mark.parametrize("step", ["features", "nn", "mixed", "named", "grouped", "other", "score"])
    def test_a_wrong_graph_is_found(self, lowered: Any, placement: Placement, golden: pa.Table, step: str) -> None:
        models = []
        for model in placement.models:
            if model.steps == (step,):
                graph = onnx.ModelProto()
                graph.CopyFrom(model.graph)
                # the node that writes the tensor writes a little more than it
                for node in graph.graph.node:
                    if node.output[0] == model.outputs[0].name:
                        node.op_type = "Add"
                        node.input.append("wrong")
                dtype = np.dtype(model.outputs[0].dtype)
                off = numpy_helper.from_array(np.array(1 if dtype.kind == "i" else 0.001, dtype), "wrong")
                graph.graph.initializer.append(off)
                model = dataclasses.replace(model, graph=graph)
            models.append(model)
        frame = golden.to_pandas()
        wrong = dataclasses.replace(placement, models=tuple(models))
        words = rf"step {step} differs from its training library by .*golden row \d+.*nothing was exported"
        with pytest.raises(ParityError, match=words):
            check_parity(lowered, wrong, tensors(placement, golden), reference_answers(lowered, frame), frame, 1e-5)


RAW = {name: Column(name, "float32", nullable=True) for name in ("p", "q", "r")}


def small(outputs: dict[str, str], **steps: Any) -> Any:
    return lower(Stack("s", steps, outputs, ("a", "b")), RAW)


class TestPlace:
    def test_readers_share_what_a_workflow_emits(self, workflow: Any, golden: pa.Table) -> None:
        reads = ("features.age", "features.count", "features.TE_user_y")
        steps = {
            "features": WorkflowStep(workflow),
            "one": ForestStep(forest(3), reads),
            "two": ForestStep(forest(3, seed=1), tuple(reversed(reads))),
        }
        made = Stack("s", steps, {"x": "one.score", "y": "two.score"}, (), {"tokens": ListInput(4)})
        placed = place(lower(made, golden_columns(golden)), 8)
        assert [len(model.outputs) for model in placed.models] == [1, 1, 1]
        assert placed.models[0].outputs[0].width == 3
        assert {column.name for column in placed.signature.inputs} == {"age", "count", "user"}

    def test_an_output_named_like_a_raw_column(self) -> None:
        with pytest.raises(StackError, match="output p has the name of a raw column that goes in"):
            place(small({"p": "one.score"}, one=ForestStep(forest(3), ("p", "q", "r"))), 8)

    def test_an_output_named_like_a_pruned_column(self, workflow: Any, golden: pa.Table) -> None:
        steps = {"features": WorkflowStep(workflow), "one": ForestStep(forest(1), ("features.age",))}
        made = Stack("s", steps, {"idle": "one.score"}, (), {"tokens": ListInput(4)})
        placed = place(lower(made, golden_columns(golden)), 8)
        assert [column.name for column in placed.signature.inputs] == ["age"]

    def test_two_outputs_of_one_column(self) -> None:
        placed = place(small({"x": "one.score", "y": "one.score"}, one=ForestStep(forest(3), ("p", "q", "r"))), 8)
        inputs = {name: RNG.normal(size=(5, 1)).astype(np.float32) for name in RAW}
        served = run_placement(placed, inputs)
        np.testing.assert_array_equal(served["x"], served["y"])

    def test_one_column_twice_in_what_a_net_reads(self) -> None:
        made = small({"y": "one.a"}, one=NetStep(net(2, 2, 0), {"x": ("p", "q", "p")}))
        assert [source.column.name for source in made.steps[0].feeds[0].sources] == ["p", "q"]

    def test_mean_of_columns_in_another_order(self) -> None:
        nets = {
            "one": NetStep(net(3, 2, 1), {"x": ("p", "q", "r")}),
            "two": NetStep(net(3, 2, 2), {"x": ("p", "q", "r")}),
        }
        inputs = {name: RNG.normal(size=(5, 1)).astype(np.float32) for name in RAW}
        lowered = small({"x": "m.a", "y": "m.b"}, **nets, m=MeanStep(("one", "two")))
        two = lowered.steps[1]
        turned = dataclasses.replace(two, columns=tuple(reversed(two.columns)))
        again = lower(lowered.stack, RAW)
        assert turned.columns[0].name == "b"
        straight = run_placement(place(again, 8), inputs)
        both = [straight["one__float32"], straight["two__float32"]]
        np.testing.assert_allclose(straight["x"][:, 0], np.mean([part[:, 0] for part in both], axis=0), atol=1e-7)

    def test_mean_of_different_columns(self) -> None:
        nets = {
            "one": NetStep(net(3, 2, 1), {"x": ("p", "q", "r")}),
            "two": ForestStep(forest(3), ("p", "q", "r")),
        }
        with pytest.raises(StackError, match=r"step m averages one \(a, b\) with two \(score\)"):
            small({"x": "m.a"}, **nets, m=MeanStep(("one", "two")))

    def test_same_bytes_every_time(self, stack: Stack, golden: pa.Table) -> None:
        graphs = [
            [m.graph.SerializeToString() for m in place(lower(stack, golden_columns(golden)), 8).models] for _ in "12"
        ]
        assert graphs[0] == graphs[1]


class TestExport:
    @pytest.fixture
    def whole(self, stack: Stack, golden: pa.Table, tmp_path: Path) -> Stack:
        pq.write_table(golden, tmp_path / "golden.parquet")
        return dataclasses.replace(stack, golden=tmp_path / "golden.parquet")

    def test_export(self, whole: Stack, tmp_path: Path) -> None:
        stages: list[str] = []
        made = export(whole, tmp_path / "repository", max_batch=32, on_stage=stages.append)
        manifest = read_manifest(tmp_path / "repository")
        check_files(tmp_path / "repository", manifest)
        assert manifest == made.manifest
        assert stages[0] == "converting features"
        assert stages[-1] == "writing"
        assert made.parity is not None
        assert max(made.parity.differences.values()) < 1e-5
        kept = pq.read_table(tmp_path / "repository" / "golden.parquet")
        assert kept.column_names == [
            *(column.name for column in manifest.signature.inputs),
            *(f"expected.{name}" for name in OUTPUTS),
        ]
        with pytest.raises(ExportError, match="already holds an exported stack"):
            export(whole, tmp_path / "repository")

    def test_a_failure_leaves_what_was_there(
        self, whole: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export(whole, tmp_path / "repository")
        before = {path: path.read_bytes() for path in (tmp_path / "repository").rglob("*") if path.is_file()}
        monkeypatch.setattr("tristage.export._export.TOLERANCE", -1.0)
        with pytest.raises(ParityError):
            export(whole, tmp_path / "repository", overwrite=True)
        after = {path: path.read_bytes() for path in (tmp_path / "repository").rglob("*") if path.is_file()}
        assert before == after

    def test_without_golden_rows(self, tmp_path: Path, workflow: Any) -> None:
        steps = {"features": WorkflowStep(workflow), "one": ForestStep(forest(1), ("features.age",))}
        made = export(Stack("s", steps, {"z": "one.score"}, (), {"tokens": ListInput(4)}), tmp_path / "repository")
        assert made.parity is None
        assert "no golden rows" in made.manifest.notes[0]

    @pytest.mark.parametrize("with_golden", [True, False])
    def test_a_graph_that_cannot_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_golden: bool) -> None:
        frame = pd.DataFrame({"short": np.array([1, 2, 3], np.int16)})
        pq.write_table(pa.Table.from_pandas(frame), tmp_path / "golden.parquet")
        monkeypatch.chdir(tmp_path)
        # ONNX Runtime has no maximum of 16 bits
        fitted = nvt.Workflow(["short"] >> ops.LambdaOp(lambda column: np.maximum(column, np.int16(2))))
        fitted.fit(nvt.Dataset(frame.copy()))
        golden = tmp_path / "golden.parquet" if with_golden else None
        stack = Stack("s", {"features": WorkflowStep(fitted)}, {"y": "features.short"}, golden=golden)
        with pytest.raises(ArtifactError, match=r"step features: ONNX Runtime cannot run its graph .*Max"):
            export(stack, tmp_path / "repository")

    def test_lists_longer_than_declared(self, whole: Stack, tmp_path: Path, golden: pa.Table) -> None:
        assert max(map(len, golden["tokens"].to_pylist())) > 4
        steps = {"nn": NetStep(net(1, 2, 1, tokens=True), {"x": "count", "tokens": "tokens"})}
        made = export(
            Stack("s", steps, {"z": "nn.a"}, ("a", "b"), {"tokens": ListInput(4)}, whole.golden),
            tmp_path / "repository",
        )
        assert made.parity is not None

    def test_golden_rows_that_nvtabular_cannot_transform(
        self, whole: Stack, tmp_path: Path, golden: pa.Table, capfd: pytest.CaptureFixture[str]
    ) -> None:
        # its Categorify wants at least one value that is not null
        at = golden.column_names.index("idle")
        nulls = pa.array([None] * ROWS, pa.string())
        pq.write_table(golden.set_column(at, "idle", nulls), tmp_path / "golden.parquet")
        words = r"step features: NVTabular's transform fails on the golden rows \(Failed to .* column idle: .+\)"
        with pytest.raises(ArtifactError, match=words):
            export(whole, tmp_path / "repository")
        assert "Traceback" not in capfd.readouterr().err

    def test_null_lists(self, whole: Stack, tmp_path: Path, golden: pa.Table) -> None:
        at = golden.column_names.index("tokens")
        lists = pa.array([None, *golden["tokens"].to_pylist()[1:]], pa.list_(pa.int64()))
        pq.write_table(golden.set_column(at, "tokens", lists), tmp_path / "golden.parquet")
        with pytest.raises(InputError, match='column "tokens", row 0'):
            export(whole, tmp_path / "repository")

    def test_golden_rows_that_lack_a_column(self, whole: Stack, tmp_path: Path, golden: pa.Table) -> None:
        pq.write_table(golden.drop_columns(["age"]), tmp_path / "golden.parquet")
        with pytest.raises(InputError, match="golden rows lack age, which the stack reads"):
            export(whole, tmp_path / "repository")
        assert not (tmp_path / "repository").exists()

    def test_wrong_arguments(self, whole: Stack, tmp_path: Path) -> None:
        with pytest.raises(StackError, match="there is no target gpu; choose one of pip-cpu"):
            export(whole, tmp_path / "repository", target="gpu")
        with pytest.raises(StackError, match="max_batch is 0"):
            export(whole, tmp_path / "repository", max_batch=0)

    def test_workflow_folders(self, tmp_path: Path, workflow: Any) -> None:
        outputs, lists = {"z": "features.age"}, {"tokens": ListInput(4)}
        with pytest.raises(ArtifactError, match=r"step features: .*gone is no folder that Workflow\.save wrote"):
            lower(Stack("s", {"features": WorkflowStep(tmp_path / "gone")}, outputs), {})
        (tmp_path / "workflow.pkl").write_bytes(b"garbage")
        with pytest.raises(ArtifactError, match=r"step features: NVTabular 23\.0?8\.0+ cannot load"):
            lower(Stack("s", {"features": WorkflowStep(tmp_path)}, outputs), {}, trust=True)
        with pytest.raises(ArtifactError, match=r"step features: .*pickle.*--trust"):
            lower(Stack("s", {"features": WorkflowStep(tmp_path)}, outputs), {})
        with pytest.raises(ArtifactError, match=r"step features: a dict is no nvtabular\.Workflow"):
            lower(Stack("s", {"features": WorkflowStep({})}, outputs), {})
        unfitted = nvt.Workflow(["age"] >> ops.Normalize())
        with pytest.raises(ArtifactError, match=r"step features: .*not fitted"):
            lower(Stack("s", {"features": WorkflowStep(unfitted)}, outputs), {})
        workflow.save(str(tmp_path / "saved"))
        made = lower(Stack("s", {"features": WorkflowStep(tmp_path / "saved")}, outputs, (), lists), {}, trust=True)
        assert made.outputs["z"].column.dtype == "float64"

    def test_a_workflow_whose_operators_are_not_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "shop").mkdir()
        (tmp_path / "shop" / "operators.py").write_text(
            "from nvtabular.ops import Operator\n"
            "from tristage.export.workflow import lowers\n"
            "class Same(Operator): pass\n"
            "lowers(Same)(lambda node, graph: {name: node.columns[name] for name in node.names})\n"
        )
        code = "import nvtabular as nvt, pandas as pd; from shop.operators import Same; " + (
            "nvt.Workflow(['age'] >> Same()).fit(nvt.Dataset(pd.DataFrame({'age': [1, 2]}))).save('saved')"
        )
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)
        stack = Stack("s", {"features": WorkflowStep(tmp_path / "saved")}, {"z": "features.age"})
        with pytest.raises(
            ArtifactError, match=r"saved needs the module shop, .*the folder that shop lies in on PYTHON"
        ):
            lower(stack, {}, trust=True)
        monkeypatch.syspath_prepend(str(tmp_path))
        assert lower(stack, {}, trust=True).outputs["z"].column.dtype == "int64"


class TestGolden:
    def test_columns(self, golden: pa.Table) -> None:
        columns = golden_columns(golden)
        assert columns["user"] == Column("user", "string", nullable=True)
        assert columns["count"] == Column("count", "int64")
        assert columns["tokens"] == Column("tokens", "int64", 5, 0)
        table = pa.table({"n": pa.array([1, None]), "when": pa.array([0, 1], pa.timestamp("s")), "b": [True, False]})
        assert golden_columns(table) == {"n": Column("n", "int64", nullable=True), "b": Column("b", "bool")}

    def test_files(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"there is no file .*gone\.parquet of golden rows"):
            read_golden_rows(tmp_path / "gone.parquet")
        (tmp_path / "bad.parquet").write_bytes(b"garbage")
        with pytest.raises(ArtifactError, match=r"bad\.parquet cannot be read as Parquet"):
            read_golden_rows(tmp_path / "bad.parquet")
        pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "none.parquet")
        with pytest.raises(ArtifactError, match=r"none\.parquet hold no rows"):
            read_golden_rows(tmp_path / "none.parquet")

"""The work of a row, counted from an exported repository, against what is known of a small stack by hand."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tristage.errors import RepositoryError
from tristage.export import export
from tristage.export.size.forests import checkpoint_work, recipe_work
from tristage.export.size.graphs import graph_work
from tristage.export.size.repository import sizes_of
from tristage.export.size.work import Sizes, Work, total
from tristage.manifest import read_manifest
from tristage.stack import ForestStep, ListInput, NetStep, Stack, WorkflowStep

nvtabular = pytest.importorskip("nvtabular")
torch = pytest.importorskip("torch")
xgboost = pytest.importorskip("xgboost")
pd = pytest.importorskip("pandas")

GROUPS, BAGS, TREES = 2, 2, (5, 3)  # trees of each group's forests
STEPS, WORDS, WORD, WIDTH = 3, 20, 5, 8  # of the GRU
USERS = 30


def raw_rows(count: int, seed: int) -> Any:
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": [f"u{number}" for number in draw.integers(0, USERS, count)],
            "lang": draw.choice(["en", "de", "fr"], count),
            "tags": [draw.choice(["a", "b", "c"], size).tolist() for size in draw.integers(1, STEPS + 1, count)],
            "x": draw.normal(size=count).astype(np.float32),
            "click": (draw.random(count) < 0.4).astype(np.int8),
        }
    )


def fit_workflow(rows: Any, folder: Path) -> Any:
    from merlin.io import Dataset
    from nvtabular import ops

    store = str(folder)
    user = ["user"] >> ops.Categorify(out_path=store) >> ops.Rename(postfix="_id")
    tags = ["tags"] >> ops.Categorify(out_path=store) >> ops.ListSlice(0, STEPS)
    encoded = ["user", ["user", "lang"]] >> ops.TargetEncoding(["click"], kfold=1, p_smooth=20, out_path=store)
    summed = ["lang"] >> ops.JoinGroupby(cont_cols=["x"], stats=["sum"], out_path=store) >> ops.Rename(postfix="_s")
    group = ["x"] >> ops.Bucketize([0.0]) >> ops.Rename(name="group")
    workflow = nvtabular.Workflow(user + tags + encoded + summed + group + ["x"])
    workflow.fit(Dataset(rows))
    return workflow


def forests(made: Any, rows: Any) -> dict[str, list[Any]]:
    names = ["TE_user_click", "TE_user_lang_click", "x_sum_s" if "x_sum_s" in made else "lang_x_sum_s", "x"]
    boosters: dict[str, list[Any]] = {}
    for group, trees in enumerate(TREES):
        matrix = xgboost.DMatrix(made[names].to_numpy(np.float32), rows["click"].to_numpy(), feature_names=names)
        settings = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "min_child_weight": 2}
        boosters[str(group)] = [
            xgboost.train({**settings, "seed": bag, "subsample": 0.8}, matrix, trees) for bag in (0, 1)
        ]
    return boosters


def dense() -> onnx.ModelProto:
    """[rows, 2] -> 7 -> 1."""
    draw = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(draw.normal(size=size).astype(np.float32), name)
        for name, size in (("w", (7, 2)), ("b", (7,)), ("v", (7, 1)))
    ]
    nodes = [
        helper.make_node("Gemm", ["numeric", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["click"]),
    ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("click", TensorProto.FLOAT, ["rows", 1])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


class Words(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, WORD)
        self.gru = torch.nn.GRU(WORD, WIDTH, batch_first=True)
        self.answer = torch.nn.Linear(WIDTH, 1)

    def forward(self, tags: Any) -> Any:
        return torch.sigmoid(self.answer(self.gru(self.words(tags))[0][:, -1]))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The stack, exported for a target in a layout."""
    folder = tmp_path_factory.mktemp("size")
    rows = raw_rows(600, 1)
    workflow = fit_workflow(rows, folder / "fitted")
    made = workflow.transform(rows)
    torch.manual_seed(0)
    batch = torch.export.Dim("rows", min=1, max=4096)
    words = torch.export.export(
        Words().eval(),
        (),
        kwargs={"tags": torch.ones(4, STEPS, dtype=torch.int64)},
        dynamic_shapes={"tags": {0: batch}},
        strict=False,
    )
    onnx.save(dense(), folder / "dense.onnx")
    raw_rows(120, 2).to_parquet(folder / "golden.parquet")
    stack = Stack(
        name="sized",
        targets=("click",),
        steps={
            "features": WorkflowStep(workflow),
            "trees": ForestStep(forests(made, rows), reads=("features",), group="features.group"),
            "dense": NetStep(folder / "dense.onnx", reads={"numeric": ("features.TE_user_click", "features.x")}),
            "words": NetStep(words, reads={"tags": ("features.tags",)}),
        },
        outputs={"trees": "trees.click", "dense": "dense.click", "words": "words.click", "code": "features.user_id"},
        inputs={"tags": ListInput(STEPS)},
        golden=folder / "golden.parquet",
    )

    def of(target: str, layout: str) -> Path:
        path = folder / f"{target}-{layout}"
        if not path.exists():
            export(stack, path, target=target, layout=layout, trust=True)
        return path

    return of


@pytest.fixture
def exported(repository: Callable[[str, str], Path]) -> Callable[[str, str], Sizes]:
    """What is counted in it."""

    def of(target: str, layout: str) -> Sizes:
        path = repository(target, layout)
        return sizes_of(path, read_manifest(path))

    return of


LAYOUTS = [("pip-cpu", "ensemble"), ("pip-cpu", "fused"), ("ngc-cpu", "ensemble")]


@pytest.mark.parametrize(("target", "layout"), LAYOUTS)
def test_nets_cost_what_their_layers_cost(exported: Any, target: str, layout: str) -> None:
    sizes = exported(target, layout)
    of_dense, answer = 2 * 7 + 7, WIDTH
    projected, recurrent = STEPS * WORD * 3 * WIDTH, STEPS * WIDTH * 3 * WIDTH
    assert sizes.served.macs == of_dense + answer + recurrent
    assert sizes.macs_as_trained == of_dense + answer + recurrent + projected
    # ONNX's own loop also asks the table as it was trained, for the shape of what it looks up
    twice = target == "ngc-cpu"
    assert sizes.served.embedding_rows == STEPS * (1 + twice)
    trained = {name: part["macs_as_trained"] for name, part in sizes.document()["parts"].items()}
    assert sum(trained.values()) == sizes.macs_as_trained
    if layout == "ensemble":
        assert sizes.parts["dense"].macs == of_dense
        assert sizes.parts["words"].macs + sizes.saved["words"] == answer + recurrent + projected
        assert sizes.parts["words"].table_bytes == 4 * WORDS * (3 * WIDTH + twice * WORD)


@pytest.mark.parametrize(("target", "layout"), LAYOUTS)
def test_a_workflow_looks_up_its_keys(exported: Any, target: str, layout: str) -> None:
    work = exported(target, layout).served
    # user's code, three tags' codes, the encodings of user and of user with lang, lang's sum
    assert work.keyed_look_ups == 1 + STEPS + 2 + 1
    # user, three tags, lang, and user with lang: a dictionary serves every table of its keys
    assert work.dictionaries == 1 + STEPS + 1 + 1
    assert work.table_bytes > 8 * USERS


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_a_row_meets_the_trees_of_its_group(exported: Any, layout: str) -> None:
    sizes = exported("pip-cpu", layout)
    work = sizes.parts["trees"]
    assert (work.trees_met, work.trees) == (BAGS * max(TREES), BAGS * sum(TREES))
    assert work.estimated
    assert work.trees_met < work.node_visits <= 3 * work.trees_met
    assert sizes.served.trees_met == work.trees_met


def test_fil_is_sent_every_group_and_says_no_more_than_depths(exported: Any) -> None:
    work = exported("ngc-cpu", "ensemble").served
    assert work.trees >= BAGS * sum(TREES)
    assert work.trees_met == work.trees
    assert not work.estimated


def test_node_visits_are_means_over_the_rows_that_trained(tmp_path: Path) -> None:
    """Of squared errors every row weighs one, so that the mean is that of the training rows themselves."""
    from tristage.export.forest.model import ForestSet
    from tristage.export.forest.read import read_forests
    from tristage.export.forest.sources import write_sources

    draw = np.random.default_rng(3)
    rows = draw.exponential(size=(500, 3)).astype(np.float32)
    booster = xgboost.train(
        {"max_depth": 5, "nthread": 1, "objective": "reg:squarederror"}, xgboost.DMatrix(rows, rows.prod(axis=1)), 6
    )
    depths = [
        {int(line.strip().split(":")[0]): len(line) - len(line.lstrip("\t")) for line in tree.splitlines()}
        for tree in booster.get_dump()
    ]
    leaves = booster.predict(xgboost.DMatrix(rows), pred_leaf=True).astype(int)
    by_hand = sum(np.mean([depth[leaf] for leaf in leaves[:, tree]]) for tree, depth in enumerate(depths))
    assert len(set(itertools.chain.from_iterable(depth.values() for depth in depths))) > 3
    found: ForestSet = read_forests("trees", booster, ("y",), False)
    work = recipe_work(tmp_path / write_sources(found, tmp_path))
    assert (work.trees_met, work.trees, work.estimated) == (6, 6, True)
    assert work.node_visits == pytest.approx(by_hand, rel=1e-6)


def test_products_of_many_rows_and_loops_over_steps(tmp_path: Path) -> None:
    """A MatMul of [rows, 4, 5] with [5, 6], a Conv, and a Scan over the four steps with a MatMul within."""
    draw = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name)

    def value(name: str, *shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "u"], ["p"]),
            helper.make_node("Add", ["p", "s"], ["t"]),
            helper.make_node("Identity", ["t"], ["shown"]),
        ],
        "body",
        [value("s", "rows", 6), value("x", "rows", 6)],
        [value("t", "rows", 6), value("shown", "rows", 6)],
    )
    nodes = [
        helper.make_node("MatMul", ["in", "w"], ["wide"]),
        helper.make_node("Transpose", ["wide"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("Scan", ["zeros", "steps"], ["end", "every"], body=body, num_scan_inputs=1),
        helper.make_node("Conv", ["in", "k"], ["c"], pads=[1, 1]),
        helper.make_node("Gemm", ["end", "g"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("in", "rows", 4, 5), value("zeros", "rows", 6)],
        [value("out", "rows", 2), value("c", "rows", 7, 5)],
        [constant("w", 5, 6), constant("u", 6, 6), constant("k", 7, 4, 3), constant("g", 6, 2)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    work, shapes = graph_work([tmp_path / "g.onnx"], {})
    assert shapes["wide"] == (1, 4, 6)
    assert work.macs == 4 * 5 * 6 + 4 * 6 * 6 + 7 * 5 * 4 * 3 + 6 * 2


def test_work_adds_up() -> None:
    one, other = Work(trees_met=2, macs=3), Work(macs=4, estimated=False, node_visits=1.5)
    assert total([one, other]) == Work(trees_met=2, macs=7, estimated=False, node_visits=1.5)
    assert total([]) == Work()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name, read in (("graph.onnx", lambda file: graph_work([file], {})), ("checkpoint.tl", checkpoint_work)):
        (tmp_path / name).write_bytes(b"\x08nothing of the kind")
        with pytest.raises(RepositoryError, match=name):
            read(tmp_path / name)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(RepositoryError, match=r"recipe\.json"):
        recipe_work(tmp_path / "recipe.json")


def test_inspect_shows_the_work_and_adds_it_to_the_manifest(repository: Any, cli: Callable[..., Any]) -> None:
    path = repository("pip-cpu", "ensemble")
    shown = cli("inspect", path)
    assert shown.code == 0, shown.err
    for words in ("the work of a row", "multiply-accumulates", "searches of dictionaries"):
        assert words in shown.out
    document = json.loads(cli("inspect", path, "--json").out)
    assert document["stack"] == "sized"
    assert document["sizes"]["a_row"]["trees_met"] == BAGS * max(TREES)
    assert document["sizes"]["parts"]["dense"]["macs"] == 21
    assert document["sizes"]["a_row"]["macs_as_trained"] > document["sizes"]["a_row"]["macs"]
    kept = {key: value for key, value in document.items() if key not in ("sizes", "tensors", "parts")}
    assert kept == json.loads((path / "manifest.json").read_text())

"""Mean steps: NumPy's float64 is the reference, and what is served agrees with it at the edges of a probability too."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xgboost
from onnx import TensorProto, helper

from tristage.columns import Column
from tristage.errors import StackError
from tristage.export import prepare, write
from tristage.export.lower import lower
from tristage.export.mean import Mean
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.place import place
from tristage.export.stack_file import read_stack
from tristage.serving.graph import Graph
from tristage.stack import ForestStep, MeanStep, NetStep, Stack

EDGES = [0.0, 1e-45, 1e-9, 2.0**-24, 1e-3, 0.25, 0.5, 0.75, 1 - 2.0**-24, 1.0, np.nan]
ALL = np.array(list(product(EDGES, repeat=3)), np.float32).T.reshape(3, -1, 1)
MEANS = [
    Mean(),
    Mean((0.5, 0.3, 0.2)),
    Mean((1.4, -0.5, 0.1)),
    Mean(average="logits"),
    Mean((0.7, 0.1, 0.2), average="logits"),
    Mean((0.7, 0.1, 0.2), average="logits", temperature=1.7, bias=-0.4),
    Mean((0.2, 0.2, 0.6), temperature=0.3, bias=2.5),
    Mean(temperature=50.0),
    Mean(bias=-80.0),
]


def served(mean: Mean, feeds: np.ndarray, tmp_path: Path) -> np.ndarray:
    graph = GraphBuilder()
    inputs = [graph.input(f"of{number}", "float32", feeds.shape[2]) for number in range(len(feeds))]
    path = tmp_path / "mean.onnx"
    onnx.save(graph.model([("y", mean.lower(graph, inputs), "float32", feeds.shape[2])]), path)
    return Graph.open(path).run({f"of{number}": rows for number, rows in enumerate(feeds)})["y"]


@pytest.mark.parametrize("mean", MEANS, ids=str)
@pytest.mark.parametrize("rows", [ALL.shape[1], 1, 0])
def test_it_is_what_numpy_answers(mean: Mean, rows: int, tmp_path: Path) -> None:
    feeds = ALL[:, :rows]
    got = served(mean, feeds, tmp_path)
    want = mean.predict(list(feeds))
    assert got.shape == want.shape == (rows, 1)
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-7)


def test_a_mean_of_logits_by_hand() -> None:
    p, q = np.float32(0.2), np.float32(0.9)
    logit = 0.25 * np.log(0.2 / 0.8) + 0.75 * np.log(0.9 / 0.1)
    want = 1 / (1 + np.exp(-(logit / 2 + 0.1)))
    got = Mean((0.25, 0.75), "logits", 2.0, 0.1).predict([np.array([[p]]), np.array([[q]])])
    np.testing.assert_allclose(got, [[want]], atol=1e-7)


MARGINS = np.array(
    list(product([-np.inf, -200.0, -30.0, -1e-3, 0.0, 1.0, 17.5, 88.0, np.inf, np.nan], repeat=3)), np.float32
).T.reshape(3, -1, 1)


@pytest.mark.parametrize("weights", [None, (0.5, 0.3, 0.2)])
@pytest.mark.parametrize("calibration", [(1.0, 0.0), (1.7, -0.4)])
@pytest.mark.parametrize("rows", [MARGINS.shape[1], 1, 0])
def test_margins_are_what_numpy_answers(
    weights: Any, calibration: tuple[float, float], rows: int, tmp_path: Path
) -> None:
    mean, feeds = Mean(weights, "margins", *calibration), MARGINS[:, :rows]
    with np.errstate(invalid="ignore"):  # of infinities of both signs there is no mean
        want = mean.predict(list(feeds))
    got = served(mean, feeds, tmp_path)
    assert got.shape == want.shape == (rows, 1)
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_margins_know_what_predictions_do_not() -> None:
    margins = [np.array([[20.0]], np.float32), np.array([[-4.0]], np.float32)]
    predictions = [(1 / (1 + np.exp(-margin.astype(np.float64)))).astype(np.float32) for margin in margins]
    assert predictions[0] == 1.0
    np.testing.assert_allclose(Mean(average="margins").predict(margins), 1 / (1 + np.exp(-8.0)), rtol=1e-6)
    assert Mean(average="logits").predict(predictions) < 0.999 < Mean(average="margins").predict(margins)


def net(seed: int) -> onnx.ModelProto:
    weights = np.random.default_rng(seed).normal(size=(2, 2)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Sigmoid", ["z"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, (2, 2), weights.ravel())],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def stack(mean: MeanStep) -> Stack:
    nets = {name: NetStep(net(number), {"x": ("p", "q")}) for number, name in enumerate("abc")}
    return Stack("s", {**nets, "m": mean}, {"y": "m.like", "z": "m.quote"}, targets=("like", "quote"))


def test_a_step_of_no_weight_is_not_served_nor_what_only_it_reads() -> None:
    made = Stack(
        "s",
        {
            "a": NetStep(net(0), {"x": ("p", "q")}),
            "b": NetStep(net(1), {"x": ("p", "q")}),
            "d": NetStep(net(2), {"x": ("a.like", "p")}),
            "only": NetStep(net(3), {"x": ("d.like", "d.quote")}),
            "m": MeanStep(("a", "b", "only"), weights={"a": 3, "only": 0, "b": 1}),
        },
        {"y": "m.like"},
        targets=("like", "quote"),
    )
    assert set(made.steps) == {"a", "b", "m"}
    step = made.steps["m"]
    assert isinstance(step, MeanStep)
    assert (step.references(), step.shares()) == (("a", "b"), (0.75, 0.25))


def test_a_step_of_no_weight_that_another_reads_is_served() -> None:
    made = Stack(
        "s",
        {
            "a": NetStep(net(0), {"x": ("p", "q")}),
            "b": NetStep(net(1), {"x": ("a.like", "q")}),
            "m": MeanStep(("a", "b"), weights={"a": 0, "b": 1}),
        },
        {"y": "m.like"},
        targets=("like", "quote"),
    )
    assert set(made.steps) == {"a", "b", "m"}


def test_a_step_that_nobody_names_is_still_refused() -> None:
    with pytest.raises(StackError, match="nobody reads step c"):
        stack(MeanStep(("a", "b")))


def test_it_is_served_as_it_is_declared() -> None:
    made = stack(MeanStep(("a", "b", "c"), {"a": 2.0, "b": 1.0, "c": 1.0}, "logits", 1.5, 0.25))
    lowered = lower(made, {name: Column(name, "float32") for name in "pq"})
    placed = place(lowered, 8)
    body = next(step.body for step in lowered.steps if step.name == "m")
    assert body == Mean((0.5, 0.25, 0.25), "logits", 1.5, 0.25)
    assert [model.name for model in placed.models][-1] == "s_m"


class Two(torch.nn.Module):
    """A logit and what becomes of it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        logits = 9 * self.layer(x)
        p = torch.sigmoid(logits)
        return {"like": p[:, 0], "quote": p[:, 1], "like_margin": logits[:, 0], "quote_margin": logits[:, 1]}


def test_margins_of_nets_and_forests_are_averaged(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    rows = draw.normal(size=(300, 2)).astype(np.float32)
    forests = {
        target: xgboost.train(
            {"objective": "binary:logistic", "seed": at}, xgboost.DMatrix(rows, rows[:, at] + rows[:, 1] > 0), 5
        )
        for at, target in enumerate(("like", "quote"))
    }
    golden = tmp_path / "golden.parquet"
    pq.write_table(pa.table({"p": rows[:, 0], "q": rows[:, 1]}), golden)
    net = Two(1)
    made = Stack(
        "s",
        {
            "forest": ForestStep(forests, ("p", "q"), margins=True),
            "net": NetStep(net, {"x": ("p", "q")}, examples={"x": rows[:2]}),
            "m": MeanStep(("forest", "net"), {"forest": 1, "net": 3}, "margins", 1.5, -0.25),
        },
        {"y": "m.like", "z": "m.quote"},
        targets=("like", "quote"),
        golden=golden,
    )
    prepared = prepare(made)
    for at, (output, target) in enumerate((("y", "like"), ("z", "quote"))):
        margin = forests[target].inplace_predict(rows, predict_type="margin").astype(np.float64)
        with torch.inference_mode():
            margin = margin / 4 + 0.75 * 9 * net.layer(torch.from_numpy(rows)).numpy()[:, at].astype(np.float64)
        np.testing.assert_allclose(prepared.expected[output], 1 / (1 + np.exp(-(margin / 1.5 - 0.25))), atol=1e-6)
    assert prepared.parity is not None
    assert prepared.parity.differences["m"] < 1e-6
    assert not prepared.parity.edge.any()
    write(prepared, tmp_path / "repository", layout="fused")


def test_margins_that_are_not_there_are_named() -> None:
    made = stack(MeanStep(("a", "b", "c"), average="margins"))
    with pytest.raises(
        StackError, match=r"step m averages margins, and a has none \(like, quote\); give a forest margins"
    ):
        lower(made, {name: Column(name, "float32") for name in "pq"})


def test_weights_and_the_rest_in_a_stack_file(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        onnx.save(net(number), tmp_path / f"{name}.onnx")
    (tmp_path / "hill.json").write_text(json.dumps({"a": 0.5, "b": 0.0, "c": 1.5}))
    nets = "\n".join(f"  {name}: {{net: {name}.onnx, reads: {{x: [p, q]}}}}" for name in "abc")
    (tmp_path / "stack.yaml").write_text(
        f"name: s\ntargets: [like, quote]\nsteps:\n{nets}\n"
        "  m: {mean: [a, b, c], weights: hill.json, average: logits, temperature: 1.5, bias: -1}\n"
        "outputs: {y: m.like}\n"
    )
    made = read_stack(tmp_path / "stack.yaml")
    assert set(made.steps) == {"a", "c", "m"}
    assert made.steps["m"] == MeanStep(("a", "b", "c"), {"a": 0.5, "b": 0.0, "c": 1.5}, "logits", 1.5, -1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"weights": {"a": 1}}, "weights have none for b; give 0 to leave it out"),
        ({"weights": {"a": 1, "b": 1, "c": 1}}, "weights have one for c, which is not averaged; those are a, b"),
        ({"weights": {"a": "x", "b": 1}}, "weights have 'x' for a; give a number"),
        ({"weights": {"a": True, "b": 1}}, "weights have True for a; give a number"),
        ({"weights": {"a": float("nan"), "b": 1}}, "weights have nan for a; give a number"),
        ({"weights": {"a": 1, "b": -1}}, "weights sum to 0; a weighted mean divides by their sum"),
        ({"weights": "nowhere.json"}, "weights, nowhere.json, cannot be read"),
        ({"average": "geometric"}, "average is 'geometric'; give predictions, logits or margins"),
        ({"temperature": 0}, "temperature is 0; give a number above 0"),
        ({"temperature": "hot"}, "temperature is 'hot'; give a number above 0"),
        ({"bias": float("inf")}, "bias is inf; give a number"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, Any], says: str) -> None:
    with pytest.raises(StackError, match=says):
        MeanStep(("a", "b"), **given)


def test_a_file_that_holds_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text("[1, 2]")
    with pytest.raises(StackError, match="hold no object"):
        MeanStep(("a", "b"), tmp_path / "w.json")

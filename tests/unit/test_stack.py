"""A stack is checked when it is built; every error names the step or column at fault and says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from tristage.columns import Column
from tristage.errors import StackError
from tristage.export.lower import lower
from tristage.stack import ForestStep, ListInput, MeanStep, NetStep, Stack, WorkflowStep, split_reference

FEATURES = WorkflowStep("workflow")


def forest(*reads: str, **rest: Any) -> ForestStep:
    return ForestStep("m.ubj", reads, **rest)


def test_order_puts_each_step_after_those_it_reads() -> None:
    stack = Stack(
        "s",
        {
            "score": MeanStep(("top", "xgb")),
            "top": forest("features", "xgb", "nn"),
            "nn": NetStep("n.onnx", {"x": ("features.a", "raw"), "y": ("xgb",)}),
            "xgb": forest("features.b_*", group="features.group"),
            "features": FEATURES,
        },
        {"like": "score.like"},
    )
    order = stack.order()
    assert sorted(order) == sorted(stack.steps)
    for name in order:
        assert all(order.index(read) < order.index(name) for read in stack.reads_steps(name))
    assert stack.reads_steps("top") == {"features", "xgb", "nn"}
    assert stack.reads_steps("nn") == {"features", "xgb"}
    assert stack.reads_steps("features") == set()


def test_cycle() -> None:
    steps = {"one": forest("two"), "two": forest("three.x"), "three": forest("one")}
    with pytest.raises(
        StackError, match=r"steps of stack s read each other in a circle: .*->.*earlier steps"
    ) as caught:
        Stack("s", steps, {"y": "one.score"})
    assert caught.value.step in steps
    words = str(caught.value).split(": ")[1].split(";")[0].split(" -> ")
    assert words[0] == words[-1]
    for reader, read in zip(words, words[1:], strict=False):
        assert read in steps[reader].references()[0]


def test_step_that_reads_itself() -> None:
    with pytest.raises(StackError, match="in a circle: one -> one"):
        Stack("s", {"one": forest("a", "one")}, {"y": "one.score"})


def test_unknown_step() -> None:
    with pytest.raises(
        StackError, match=r"step xgb reads 'featurs.a', but there is no step 'featurs'; steps are"
    ) as caught:
        Stack("s", {"features": FEATURES, "xgb": forest("featurs.a", "features")}, {"y": "xgb.score"})
    assert caught.value.step == "xgb"


def test_unknown_step_of_an_output() -> None:
    for wrong in ("xgbb.score", "xgb", "score"):
        with pytest.raises(
            StackError, match=rf"output y is '{wrong}'; write it as step.column with one of the steps xgb"
        ):
            Stack("s", {"xgb": forest("a")}, {"y": wrong})


def test_unused_step() -> None:
    steps = {"features": FEATURES, "xgb": forest("features"), "idle": forest("xgb"), "more": forest("idle")}
    with pytest.raises(StackError, match="nobody reads step idle; remove it, or name it in outputs") as caught:
        Stack("s", steps, {"y": "xgb.score"})
    assert caught.value.step == "idle"
    Stack("s", steps, {"y": "xgb.score", "z": "more.score"})


@pytest.mark.parametrize("name", ["", "1x", "a-b", "a b", "é", "a.b", "_x", "a/b"])
def test_names(name: str) -> None:
    good = {"xgb": forest("a")}
    with pytest.raises(StackError, match=r"is not a name; use letters, digits and underscores"):
        Stack(name, good, {"y": "xgb.score"})
    with pytest.raises(StackError, match=r"is not a name"):
        Stack("s", {name: forest("a")}, {"y": f"{name}.score"})
    with pytest.raises(StackError, match=r"is not a name"):
        Stack("s", good, {name: "xgb.score"})


def test_nothing_in_it() -> None:
    with pytest.raises(StackError, match="stack s has no steps"):
        Stack("s", {}, {"y": "xgb.score"})
    with pytest.raises(StackError, match="stack s has no outputs"):
        Stack("s", {"xgb": forest("a")}, {})


def test_list_length() -> None:
    with pytest.raises(StackError, match="max_length is 0"):
        ListInput(0)


def test_unknown_column_of_a_step_suggests() -> None:
    onnx = pytest.importorskip("onnx")
    net = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=8,
    )
    raw = {name: Column(name, "float32") for name in ("a", "b")}
    targets = ("like", "retweet")

    def build(reference: str, output: str = "nn.like", *, inputs: dict[str, ListInput] | None = None) -> Any:
        steps = {"nn": NetStep(net, {"x": ("a", "b")}), "top": NetStep(net, {"x": (reference, "b")})}
        return lower(Stack("s", steps, {"y": "top.like", "z": output}, targets, inputs or {}), raw)

    assert build("nn.like").outputs["z"].sources[0].position == 0
    assert build("nn.ret*").steps[1].feeds[0].sources[0].column.name == "retweet"
    with pytest.raises(
        StackError, match=r"step top reads nn\.liek, but step nn has no such column; did you mean like\?"
    ):
        build("nn.liek")
    with pytest.raises(
        StackError, match=r"step top reads nn\.x_\*, but step nn has no such column; it has like, retweet"
    ):
        build("nn.x_*")
    with pytest.raises(StackError, match=r"output z reads nn\.likes, .*did you mean like\?"):
        build("nn.like", "nn.likes")
    assert build("nn.like", "nn.*").outputs["z"].column.length == 2
    with pytest.raises(
        StackError, match=r"step top reads aa, which is neither a step nor a raw column.*known are nn, a, b"
    ):
        build("aa")
    with pytest.raises(
        StackError, match=r"inputs names tokns, which is no raw column that the stack reads; raw columns are a, b"
    ):
        build("nn.like", inputs={"tokns": ListInput(3)})


def test_frozen() -> None:
    steps = {"xgb": forest("a")}
    stack = Stack("s", steps, {"y": "xgb.score"})
    steps["more"] = forest("b")
    assert list(stack.steps) == ["xgb"]
    with pytest.raises(TypeError):
        stack.steps["more"] = forest("b")  # type: ignore[index]


def test_references() -> None:
    assert split_reference("step.column") == ("step", "column")
    assert split_reference("step.te_*") == ("step", "te_*")
    assert split_reference("raw") == ("raw", None)
    assert forest("a", "b", group="c.d").references() == ("a", "b", "c.d")


def test_one_name_needs_no_tuple() -> None:
    one = Stack("s", {"xgb": ForestStep("m.ubj", "a"), "m": MeanStep("xgb")}, {"y": "m.like"}, "like")  # type: ignore[arg-type]
    assert (one.steps["xgb"], one.steps["m"], one.targets) == (forest("a"), MeanStep(("xgb",)), ("like",))

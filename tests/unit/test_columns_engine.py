"""The columns engine: equal to ONNX Runtime, operator by operator, on awkward data."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from columns_parity import ROWS, Both, awkward
from onnx import TensorProto, helper

from tristage.export.columns import pack
from tristage.export.columns.assemble import Unsupported
from tristage.export.onnx_graph import GraphBuilder, onnx_type
from tristage.serving.columns import available
from tristage.serving.columns.call import Columns
from tristage.serving.graph import Graph, GraphError


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


def test_the_engine_is_built() -> None:
    assert available(), "the columns engine was not compiled; see the output of `pip install -v .`"


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_arithmetic(both: Both, op: str, dtype: str) -> None:
    a, b = both.input("a", dtype), both.input("b", dtype, 3)
    three = both.graph.constant(np.array([[1, 2, 3]], dtype))
    both.agree(
        (both.graph.add(op, a, a), dtype, 1),
        (both.graph.add(op, a, b), dtype, 3),
        (both.graph.add(op, b, three), dtype, 3),
        (both.graph.add(op, a, three), dtype, 3),
        (both.graph.add(op, both.graph.scalar(7, dtype), b), dtype, 3),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_division_of_numbers_with_fractions(both: Both, dtype: str) -> None:
    a, b = both.input("a", dtype, 2), both.input("b", dtype, 2)
    both.agree(
        (both.graph.add("Div", a, b), dtype, 2), (both.graph.add("Div", a, both.graph.scalar(3, dtype)), dtype, 2)
    )


@pytest.mark.parametrize("by", [7, -7, 1, 86400, 2**40])
def test_division_of_whole_numbers(both: Both, by: int) -> None:
    a = both.input("a", "int64", 2)
    divisor = both.graph.scalar(by, "int64")
    both.agree((both.graph.add("Div", a, divisor), "int64", 2), (both.graph.add("Mod", a, divisor), "int64", 2))


@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_comparisons(both: Both, op: str, dtype: str) -> None:
    a, b = both.input("a", dtype), both.input("b", dtype, 4)
    limits = both.graph.constant(np.array([[-1, 0, 1, 2]], dtype))
    both.agree(
        (both.graph.add(op, a, b), "bool", 4),
        (both.graph.add(op, a, limits), "bool", 4),
        (both.graph.add(op, limits, a), "bool", 4),
        (both.graph.add(op, b, both.graph.scalar(1, dtype)), "bool", 4),
    )


def test_booleans(both: Both) -> None:
    a, b = both.input("a", "bool"), both.input("b", "bool")
    both.agree(*((both.graph.add(op, a, b), "bool", 1) for op in ("And", "Or", "Xor", "Equal")))


def test_not(both: Both) -> None:
    both.agree((both.graph.add("Not", both.input("a", "bool", 5)), "bool", 5))


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_where(both: Both, dtype: str) -> None:
    when, a, b = both.input("when", "bool"), both.input("a", dtype, 2), both.input("b", dtype)
    both.agree(
        (both.graph.add("Where", when, a, b), dtype, 2),
        (both.graph.add("Where", when, both.graph.scalar(9, dtype), b), dtype, 1),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["Abs", "Neg", "Floor", "Ceil", "Sqrt"])
def test_functions(both: Both, op: str, dtype: str) -> None:
    both.agree((both.graph.add(op, both.input("a", dtype, 2)), dtype, 2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["Log", "Exp", "Sin", "Cos"])
def test_transcendental_functions(both: Both, op: str, dtype: str) -> None:
    a = both.input("a", dtype, 2)
    small = both.graph.add(
        "Where", both.graph.add("Less", both.graph.add("Abs", a), both.graph.scalar(99, dtype)), a, a
    )
    both.agree((both.graph.add(op, small), dtype, 2), (both.graph.add("IsNaN", a), "bool", 2), exact=False)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("op", ["Max", "Min"])
def test_extremes(both: Both, op: str, dtype: str) -> None:
    a, b = both.input("a", dtype), both.input("b", dtype)
    both.agree((both.graph.add(op, a, b), dtype, 1), (both.graph.add(op, a, both.graph.scalar(1, dtype), b), dtype, 1))


def test_clip(both: Both) -> None:
    a = both.input("a", "int64", 3)
    low, high = (both.graph.scalar(bound, "int64") for bound in (-1, 2))
    both.agree((both.graph.add("Clip", a, low, high), "int64", 3), (both.graph.add("Clip", a, low), "int64", 3))


CASTS = [
    *(("bool", to) for to in ("int32", "int64", "float32", "float64")),
    *(("int32", to) for to in ("bool", "int64", "float32", "float64")),
    *(("int64", to) for to in ("bool", "int32", "float32", "float64")),
    *(("float32", to) for to in ("bool", "int32", "int64", "float64")),
    *(("float64", to) for to in ("bool", "int32", "int64", "float32")),
]


@pytest.mark.parametrize(("dtype", "to"), CASTS)
def test_casts(both: Both, dtype: str, to: str) -> None:
    both.agree((both.graph.cast(both.input("a", dtype, 2), dtype, to), to, 2))


def test_upper_bits(both: Both) -> None:
    """What a perfect hash is made of."""
    a = both.input("a", "int64")
    product = both.graph.add("Mul", a, both.graph.scalar(0x1E3779B97F4A7C15, "int64"))
    wide = both.graph.cast(product, "int64", "uint64")
    parts = [
        both.graph.cast(
            both.graph.add("BitShift", wide, both.graph.scalar(by, "uint64"), direction=way), "uint64", "int64"
        )
        for by, way in ((1, "RIGHT"), (60, "RIGHT"), (3, "LEFT"))
    ]
    both.agree(*((part, "int64", 1) for part in parts))


def test_parts_of_a_tensor(both: Both) -> None:
    a = both.input("a", "float32", 6)
    g = both.graph
    turned = g.add("Gather", a, g.constant(np.array([5, 0, 1, 3])), axis=1)
    every_other = g.add("Slice", a, *(g.constant(np.array([bound])) for bound in (1, 6, 1, 2)))
    last = g.add("Gather", a, g.constant(np.array(-1)), axis=1)
    both.agree(
        (turned, "float32", 4),
        (every_other, "float32", 3),
        (g.columns(a, [2], 6), "float32", 1),
        (g.add("Neg", g.columns(a, [1, 2], 6)), "float32", 2),
        (g.add("Unsqueeze", last, g.constant(np.array([1]))), "float32", 1),
        (g.add("Concat", turned, a, g.add("Neg", turned), turned, axis=1), "float32", 18),
        (g.add("Mul", every_other, g.columns(a, [4], 6)), "float32", 3),
    )


def test_one_tensor_in_two_places(both: Both) -> None:
    a = both.input("a", "int64")
    g = both.graph
    more = g.add("Add", a, g.scalar(1, "int64"))
    first = g.concat([more, a])
    second = g.concat([a, more, first])
    both.agree((more, "int64", 1), (first, "int64", 2), (second, "int64", 4), (g.add("Mul", first, more), "int64", 2))


def test_sums_of_whole_numbers(both: Both) -> None:
    g = both.graph
    a, b = g.add("Mod", both.input("a", "int64", 5), g.scalar(10**9, "int64")), both.input("b", "bool", 4)
    axis = g.constant(np.array([1]))
    both.agree(
        (g.add("ReduceSum", a, axis, keepdims=1), "int64", 1),
        (g.add("ReduceSum", g.cast(b, "bool", "int32"), axis, keepdims=1), "int32", 1),
    )


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64", "bool"])
def test_tables(both: Both, dtype: str, large: bool) -> None:
    size = 300_000 if large else 40
    draw = np.random.default_rng(0)
    g = both.graph
    one, two = g.array((size * (8 if dtype == "bool" else 1),), dtype), g.array((size, 3), dtype)
    one[:], two[:] = draw.integers(0, 2, one.shape), draw.integers(0, 2, two.shape)
    number = g.add("Mod", both.input("a", "int64", 2), g.scalar(size, "int64"))
    column = g.columns(number, [1], 2)
    back = g.add("Sub", column, g.scalar(size, "int64"))  # below 0: from the end
    row = g.add("Squeeze", back, g.constant(np.array([1])))
    both.agree(
        (g.add("Gather", g.constant(one), number, axis=0), dtype, 2),
        (g.add("Gather", g.constant(two), row, axis=0), dtype, 3),
    )


def test_a_row_that_a_table_lacks_is_an_error(both: Both) -> None:
    a = both.input("a", "int64")
    table = both.graph.constant(np.arange(5.0))
    _, engine = both.open((both.graph.add("Gather", table, a, axis=0), "float64", 1))
    for wrong in (5, -6, 2**62):
        with pytest.raises(GraphError, match=f"row {wrong} is not in a table"):
            engine.run({"a": np.array([[0], [wrong]])})
    np.testing.assert_array_equal(engine.run({"a": np.array([[-5], [4]])})["out0"], [[0.0], [4.0]])


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_labels(both: Both, count: int) -> None:
    draw = np.random.default_rng(count)
    keys = np.unique(np.concatenate([draw.integers(-3, 4, count), draw.integers(-(2**63), 2**63 - 1, count)]))[:count]
    labels = {int(key): int(label) for key, label in zip(keys, draw.integers(-99, 99, count), strict=False)} or {7: 1}
    a = both.input("a", "int64", 2)
    both.agree((both.graph.label_encode(a, labels, -5), "int64", 2))


def bags(both: Both, table: np.ndarray, weighted: bool, length: int = 9) -> tuple[str, str, int]:
    """An embedding that is pooled: Gather, Mul by a mask, ReduceSum."""
    g = both.graph
    number = g.add("Mod", both.input("ids", "int64", length), g.scalar(len(table), "int64"))
    rows = g.add("Gather", g.constant(table), number, axis=0)
    if weighted:
        mask = g.cast(both.input("mask", "bool", length), "bool", "float32")
        rows = g.add("Mul", rows, g.add("Unsqueeze", mask, g.constant(np.array([2]))))
    return g.add("ReduceSum", rows, g.constant(np.array([1])), keepdims=0), "float32", table.shape[1]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("width", [1, 7, 192])
def test_bags(both: Both, width: int, weighted: bool) -> None:
    table = np.random.default_rng(0).normal(size=(50, width)).astype(np.float32)
    reference, engine = both.open(bags(both, table, weighted))
    for rows in ROWS:
        given = both.given(rows)
        np.testing.assert_allclose(engine.run(given)["out0"], reference.run(given)["out0"], rtol=1e-5, atol=1e-6)


def test_a_masked_row_that_is_not_finite_still_counts(both: Both) -> None:
    table = np.full((3, 4), np.inf, np.float32)
    reference, engine = both.open(bags(both, table, weighted=True))
    given = {"ids": np.zeros((2, 9), np.int64), "mask": np.zeros((2, 9), bool)}
    assert np.isnan(reference.run(given)["out0"]).all()
    assert np.isnan(engine.run(given)["out0"]).all()


def test_many_threads(both: Both) -> None:
    a = both.input("a", "float32", 3)
    reference, engine = both.open(
        (both.graph.add("Mul", a, a), "float32", 3), (both.graph.add("Sqrt", a), "float32", 3)
    )
    given = [{"a": awkward("float32", rows, 3, rows)} for rows in range(1, 200)]
    with ThreadPoolExecutor(8) as pool:
        for made, its in zip(pool.map(engine.run, given), given, strict=True):
            np.testing.assert_array_equal(made["out1"], reference.run(its)["out1"])


def test_arrays_that_do_not_fit(both: Both) -> None:
    a, b = both.input("a", "float32", 3), both.input("b", "float32")
    _, engine = both.open((both.graph.add("Mul", a, b), "float32", 3))
    good = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 1), np.float32)}
    with pytest.raises(GraphError, match="input a must be float32, not float64"):
        engine.run({**good, "a": np.ones((2, 3))})
    for wrong in (np.ones((3, 1), np.float32), np.ones((2, 2), np.float32), np.ones((0, 1), np.float32)):
        with pytest.raises(GraphError, match="array 1 has another shape"):
            engine.run({**good, "b": wrong})
    turned = np.ones((6, 4), np.float32)[::3, :3]
    np.testing.assert_array_equal(engine.run({**good, "a": turned})["out0"], np.ones((2, 3)))
    shifted = np.frombuffer(b"\0" + np.ones((2, 3), np.float32).tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 3)
    np.testing.assert_array_equal(engine.run({**good, "a": shifted})["out0"], np.ones((2, 3)))


UNSUPPORTED: list[tuple[str, Callable[[GraphBuilder, str], str]]] = [
    ("rows put together", lambda g, a: g.add("Concat", a, a, axis=0)),
    ("rows sliced", lambda g, a: g.add("Slice", a, g.constant(np.array([0])), g.constant(np.array([1])))),
    ("rows summed", lambda g, a: g.add("ReduceSum", a, g.constant(np.array([0])), keepdims=1)),
    ("rows turned", lambda g, a: g.add("Transpose", a, perm=[1, 0])),
    ("a constant a row", lambda g, a: g.add("Add", a, g.constant(np.ones((4, 2))))),
    ("what is computed", lambda g, a: g.add("Gather", a, g.add("Cast", a, to=onnx_type("int64")), axis=1)),
]


@pytest.mark.parametrize("which", [name for name, _ in UNSUPPORTED])
def test_what_has_no_operation_is_not_packed(tmp_path: Path, which: str) -> None:
    graph = GraphBuilder(tmp_path)
    made = dict(UNSUPPORTED)[which](graph, graph.input("a", "float64", 2))
    with pytest.raises(Unsupported):
        pack(graph.model([("out", made, "float64", 2)]), tmp_path / "columns.bin", "graph.onnx")


def test_a_mean_of_predictions(both: Both) -> None:
    a, b, c = (both.input(name, "float32", 4) for name in "abc")
    both.agree((both.graph.add("Mean", a, b), "float32", 4), (both.graph.add("Mean", a, b, c), "float32", 4))


def test_reshapes(tmp_path: Path) -> None:
    """Lists of short rows, side by side; tensors of other ranks than two go out as they are."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
            helper.make_node("Reshape", ["rows", "shape"], ["flat"]),
            helper.make_node("Gather", ["ids", "second"], ["one"], axis=1),
            helper.make_node("Neg", ["rows"], ["minus"]),
        ],
        "graph",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", 3])],
        [
            helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["rows", 12]),
            helper.make_tensor_value_info("one", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("minus", TensorProto.FLOAT, ["rows", 3, 4]),
        ],
        [
            onnx.numpy_helper.from_array(np.arange(40, dtype=np.float32).reshape(10, 4), "table"),
            onnx.numpy_helper.from_array(np.array([-1, 12]), "shape"),
            onnx.numpy_helper.from_array(np.array(1), "second"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, tmp_path / "graph.onnx")
    call = pack(model, tmp_path / "columns.bin", "graph.onnx")
    ids = np.random.default_rng(0).integers(-10, 10, (70, 3))
    made, wanted = Columns.open(tmp_path, call).run({"ids": ids}), Graph.open(tmp_path / "graph.onnx").run({"ids": ids})
    for name, values in wanted.items():
        np.testing.assert_array_equal(made[name], values)
        assert made[name].shape == values.shape

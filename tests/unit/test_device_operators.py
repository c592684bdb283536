"""Operators as torch computes them, each compared with ONNX Runtime on awkward numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tristage.serving.device.graph import DeviceGraph
from tristage.serving.device.operators import OPERATORS, Faults, Unsupported
from tristage.serving.device.tables import Budget

CPU = torch.device("cpu")
INF, NAN = np.inf, np.nan
FLOATS = np.array([[0.0, -0.0, 1.5, -2.5], [INF, -INF, NAN, 1e-40], [3e38, -0.5, 0.5, 2.0]], np.float32)
DOUBLES = FLOATS.astype(np.float64) * 1.1
FEW = np.array([[0.3, -1.2, 2.0, -0.1], [1.1, 0.7, -0.6, 0.2], [0.0, 5.0, -3.0, 0.25]], np.float32)
WHOLE = np.array([[0, -1, 7, 2**62], [-(2**63), 2**63 - 1, -7, 3], [1, 2, -3, 100]], np.int64)
SMALL = np.array([[0, -1, 7, 12], [-5, 3, -7, 3], [1, 2, -3, 100]], np.int64)
UNSIGNED = WHOLE.view(np.uint64)
TRUTH = FLOATS > 0
AXIS1 = np.array([1])


def model_of(
    op: str, arrays: list[Any], constants: dict[int, Any], outputs: int, domain: str, attributes: dict[str, Any]
) -> onnx.ModelProto:
    names = [f"x{at}" for at in range(len(arrays) + len(constants))]
    given = iter(arrays)
    inputs, initializers = [], []
    for at, name in enumerate(names):
        if at in constants:
            initializers.append(numpy_helper.from_array(np.asarray(constants[at]), name))
            continue
        array = next(given)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(name, kind, ["rows", *array.shape[1:]]))
    node = helper.make_node(op, names, [f"y{at}" for at in range(outputs)], domain=domain, **attributes)
    made = [onnx.ValueInfoProto(name=f"y{at}") for at in range(outputs)]
    graph = helper.make_graph([node], "one", inputs, made, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 4)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def both(model: onnx.ModelProto, arrays: list[Any]) -> tuple[list[Any], list[Any]]:
    """What ONNX Runtime answers, and what a device does."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)}
    expected = session.run(None, feed)
    for value, array in zip(model.graph.output, expected, strict=True):
        value.CopyFrom(
            helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        )
    faults = Faults()
    graph = DeviceGraph.of("one", model, Path(), CPU, Budget(CPU, 1 << 40).place, faults)
    made = graph.run({name: torch.from_numpy(array.copy()) for name, array in feed.items()})
    _, flags = faults.take()
    assert flags is None or not flags.any()
    return expected, [made[value.name].numpy() for value in model.graph.output]


def case(
    op: str,
    *arrays: Any,
    constants: dict[int, Any] | None = None,
    outputs: int = 1,
    domain: str = "",
    **attributes: Any,
) -> Any:
    kinds = "-".join(str(array.dtype) for array in arrays)
    said = "-".join(f"{key}={value}" for key, value in attributes.items() if not isinstance(value, list | bytes))
    return pytest.param(op, list(arrays), constants or {}, outputs, domain, attributes, id=f"{op}-{kinds}-{said}")


UNARY = ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "IsNaN", "IsInf", "Log", "Neg", "Reciprocal", "Relu", "Round")
UNARY += ("Sigmoid", "Sign", "Sin", "Softsign", "Sqrt", "Tanh", "Elu", "LeakyRelu", "HardSigmoid", "Softplus", "Gelu")
UNARY += ("HardSwish", "Mish")
TO = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.UINT64)
CASES = [
    *(case(op, FLOATS) for op in UNARY),
    *(case(op, DOUBLES) for op in ("Abs", "Exp", "Log", "Sqrt", "Floor", "IsNaN", "Sign")),
    *(case("Cast", array, to=to) for array in (FLOATS, DOUBLES, WHOLE, UNSIGNED, TRUTH) for to in TO[:-1]),
    # floats that no unsigned number can hold become what the processor makes of them
    *(case("Cast", array, to=TO[-1]) for array in (FEW, WHOLE, TRUTH)),
    case("Gelu", FLOATS, approximate=b"tanh"),
    *(case("Cast", SMALL, to=to) for to in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16)),
    *(
        case(op, a, b)
        for op in ("Add", "Mul", "Sub")
        for a, b in ((FLOATS, FLOATS[::-1].copy()), (WHOLE, SMALL), (UNSIGNED, UNSIGNED[::-1].copy()))
    ),
    *(
        case(op, a, b)
        for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
        for a, b in ((FLOATS, FLOATS[::-1].copy()), (WHOLE, SMALL), (UNSIGNED, UNSIGNED[::-1].copy()))
    ),
    *(case(op, WHOLE, SMALL) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    *(case(op, TRUTH, ~TRUTH[::-1]) for op in ("And", "Or", "Xor")),
    case("Not", TRUTH),
    case("Div", FLOATS, FLOATS[::-1].copy()),
    case("Div", WHOLE[1:], np.array([[2, -3, 5, 7]] * 2)),
    case("Mod", WHOLE, np.full_like(WHOLE, 10)),
    case("Mod", WHOLE, np.full_like(WHOLE, -10)),
    case("Mod", FEW, np.full_like(FEW, 0.7), fmod=1),
    case("Pow", np.abs(FEW), FEW),
    *(case("BitShift", UNSIGNED, constants={1: np.uint64(by)}, direction="RIGHT") for by in (0, 1, 33, 63)),
    *(case("BitShift", UNSIGNED, constants={1: np.uint64(by)}, direction="LEFT") for by in (1, 33)),
    case("BitShift", UNSIGNED.astype(np.uint32), constants={1: np.uint32(5)}, direction="RIGHT"),
    case("BitShift", UNSIGNED.astype(np.uint8), constants={1: np.uint8(5)}, direction="RIGHT"),
    *(case(op, FEW, FEW[::-1].copy(), FEW * 2) for op in ("Max", "Min", "Sum", "Mean")),
    case("Max", FLOATS, FLOATS[::-1].copy()),
    case("Clip", FEW, constants={1: np.float32(-1), 2: np.float32(1)}),
    case("Clip", SMALL, constants={1: np.int64(0), 2: np.int64(10)}),
    *(case("Where", TRUTH, a, b) for a, b in ((FLOATS, FEW), (WHOLE, SMALL))),
    case("PRelu", FEW, constants={1: np.array([0.1, 0.2, 0.3, 0.4], np.float32)}),
    # what moves numbers
    case("Identity", FLOATS),
    case("Dropout", FLOATS),
    case("EyeLike", FEW),
    case("EyeLike", FEW, dtype=TensorProto.INT64),
    case("Concat", FLOATS, FEW, axis=1),
    case("Concat", UNSIGNED, UNSIGNED, axis=-1),
    case("Reshape", FEW, constants={1: np.array([-1, 2, 2])}),
    case("Reshape", FEW, constants={1: np.array([0, 2, -1])}),
    case("Flatten", FEW.reshape(3, 2, 2)),
    case("Flatten", FEW.reshape(3, 2, 2), axis=-1),
    case("Squeeze", FEW[:, :1], constants={1: AXIS1}),
    case("Unsqueeze", FEW, constants={1: np.array([-1, 1])}),
    case("Transpose", FEW.reshape(3, 2, 2), perm=[0, 2, 1]),
    case("Transpose", FEW),
    case("Expand", FEW[:, :1], constants={1: np.array([1, 5])}),
    case("Tile", FEW, constants={1: np.array([1, 3])}),
    case("Slice", FEW, constants={1: np.array([1]), 2: np.array([3]), 3: AXIS1}),
    case("Slice", FEW, constants={1: np.array([-3]), 2: np.array([2**63 - 1]), 3: AXIS1, 4: np.array([2])}),
    case("Slice", FEW, constants={1: np.array([-1]), 2: np.array([-(2**63)]), 3: AXIS1, 4: np.array([-1])}),
    case("Slice", FEW, constants={1: np.array([3]), 2: np.array([0]), 3: AXIS1, 4: np.array([-2])}),
    case("Slice", FEW, constants={1: np.array([3]), 2: np.array([3]), 3: AXIS1}),
    case("Split", FEW, constants={1: np.array([1, 3])}, outputs=2, axis=1),
    case("Split", FEW, outputs=2, axis=1, num_outputs=2),
    case("Pad", FEW, constants={1: np.array([0, 1, 0, 2]), 2: np.float32(9)}),
    case("Pad", FEW, constants={1: np.array([1, 2]), 2: np.float32(9), 3: AXIS1}),
    case("Trilu", FEW),
    case("Trilu", FEW, constants={1: np.int64(1)}, upper=0),
    # what joins many into one
    *(
        case(op, FEW.reshape(3, 2, 2), constants={1: axes}, keepdims=keeps)
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2")
        for axes in (AXIS1, np.array([-1, 1]))
        for keeps in (0, 1)
    ),
    case("ReduceSum", FEW),
    case("ReduceSum", SMALL.astype(np.int32), constants={1: AXIS1}),
    case("ReduceSum", FEW, constants={1: np.array([], np.int64)}, noop_with_empty_axes=1),
    *(case(op, np.round(FEW), axis=1, keepdims=keeps) for op in ("ArgMax", "ArgMin") for keeps in (0, 1)),
    *(
        case("TopK", np.round(FEW), constants={1: np.array([3])}, outputs=2, largest=largest)
        for largest in (0, 1)
    ),
    case("CumSum", FEW, constants={1: np.int64(1)}),
    case("OneHot", SMALL % 5, constants={1: np.int64(5), 2: np.array([0, 1], np.float32)}),
    # nets
    case("MatMul", FEW, constants={1: FEW.T.copy()}),
    case("Gemm", FEW, constants={1: FEW, 2: FEW[0, :3].copy()}, transB=1, alpha=0.5, beta=2.0),
    case("Gemm", FEW, constants={1: FEW.T.copy()}),
    case("Einsum", FEW, FEW, equation="ij,kj->ik"),
    case("Softmax", FEW),
    case("Softmax", FEW.reshape(3, 2, 2), axis=1),
    case("LogSoftmax", FEW),
    case("LayerNormalization", FEW, constants={1: FEW[0].copy(), 2: FEW[1].copy()}),
    case("LayerNormalization", FEW, constants={1: FEW[0].copy()}, epsilon=0.1),
    case("BatchNormalization", FEW, constants={1: FEW[0], 2: FEW[1], 3: FEW[2], 4: np.abs(FEW[2])}),
    case("LpNormalization", FEW),
    # tables
    case("Gather", np.array([[0, 3], [-1, 2]]), constants={0: WHOLE.reshape(-1, 1)}),
    case("Gather", FLOATS, constants={1: np.array([3, -1, 0])}, axis=1),
    case("Gather", FLOATS, constants={1: np.int64(2)}, axis=1),
    case("Gather", np.array([[0, 2]], np.int32), constants={0: UNSIGNED}),
    case("GatherElements", FLOATS, np.array([[0, -1, 3, 1]] * 3), axis=1),
    case("GatherND", FEW, np.array([[[1]], [[-1]], [[0]]]), batch_dims=1),
    case("ScatterElements", FEW, np.array([[0], [3], [-2]]), FEW[:, :1].copy(), axis=1),
    case(
        "LabelEncoder", WHOLE, domain="ai.onnx.ml",
        keys_int64s=[7, -1, 2**63 - 1, -(2**63)], values_int64s=[1, 2, 3, 4], default_int64=-9,
    ),
    case(
        "LabelEncoder", SMALL, domain="ai.onnx.ml",
        keys_int64s=[100, 3, 0], values_floats=[0.5, 1.5, -1.0], default_float=7.0,
    ),
    case("LabelEncoder", FEW, domain="ai.onnx.ml", keys_floats=[2.0, -3.0], values_int64s=[5, 6]),
]  # fmt: skip


@pytest.mark.parametrize(("op", "arrays", "constants", "outputs", "domain", "attributes"), CASES)
def test_a_device_computes_what_onnx_runtime_does(
    op: str, arrays: list[Any], constants: dict[int, Any], outputs: int, domain: str, attributes: dict[str, Any]
) -> None:
    for some in (arrays, [array[:1] for array in arrays]):
        expected, made = both(model_of(op, some, constants, outputs, domain, attributes), some)
        for ours, theirs in zip(made, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-6)


def test_every_operator_is_compared() -> None:
    compared = {f"{each.values[4]}:{each.values[0]}".removeprefix(":") for each in CASES}
    elsewhere = {"Shape", "Size", "ConstantOfShape", "Range"}  # in the test below
    assert set(OPERATORS) - compared - elsewhere == set()


def test_sizes_stay_on_the_host() -> None:
    """Shapes that rows decide: the middle of a row of twice its width, counted."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["width"]),
        helper.make_node("Range", ["zero", "width", "step"], ["count"]),
        helper.make_node("Cast", ["count"], ["counted"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "counted"], ["sum"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Add", ["sum", "zeros"], ["more"]),
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Cast", ["size"], ["sized"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["more", "sized"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.int64(value), name) for name, value in (("one", 1), ("zero", 0), ("step", 1))
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])]
    graph = helper.make_graph(nodes, "sizes", given, made, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    expected, ours = both(model, [FEW])
    np.testing.assert_array_equal(ours[0], expected[0])


def test_an_index_out_of_range_is_a_fault_of_its_row() -> None:
    table = np.arange(3, dtype=np.float32)
    for index, wrong in ((2, False), (-3, False), (3, True), (-4, True)):
        model = model_of("Gather", [np.array([[index]])], {0: table}, 1, "", {})
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y0", TensorProto.FLOAT, ["rows", 1]))
        faults = Faults()
        graph = DeviceGraph.of("one", model, Path(), CPU, Budget(CPU, 0).place, faults)
        graph.run({"x1": torch.tensor([[index], [0]])})
        (what,), flags = faults.take()
        assert flags is not None
        assert bool(flags[0]) is wrong
        assert "out of range" in what


@pytest.mark.parametrize(
    ("op", "attributes", "why"),
    [
        ("Hardmax", {}, "Hardmax is no operator of a device"),
        ("Cast", {"to": TensorProto.BFLOAT16}, "type 16"),
        ("IsInf", {"detect_negative": 0}, "one sign"),
        ("CumSum", {"reverse": 1}, "from the end"),
    ],
)
def test_what_a_device_does_not_compute_is_said(op: str, attributes: dict[str, Any], why: str) -> None:
    constants = {1: np.int64(1)} if op == "CumSum" else {}
    model = model_of(op, [FEW], constants, 1, "", attributes)
    with pytest.raises(Unsupported, match=why):
        DeviceGraph.of("one", model, Path(), CPU, Budget(CPU, 0).place, Faults())

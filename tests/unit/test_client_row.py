"""One row's messages are those that the arrays' way makes, byte for byte, and what that way refuses is left to it."""

from __future__ import annotations

import math
import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from tristage.client import _wire
from tristage.client._row import OneRow
from tristage.client.codec import decode, encode
from tristage.columns import DTYPES, NULL_STRING, Column, Signature
from tristage.errors import InferenceFailed, InputError

NUMBERS = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        1.0,
        0.5,
        -0.0,
        math.nan,
        math.inf,
        -math.inf,
        5e-324,
        1e300,
        16777217,
        "1",
        b"1",
    ),
    *(
        sign * 2**bits + step
        for bits in (7, 8, 15, 16, 31, 32, 53, 63, 64, 200)
        for sign in (1, -1)
        for step in (-1, 0)
    ),
    *((2.0 - 2.0**-23) * 2.0**127, (2.0 - 2.0**-24) * 2.0**127, (2.0 - 2.0**-25) * 2.0**127, 10**400, 1e-46),
    *("1", b"1", np.float32(0.1), np.int64(3), [], [1], {"a": 1}),
]
TEXTS = ["", "a", "ü\0\n€𝄞", NULL_STRING, "\ud800", "x" * 70_000, None, 1, math.nan, b"b", ["a"]]
PLAIN = {"string": "text", "bool": True, **dict.fromkeys(("float32", "float64"), 1.5)}
OUT = (Column("y", "float32"),)


def the_same(row: Any, signature: Signature) -> bool:
    """Whether the row was taken; if so, as the arrays' way would."""
    made = OneRow(signature).request(row)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tensors = encode([row], signature)
    except (InputError, UserWarning):
        assert made is None, row
        return False
    wanted = _wire.grpc_request(signature.stack, tensors, [column.name for column in signature.outputs])
    if made is not None:
        assert service_pb2.ModelInferRequest.FromString(made) == wanted, row
        assert len(made) == wanted.ByteSize()
    return made is not None


@pytest.mark.parametrize("nullable", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars(dtype: str, nullable: bool) -> None:
    signature = Signature("s", 8, (Column("x", dtype, nullable=nullable),), OUT)
    for value in TEXTS if dtype == "string" else NUMBERS:
        the_same({"x": value}, signature)
    assert the_same({"x": PLAIN.get(dtype, 1)}, signature)
    assert the_same({"x": None}, signature) is nullable


@pytest.mark.parametrize("nullable", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lists(dtype: str, nullable: bool) -> None:
    values = TEXTS if dtype == "string" else NUMBERS
    pads: list[Any] = [None, "p"] if dtype == "string" else [None, 0, 1]
    for pad in [*pads, math.nan] if dtype.startswith("float") else pads:
        signature = Signature("s", 8, (Column("x", dtype, 3, pad, nullable),), OUT)
        for first, second in product(values, [None, PLAIN.get(dtype, 1)]):
            the_same({"x": [first, second]}, signature)
        for taken in ([], [PLAIN.get(dtype, 1)] * 2, [PLAIN.get(dtype, 1)] * 3):
            assert the_same({"x": taken}, signature)
        for left in (None, [PLAIN.get(dtype, 1)] * 4, (), "text", np.zeros(2)):
            assert not the_same({"x": left}, signature)


def test_columns_are_those_of_the_stack_in_its_order() -> None:
    signature = Signature("s", 8, (Column("a", "int64"), Column("b", "string"), Column("c", "float64", 2, 0.0)), OUT)
    assert the_same({"c": [1.0], "b": "x", "a": 1}, signature)
    for wrong in ({"a": 1, "b": "x"}, {"a": 1, "b": "x", "c": [], "d": 1}, {"a": 1, "b": "x", "d": []}):
        assert not the_same(wrong, signature)
    for no_row in (None, [], "a", 3):
        assert OneRow(signature).request(no_row) is None


def answer(*outputs: tuple[str, str, np.ndarray[Any, Any]]) -> Any:
    message = service_pb2.ModelInferResponse(model_name="s")
    for name, dtype, array in outputs:
        message.outputs.add(name=name, datatype=dtype, shape=array.shape)
        message.raw_output_contents.append(_wire.to_bytes(name, array))
    return message


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "string"])
def test_answers(dtype: str) -> None:
    outputs = Column("one", dtype), Column("many", dtype, 3)
    signature = Signature("s", 8, (), outputs)
    numpy_dtype = outputs[0].numpy_dtype
    for values in ([0, 1, 1], [1, 0, 100], [math.nan, -math.inf, 0.1] if dtype.startswith("float") else [1, 1, 1]):
        array = np.array([values]).astype(numpy_dtype)
        for shape in ((1, 1), (1,)):
            message = answer(
                ("many", outputs[1].triton_dtype, array), ("one", outputs[0].triton_dtype, array[0, :1].reshape(shape))
            )
            got = OneRow(signature).answer("grpc://host:1", message.SerializeToString())
            tensors = _wire.grpc_answer("grpc://host:1", "s", message, ["one", "many"])
            assert repr(got) == repr(decode(tensors, signature, [{}])[0])
            assert list(got) == ["one", "many"]


def test_an_answer_in_another_dtype_or_in_strings_is_read_all_the_same() -> None:
    signature = Signature("s", 8, (), (Column("y", "float32"), Column("t", "string")))
    text = np.array([["ü"]], dtype=object)
    message = answer(("y", "FP64", np.array([[0.1]])), ("t", "BYTES", text))
    assert OneRow(signature).answer("grpc://host:1", message.SerializeToString()) == {"y": 0.1, "t": "ü"}


@pytest.mark.parametrize(
    "message",
    [
        answer(),
        answer(("z", "FP32", np.zeros((1, 1), np.float32))),
        answer(("y", "FP32", np.zeros((2, 1), np.float32))),
        service_pb2.ModelInferResponse(raw_output_contents=[b"1234"]),
    ],
)
def test_an_answer_that_lacks_the_row_is_refused(message: Any) -> None:
    with pytest.raises(InferenceFailed):
        OneRow(Signature("s", 8, (), OUT)).answer("grpc://host:1", message.SerializeToString())


def test_an_answer_that_is_no_message_names_the_server() -> None:
    with pytest.raises(InferenceFailed, match=r"grpc://host:1 answered .* is it a Triton server"):
        OneRow(Signature("s", 8, (), OUT)).answer("grpc://host:1", b"\xff\xff\xff")

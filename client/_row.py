"""One row as Triton's gRPC message, and its answer as numbers, without an array in between.

For one row NumPy's and protobuf's calls for each of some dozens of columns take longer than the bytes they make. What
names the tensors is the same for every row, and written once. Only plain values are taken here: what else fits, and
every fault with its words, is left to `codec.encode`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tristage.client import _wire
from tristage.client._values import integer_range, pad_lists
from tristage.client.codec import decode
from tristage.columns import NULL_STRING, Column, Signature

__all__ = ["OneRow"]

_CODES: Mapping[str, str] = {  # Triton's dtypes, as `struct` has them
    **{"BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP32": "f"},
    **{"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "FP64": "d"},
}
_Write = Callable[[Any], bytes]


class _Odd(Exception):
    """A value that is not taken here; never leaves this module."""


class OneRow:
    """Makes and reads one stack's messages about one row.

    Args:
        signature: the stack's columns.

    Attributes:
        asked: what is asked, as messages say it.
    """

    def __init__(self, signature: Signature) -> None:
        from tritonclient.grpc import service_pb2

        self._signature = signature
        self.asked = _wire.asked("infer", signature.stack)
        self._names = [column.name for column in signature.outputs]
        self._request, self._response = service_pb2.ModelInferRequest, service_pb2.ModelInferResponse
        head = self._request(model_name=signature.stack)
        for column in signature.inputs:
            head.inputs.add(name=column.name, datatype=column.triton_dtype, shape=(1, column.width))
        for name in self._names:
            head.outputs.add(name=name)
        self._head: bytes = head.SerializeToString()
        self._writers = [(column.name, _writer(column)) for column in signature.inputs]
        self._readers = {
            column.name: (column.triton_dtype, struct.Struct(f"<{column.width}{code}"), column.length)
            for column in signature.outputs
            if (code := _CODES.get(column.triton_dtype))
        }

    def request(self, row: Any) -> bytes | None:
        """The ModelInferRequest, serialised, with the bytes that `codec.encode` would make; None: leave it to that."""
        if type(row) is not dict or len(row) != len(self._writers):
            return None
        try:
            parts = [write(row[name]) for name, write in self._writers]
        except (_Odd, KeyError, struct.error, OverflowError, UnicodeEncodeError):
            return None
        # messages end to end are one message: https://protobuf.dev/programming-guides/encoding/#last-one-wins
        joined: bytes = self._head + self._request(raw_input_contents=parts).SerializeToString()
        return joined

    def answer(self, url: str, body: bytes) -> dict[str, Any]:
        """The row's outputs in a ModelInferResponse, as `codec.decode` would give them.

        Args:
            url: the server's, for messages.
            body: the response, serialised.

        Raises:
            InferenceFailed: it cannot be read, or lacks an output.
        """
        model = self._signature.stack
        with _wire.grpc_faults(url, self.asked, 0.0):
            message = self._response.FromString(body)
        raw, found = message.raw_output_contents, {}
        if len(raw) == len(message.outputs):
            for output, data in zip(message.outputs, raw):  # noqa: B905 - of one length, checked
                dtype, values, length = self._readers.get(output.name, _UNREAD)
                if values is not None and dtype == output.datatype and len(data) == values.size:
                    read = values.unpack(data)
                    found[output.name] = read[0] if length is None else list(read)
        if len(found) == len(self._names):
            return {name: found[name] for name in self._names}
        tensors = _wire.grpc_answer(url, model, message, self._names)
        whole: dict[str, Any] = decode(tensors, self._signature, [{}])[0]
        return whole


_UNREAD = ("", None, None)


def _writer(column: Column) -> _Write:
    """What writes a column's value, or raises one of the errors that `OneRow.request` knows."""
    if column.length is not None:
        return _list_writer(column, column.length)
    return _value_writer(column, nullable=column.nullable)


def _list_writer(column: Column, length: int) -> _Write:
    """Of a list that needs no cutting: cut ones are counted, and that is done elsewhere."""
    one = _value_writer(column, nullable=False)
    pad = pad_lists(np.empty(0, column.numpy_dtype), np.zeros(1, np.int64), column, 1)
    filler = _wire.to_bytes(column.name, pad)

    def write(value: Any) -> bytes:
        if type(value) is not list or len(value) > length:
            raise _Odd
        return b"".join(map(one, value)) + filler * (length - len(value))

    return write


def _value_writer(column: Column, *, nullable: bool) -> _Write:
    if column.dtype == "string":
        return _text_writer(nullable=nullable)
    pack = struct.Struct("<" + _CODES[column.triton_dtype]).pack
    null = pack(math.nan) if nullable else b""
    if column.dtype in ("float32", "float64"):

        def write_float(value: Any) -> bytes:
            if type(value) is float or type(value) is int:
                return pack(value)
            if value is None and nullable:
                return null
            raise _Odd

        return write_float
    low, high = integer_range(column.dtype)
    boolean = column.dtype == "bool"

    def write_integer(value: Any) -> bytes:
        if (type(value) is int and low <= value <= high) or (boolean and type(value) is bool):
            return pack(value)
        if value is None and nullable:
            return null
        raise _Odd

    return write_integer


def _text_writer(*, nullable: bool) -> _Write:
    null = _text(NULL_STRING)

    def write(value: Any) -> bytes:
        if type(value) is str and value != NULL_STRING:
            return _text(value)
        if value is None and nullable:
            return null
        raise _Odd

    return write


def _text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(4, "little") + data

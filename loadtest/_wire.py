"""How requests of one model travel: bytes made before the clock starts, and connections that carry them.

The client of `tristage.client` serialises and parses on every call and runs a library below it, which costs 140 (HTTP)
and 190 microseconds (gRPC) of CPU a request. A load tester that shares a machine with the server takes that from what
it measures, so requests are made before the clock starts and are sent over plain sockets: 30 and 40 microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from tristage.client import _wire
from tristage.client._http2 import INFER
from tristage.client._late import Late
from tristage.client._wire import Address
from tristage.errors import InferenceFailed, TristageError
from tristage.loadtest._http1 import Http1
from tristage.loadtest._http2 import Http2

if TYPE_CHECKING:
    from tristage.client import Transport

__all__ = ["INFER", "GrpcWire", "HttpWire", "Sender", "Tensors", "TransportWire", "Wire", "check_rows", "still_there"]

Tensors = Mapping[str, NDArray[Any]]


class Sender(Protocol):
    """One connection, used by one thread."""

    def send(self, request: Any) -> Any:
        """Send one of the wire's requests and wait for the answer, which stays as it came.

        Raises:
            InferenceFailed: the server refused it.
            ServerUnavailable: nothing answers, or not in time; the next `send` opens a new connection.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Wire(Protocol):
    """A protocol, a server and a model.

    Attributes:
        protocol: "http", "grpc" or "grpc+shm", as reports name it.
    """

    protocol: str

    def encode(self, requests: Sequence[Tensors]) -> list[Any]:
        """Requests as `Sender.send` takes them; what was made before is no longer valid."""
        ...

    def open(self, timeout: float) -> Sender:
        """A connection whose requests may take `timeout` seconds; called in the thread that uses it."""
        ...

    def check(self, answer: Any, rows: int) -> None:
        """See that an answer holds every output for as many rows.

        Raises:
            InferenceFailed: it does not.
        """
        ...

    def close(self) -> None:
        """Take back what `encode` left with the server."""
        ...


class HttpWire:
    """HTTP with binary tensors."""

    protocol = "http"

    def __init__(self, address: Address, model: str, outputs: Sequence[str]) -> None:
        self._address = address
        self._model = model
        self._outputs = list(outputs)

    def encode(self, requests: Sequence[Tensors]) -> list[bytes]:
        path = _wire.http_path(self._address, "infer", self._model)
        return [self._encode(path, request) for request in requests]

    def _encode(self, path: str, request: Tensors) -> bytes:
        body, headers = _wire.http_request(request, self._outputs)
        lines = [f"POST {path} HTTP/1.1", f"Host: {self._address.target}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def open(self, timeout: float) -> Sender:
        return Http1(self._address, self._model, timeout)

    def check(self, answer: tuple[bytes, str | None], rows: int) -> None:
        body, length = answer
        check_rows(_wire.http_answer(self._address.url, self._model, body, length, self._outputs), rows)

    def close(self) -> None:
        pass


class GrpcWire:
    """gRPC: the same messages as tritonclient's, serialised once."""

    protocol = "grpc"

    def __init__(self, address: Address, model: str, outputs: Sequence[str]) -> None:
        self._address = address
        self._model = model
        self._outputs = list(outputs)
        self._late = Late()

    def encode(self, requests: Sequence[Tensors]) -> list[bytes]:
        return [_wire.grpc_request(self._model, request, self._outputs).SerializeToString() for request in requests]

    def open(self, timeout: float) -> Sender:
        return Http2(self._address, INFER, self._model, timeout, self._late)

    def check(self, answer: bytes, rows: int) -> None:
        from google.protobuf.message import DecodeError
        from tritonclient.grpc import service_pb2

        try:
            message = service_pb2.ModelInferResponse.FromString(answer)
        except DecodeError as error:
            raise _wire.malformed(self._address.url, _wire.asked("infer", self._model), error) from error
        check_rows(_wire.grpc_answer(self._address.url, self._model, message, self._outputs), rows)

    def close(self) -> None:
        pass


class TransportWire:
    """Requests through `Transport.infer` of connections that the caller opens: everything is done on every call."""

    def __init__(self, connect: Callable[[], Transport], model: str, outputs: Sequence[str]) -> None:
        self.protocol = "given"
        self._connect = connect
        self._model = model
        self._outputs = list(outputs)

    def encode(self, requests: Sequence[Tensors]) -> list[Tensors]:
        return list(requests)

    def open(self, timeout: float) -> Sender:
        return _TransportSender(self._connect(), self._model, self._outputs, timeout)

    def check(self, answer: Tensors, rows: int) -> None:
        check_rows(answer, rows)

    def close(self) -> None:
        pass


class _TransportSender:
    def __init__(self, transport: Transport, model: str, outputs: Sequence[str], timeout: float) -> None:
        self._transport = transport
        self._model = model
        self._outputs = outputs
        self._timeout = timeout

    def send(self, request: Tensors) -> Tensors:
        return self._transport.infer(self._model, request, self._outputs, self._timeout)

    def close(self) -> None:
        self._transport.close()


def still_there(connect: Callable[[], Transport], model: str, timeout: float) -> bool:
    """Whether the server would answer for `model`, asked over a connection of its own."""
    transport = connect()
    try:
        return transport.ready(model, timeout)
    except TristageError:
        return False
    finally:
        transport.close()


def check_rows(answer: Tensors, rows: int) -> None:
    """Raise InferenceFailed where an output does not have as many rows as were sent."""
    for name, values in answer.items():
        if len(values) != rows:
            raise InferenceFailed(f'the server answered {len(values)} rows of "{name}" to a request of {rows}')

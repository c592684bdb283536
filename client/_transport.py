"""One blocking connection to a Triton server, over HTTP or gRPC: the same questions, the same errors.

Every call takes its own time limit in seconds. What can go wrong below comes out as two errors: ServerUnavailable
(nothing there, went away, too late) and InferenceFailed (the server answered no, or answered nonsense).
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from tristage.client import _wire
from tristage.client._http2 import method_path, opening_headers
from tristage.client._line import Lines
from tristage.client._wire import Address, Tensors
from tristage.errors import InferenceFailed

__all__ = ["Transport", "connect"]

# A server that was restarted closes what it had: that shows as one of these on the next use of the connection.
_STALE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, ConnectionAbortedError)


class Transport(Protocol):
    """A blocking connection to one server. Safe to share between threads, which then take turns over HTTP."""

    url: str

    def ready(self, model: str, timeout: float) -> bool:
        """Whether the server would answer for `model`; with "", whether the whole server is ready.

        Raises:
            ServerUnavailable: nothing answers.
        """
        ...

    def config(self, model: str, timeout: float) -> dict[str, Any]:
        """Triton's configuration of a model, with the same keys over both protocols.

        Raises:
            InferenceFailed: the server has no such model.
            ServerUnavailable: nothing answers.
        """
        ...

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], timeout: float) -> Tensors:
        """One request.

        Args:
            model: the model's name.
            inputs: name -> array of the shape and dtype that the model declares; strings as object arrays of str.
            outputs: names of the outputs wanted.
            timeout: seconds to wait for the answer.

        Returns:
            name -> array, in the order of `outputs`; numbers are read-only views, strings object arrays of str.

        Raises:
            InferenceFailed: the server refused the request.
            ServerUnavailable: nothing answers, or not in time. Over gRPC the call is then left to end by itself: to
                cancel it may end Triton 2.51.
        """
        ...

    def statistics(self, model: str, timeout: float) -> dict[str, Any]:
        """Triton's counters of a model, of all with "": {"model_stats": [...]}, counts and nanoseconds as integers."""
        ...

    def models(self, timeout: float) -> list[str]:
        """Names of the models that are ready, sorted."""
        ...

    def close(self) -> None:
        """Close the connection, at once; later calls raise ServerUnavailable.

        Over gRPC, calls on their way keep their connections until they have ended, for two minutes at most; a process
        that ends waits 5 s for those that nobody waits for.
        """
        ...


def connect(url: str, *, protocol: _wire.Protocol | None = None) -> Transport:
    """A transport for a URL; nothing is sent before the first question.

    Args:
        url: "http://host:8000", "grpc://host:8001", or "host:port" with `protocol`.
        protocol: "http" or "grpc"; "http" where neither this nor the URL says.

    Raises:
        InputError: the URL cannot be read.
    """
    address = _wire.parse_url(url, protocol)
    return GrpcTransport(address) if address.protocol == "grpc" else HttpTransport(address)


class HttpTransport:
    """HTTP with binary tensors over one connection that is kept."""

    def __init__(self, address: Address) -> None:
        self.url = address.url
        self._address = address
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._closed = False

    def ready(self, model: str, timeout: float) -> bool:
        try:
            self._ask("GET", "ready", model, timeout)
        except InferenceFailed:
            return False
        return True

    def config(self, model: str, timeout: float) -> dict[str, Any]:
        return _wire.http_object(self.url, "config", model, self._ask("GET", "config", model, timeout)[0])

    def statistics(self, model: str, timeout: float) -> dict[str, Any]:
        return _wire.http_object(self.url, "stats", model, self._ask("GET", "stats", model, timeout)[0])

    def models(self, timeout: float) -> list[str]:
        return _wire.model_names(self.url, self.statistics("", timeout))

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], timeout: float) -> Tensors:
        body, headers = _wire.http_request(inputs, outputs)
        answer, length = self._ask("POST", "infer", model, timeout, body, headers)
        return _wire.http_answer(self.url, model, answer, length, outputs)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop()

    def _ask(
        self,
        method: str,
        kind: str,
        model: str,
        timeout: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[bytes, str | None]:
        """Ask, and give the answer's body and the length of its JSON header, where it has one."""
        path = _wire.http_path(self._address, kind, model)
        with self._lock:
            if self._closed:
                raise _wire.closed(self.url)
            try:
                response, answer = self._exchange(method, path, body, headers or {}, timeout)
            except TimeoutError as error:
                self._drop()
                raise _wire.too_late(self.url, timeout) from error
            except (OSError, UnicodeError, http.client.HTTPException) as error:
                self._drop()
                raise _wire.unavailable(self.url, error) from error
            except BaseException:  # interrupted: the answer may still come, and must not be taken for the next one's
                self._drop()
                raise
        if response.status != 200:
            raise _wire.http_error(self.url, _wire.asked(kind, model), response.status, answer, timeout)
        return answer, response.getheader(_wire.HEADER_LENGTH)

    def _exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout: float
    ) -> tuple[http.client.HTTPResponse, bytes]:
        kept = self._connection
        if kept is not None:
            try:
                return _exchange(kept, method, path, body, headers, timeout)
            except _STALE:  # nothing here changes the server, so asking twice does no harm
                self._drop()
        self._connection = http.client.HTTPConnection(self._address.host, self._address.port, timeout=timeout)
        return _exchange(self._connection, method, path, body, headers, timeout)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    timeout: float,
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.timeout = timeout
    if connection.sock is not None:
        connection.sock.settimeout(timeout)
    connection.request(method, path, body=body, headers=dict(headers))
    response = connection.getresponse()
    return response, response.read()


class GrpcTransport:
    """gRPC over kept connections, one for each thread that asks at once. A late call is never cancelled (`_late`)."""

    def __init__(self, address: Address) -> None:
        self.url = address.url
        self._target = address.target
        self._lines = Lines(address)

    @property
    def late(self) -> int:
        """Calls that nobody waits for any more, and the server still works on."""
        return self._lines.late

    def ready(self, model: str, timeout: float) -> bool:
        try:
            return bool(self._ask("ready", model, timeout).ready)
        except InferenceFailed:
            return False

    def config(self, model: str, timeout: float) -> dict[str, Any]:
        return _wire.to_dict(self._ask("config", model, timeout).config)

    def statistics(self, model: str, timeout: float) -> dict[str, Any]:
        return _wire.to_dict(self._ask("stats", model, timeout))

    def models(self, timeout: float) -> list[str]:
        return _wire.model_names(self.url, self.statistics("", timeout))

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], timeout: float) -> Tensors:
        request = _wire.grpc_request(model, inputs, outputs)
        answer = self.call("ModelInfer", request, _wire.asked("infer", model), timeout)
        return _wire.grpc_answer(self.url, model, answer, outputs)

    def call(self, method: str, request: Any, what: str, timeout: float) -> Any:
        """Call one of the service's methods.

        Args:
            method: its name, such as "ModelInfer".
            request: its message.
            what: what is asked, as errors name it.
            timeout: seconds to wait for the answer.

        Raises:
            InferenceFailed: the server refused.
            ServerUnavailable: nothing answers, or not in time.
        """
        block = opening_headers(method_path(method), self._target)
        with _wire.grpc_faults(self.url, what, timeout):
            status, words, body = self._lines.call(block, request.SerializeToString(), timeout)
            answer = None if status else _wire.grpc_message(method, body)
        _wire.check_status(self.url, what, status, words, timeout)
        return answer

    def close(self) -> None:
        self._lines.close()

    def _ask(self, kind: str, model: str, timeout: float) -> Any:
        return self.call(*_wire.grpc_question(kind, model), _wire.asked(kind, model), timeout)

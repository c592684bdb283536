"""Unary gRPC over a plain socket, as a load tester needs it: one call on its way, and nothing done twice."""

from __future__ import annotations

import contextlib
import socket

from tristage.client import _wire
from tristage.client._http2 import ConnectionLost, Unary, opening_headers
from tristage.client._wire import Address

__all__ = ["Http2"]

_AT_ONCE = 1 << 18


class Http2:
    """A kept connection that makes one gRPC call after the other; it opens itself again after a failure."""

    def __init__(self, address: Address, path: str, model: str, timeout: float) -> None:
        self._address = address
        self._what = _wire.asked("infer", model)
        self._timeout = timeout
        self._headers = opening_headers(path, address.target, timeout)  # the same bytes for every call
        self._socket: socket.socket | None = None
        self._unary = Unary()

    def send(self, request: bytes) -> bytes:
        """Call with a serialised message; give the answer's.

        Raises:
            InferenceFailed: the server refused it, or what it answered cannot be read.
            ServerUnavailable: nothing answers, or not in time.
        """
        try:
            connection = self._socket if self._socket is not None and not self._unary.over else self._connect()
            unary = self._unary
            connection.sendall(unary.begin(self._headers, request))
            while not unary.done:
                data = connection.recv(_AT_ONCE)
                if not data:
                    raise ConnectionLost("the server closed the connection")
                answer = unary.take(data)
                if answer:
                    connection.sendall(answer)
            status, words, body = unary.answer()
        except TimeoutError as error:
            self.close()
            raise _wire.too_late(self._address.url, self._timeout) from error
        except OSError as error:
            self.close()
            raise _wire.unavailable(self._address.url, error) from error
        except (ValueError, LookupError) as error:
            self.close()
            raise _wire.malformed(self._address.url, self._what, error) from error
        if status:
            raise _wire.grpc_refusal(self._address.url, self._what, status, words, self._timeout)
        return body

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        self.close()
        self._socket = socket.create_connection((self._address.host, self._address.port), self._timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unary = Unary()
        self._socket.sendall(self._unary.opening())
        return self._socket

"""HTTP/1.1 as far as a load tester needs it: one request on its way, an answer whose length is announced."""

from __future__ import annotations

import contextlib
import socket

from tristage.client import _wire
from tristage.client._wire import Address

__all__ = ["Http1"]

_AT_ONCE = 1 << 18
_LENGTH = b"\r\ncontent-length:"
_HEADER_LENGTH = f"\r\n{_wire.HEADER_LENGTH.lower()}:".encode()


class Http1:
    """A kept connection that sends whole requests and reads whole answers; it opens itself again after a failure."""

    def __init__(self, address: Address, model: str, timeout: float) -> None:
        self._address = address
        self._what = _wire.asked("infer", model)
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def send(self, request: bytes) -> tuple[bytes, str | None]:
        """Send a request, headers and all; give the answer's body and the length of its JSON part.

        Raises:
            InferenceFailed: the status is not 200, or the answer cannot be read.
            ServerUnavailable: nothing answers, or not in time.
        """
        try:
            connection = self._socket or self._connect()
            connection.sendall(request)
            status, head, body = self._read(connection)
        except TimeoutError as error:
            self.close()
            raise _wire.too_late(self._address.url, self._timeout) from error
        except OSError as error:
            self.close()
            raise _wire.unavailable(self._address.url, error) from error
        except ValueError as error:
            self.close()
            raise _wire.malformed(self._address.url, self._what, error) from error
        if b"\r\nconnection: close" in head:
            self.close()
        if status != 200:
            raise _wire.http_error(self._address.url, self._what, status, body, self._timeout)
        length = _header(head, _HEADER_LENGTH)
        return body, None if length is None else length.decode()

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        self._socket = socket.create_connection((self._address.host, self._address.port), self._timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._socket

    def _read(self, connection: socket.socket) -> tuple[int, bytes, bytes]:
        """Status, headers in lower case, body."""
        data = _receive(connection)
        while (at := data.find(b"\r\n\r\n")) < 0:
            data += _receive(connection)
        head = data[:at].lower()
        length = _header(head, _LENGTH)
        if not head.startswith(b"http/1.") or length is None:
            raise ValueError("an answer without a Content-Length; measure Triton itself, not a proxy before it")
        parts = [data[at + 4 :]]
        missing = int(length) - len(parts[0])
        while missing > 0:
            parts.append(_receive(connection))
            missing -= len(parts[-1])
        if missing < 0:
            raise ValueError("more than one answer to a request")
        return int(head[9:12]), head, b"".join(parts)


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(_AT_ONCE)
    if not data:
        raise ConnectionResetError("the server closed the connection")
    return data


def _header(head: bytes, name: bytes) -> bytes | None:
    at = head.find(name)
    if at < 0:
        return None
    end = head.find(b"\r\n", at + 2)
    return head[at + len(name) : end if end >= 0 else len(head)].strip()

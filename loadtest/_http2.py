"""Unary gRPC over HTTP/2 as far as a load tester needs it (RFC 9113): one call on its way, one message each way.

The server is told to keep no table of headers (HEADER_TABLE_SIZE 0), so equal headers are equal bytes and only the
first of a kind is decoded.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from urllib.parse import unquote

from tristage.client import _wire
from tristage.client._wire import Address
from tristage.errors import TristageError

__all__ = ["Http2"]

_AT_ONCE = 1 << 18
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _END_HEADERS, _ACK, _PADDED, _PRIORITY = 0x1, 0x4, 0x1, 0x8, 0x20
_WIDE = 2**31 - 1  # the largest flow-control window
_REFILL = 1 << 30  # received bytes after which the server's window is opened again
_LAST_STREAM = 2**31 - 1
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class _ConnectionLost(OSError):
    """The server closed the connection or the call."""


class Http2:
    """A kept connection that makes one gRPC call after the other; it opens itself again after a failure."""

    def __init__(self, address: Address, path: str, model: str, timeout: float) -> None:
        self._address = address
        self._path = path
        self._what = _wire.asked("infer", model)
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._known: dict[bytes, tuple[int, str] | None] = {}

    def send(self, request: bytes) -> bytes:
        """Call with a serialised message; give the answer's.

        Raises:
            InferenceFailed: the server refused it, or what it answered cannot be read.
            ServerUnavailable: nothing answers, or not in time.
        """
        try:
            if self._socket is None or self._stream >= _LAST_STREAM - 2:
                self._connect()
            self._ask(request)
            status, words, body = self._answer()
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
            raise self._refusal(status, words)
        if len(body) < 5 or body[0] or int.from_bytes(body[1:5], "big") != len(body) - 5:
            self.close()
            raise _wire.malformed(self._address.url, self._what, ValueError("not one uncompressed message"))
        return body[5:]

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _connect(self) -> None:
        from hpack import Encoder

        self.close()
        self._socket = socket.create_connection((self._address.host, self._address.port), self._timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = -1
        self._buffer, self._at = b"", 0
        self._window = self._first_window = 65535  # of the connection, and of each new stream; the protocol's first
        self._stream_window = 0
        self._frame = 16384
        self._received = 0
        encoder = Encoder()
        encoder.header_table_size = 0
        headers = [
            *((":method", "POST"), (":scheme", "http"), (":path", self._path), (":authority", self._address.target)),
            *(("te", "trailers"), ("content-type", "application/grpc")),
            ("grpc-timeout", f"{max(1, min(int(self._timeout * 1000), 99_999_999))}m"),
        ]
        self._headers = encoder.encode(headers, huffman=False)  # the same bytes for every call
        # no table of headers, no pushes, wide windows
        settings = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, _WIDE)
        opening = [_PREFACE, _frame(_SETTINGS, 0, 0, settings)]
        opening.append(_frame(_WINDOW, 0, 0, struct.pack(">I", _WIDE - 65535)))
        self._socket.sendall(b"".join(opening))

    def _ask(self, message: bytes) -> None:
        assert self._socket is not None
        self._stream += 2
        self._stream_window = self._first_window
        self._body: list[bytes] = []
        self._block = b""
        self._result: tuple[int, str] | None = None
        self._ended = False
        data = b"\0" + len(message).to_bytes(4, "big") + message
        parts = [_frame(_HEADERS, _END_HEADERS, self._stream, self._headers)]
        sent = 0
        while sent < len(data):
            room = min(self._frame, self._window, self._stream_window, len(data) - sent)
            if room <= 0:  # a large message: the server says when it takes more
                self._socket.sendall(b"".join(parts))
                parts = []
                self._take()
                if self._ended:  # it has heard enough
                    self._socket.sendall(_frame(_RESET, 0, self._stream, bytes(4)))
                    return
                continue
            last = sent + room == len(data)
            parts.append(_frame(_DATA, _END_STREAM if last else 0, self._stream, data[sent : sent + room]))
            sent += room
            self._window -= room
            self._stream_window -= room
        self._socket.sendall(b"".join(parts))

    def _answer(self) -> tuple[int, str, bytes]:
        """The gRPC status, its message, and the body as it came."""
        while not self._ended:
            self._take()
        if self._result is None:
            raise ValueError("no gRPC status")
        return *self._result, b"".join(self._body)

    def _take(self) -> None:
        """Take one frame from the server."""
        assert self._socket is not None
        head = self._read(9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        stream = int.from_bytes(head[5:9], "big")
        payload = self._read(length)
        if kind in (_DATA, _HEADERS, _CONTINUATION):
            if kind == _DATA:
                self._refill(length)
            if stream == self._stream:  # not the end of a call that was given up
                self._take_answer(kind, flags, payload)
        elif kind == _SETTINGS and not flags & _ACK:
            self._settle(payload)
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW:
            more = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += more
            elif stream == self._stream:
                self._stream_window += more
        elif kind == _GO_AWAY:
            raise _ConnectionLost("the server is going away")
        elif kind == _RESET and stream == self._stream and not self._ended:
            raise _ConnectionLost(f"the server gave the call up with code {int.from_bytes(payload, 'big')}")

    def _take_answer(self, kind: int, flags: int, payload: bytes) -> None:
        if kind != _CONTINUATION and flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if kind == _DATA:
            self._body.append(payload)
            self._ended = bool(flags & _END_STREAM)
            return
        if kind == _HEADERS:
            self._closing = bool(flags & _END_STREAM)
            if flags & _PRIORITY:
                payload = payload[5:]
        self._block += payload
        if flags & _END_HEADERS:
            self._result = self._status(self._block) or self._result
            self._block = b""
            self._ended = self._closing

    def _status(self, block: bytes) -> tuple[int, str] | None:
        """The gRPC status that a block of headers holds, where it holds one."""
        if block not in self._known:
            from hpack import Decoder, HPACKError

            try:
                headers = {str(name): str(value) for name, value in Decoder().decode(block)}
            except HPACKError as error:
                raise ValueError(f"headers that cannot be read: {error!r}") from error
            if headers.get(":status", "200") != "200":
                raise ValueError(f"HTTP status {headers[':status']}")
            status = headers.get("grpc-status")
            found = None if status is None else (int(status), unquote(headers.get("grpc-message", "")))
            if found is not None and found[0]:
                return found  # every failure may have words of its own
            self._known[block] = found
        return self._known[block]

    def _settle(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == 4:
                self._stream_window += value - self._first_window
                self._first_window = value
            elif name == 5:
                self._frame = value

    def _refill(self, length: int) -> None:
        assert self._socket is not None
        self._received += length
        if self._received >= _REFILL:
            self._socket.sendall(_frame(_WINDOW, 0, 0, struct.pack(">I", self._received)))
            self._received = 0

    def _read(self, count: int) -> bytes:
        assert self._socket is not None
        end = self._at + count
        if end > len(self._buffer):
            parts = [self._buffer[self._at :]]
            have = len(parts[0])
            while have < count:
                part = self._socket.recv(_AT_ONCE)
                if not part:
                    raise _ConnectionLost("the server closed the connection")
                parts.append(part)
                have += len(part)
            self._buffer, self._at, end = b"".join(parts), 0, count
        data = self._buffer[self._at : end]
        self._at = end
        return data

    def _refusal(self, status: int, words: str) -> TristageError:
        import grpc

        names = {code.value[0]: code.name for code in grpc.StatusCode}
        name = names.get(status, "UNKNOWN")
        if name == "UNAVAILABLE":
            return _wire.unavailable(self._address.url, words)
        if name == "DEADLINE_EXCEEDED":
            return _wire.too_late(self._address.url, self._timeout)
        return _wire.refused(self._address.url, self._what, words, name)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload

"""Unary gRPC over HTTP/2 (RFC 9113) without a socket: bytes that came go in, bytes to send come out.

One call on its way and one message each way, which is what a request to Triton is. gRPC's own library hands every call
from thread to thread; on one core that takes several times as long as the call's bytes do. The server is told to keep
no table of headers (HEADER_TABLE_SIZE 0), so equal headers are equal bytes and only the first of a kind is decoded.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from urllib.parse import unquote

__all__ = ["INFER", "ConnectionClosed", "ConnectionLost", "Unary", "header_block", "method_path", "opening_headers"]

_SERVICE = "/inference.GRPCInferenceService/"
INFER = f"{_SERVICE}ModelInfer"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _END_HEADERS, _ACK, _PADDED, _PRIORITY = 0x1, 0x4, 0x1, 0x8, 0x20
_WIDE = 2**31 - 1  # the largest flow-control window
_REFILL = 1 << 30  # received bytes after which the server's window is opened again
_LAST_STREAM = 2**31 - 1
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class ConnectionLost(OSError):
    """The server closed the connection or the call."""


class ConnectionClosed(ConnectionLost):
    """The caller closed the connection."""


class Unary:
    """The client's end of one connection.

    Attributes:
        done: whether the call that was begun last has its answer.
        over: whether no further call may be begun: the server is going away, or all numbers of streams are used.
    """

    def __init__(self) -> None:
        self.done = True
        self.over = False
        self._stream = -1
        self._buffer = b""
        self._window = self._first_window = 65535  # of the connection, and of each new stream; the protocol's first
        self._stream_window = 0
        self._frame = 16384
        self._received = 0
        self._unsent = memoryview(b"")
        self._body: list[bytes] = []
        self._block = b""
        self._closing = False
        self._result: tuple[int, str] | None = None
        self._known: dict[bytes, tuple[int, str] | None] = {}

    @property
    def sent(self) -> bool:
        """Whether the whole message of the call that was begun last was handed out."""
        return not self._unsent

    def opening(self) -> bytes:
        """What a connection begins with: no table of headers, no pushes, wide windows."""
        settings = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, _WIDE)
        window = struct.pack(">I", _WIDE - 65535)
        return _PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, window)

    def begin(self, headers: bytes, message: bytes) -> bytes:
        """Begin a call; what may be sent of it now. The rest, of a large message, comes from `take`.

        Args:
            headers: a block that `header_block` made.
            message: a serialised message.
        """
        self._stream += 2
        self.over = self.over or self._stream >= _LAST_STREAM - 2
        self.done, self._result, self._body, self._block = False, None, [], b""
        self._stream_window = self._first_window
        self._unsent = memoryview(b"\0" + len(message).to_bytes(4, "big") + message)
        return _frame(_HEADERS, _END_HEADERS, self._stream, headers) + self._send()

    def take(self, data: bytes) -> bytes:
        """Take what came from the server; what is to be sent in answer.

        Raises:
            ConnectionLost: the server gave up the call.
            ValueError: what came cannot be read.
        """
        buffer = self._buffer + data if self._buffer else data
        at, out = 0, b""
        while len(buffer) - at >= 9:
            end = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
            if end > len(buffer):
                break
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            out += self._take_frame(buffer[at + 3], buffer[at + 4], stream, buffer[at + 9 : end])
            at = end
        self._buffer = buffer[at:]
        if self._unsent:
            if self.done:  # it has heard enough
                self._unsent = memoryview(b"")
                return out + _frame(_RESET, 0, self._stream, bytes(4))
            out += self._send()
        return out

    def answer(self) -> tuple[int, str, bytes]:
        """The gRPC status of the call that is done, its words, and the message, empty where the status is not 0.

        Raises:
            ValueError: there is no status, or not one message.
        """
        if self._result is None:
            raise ValueError("no gRPC status")
        status, words = self._result
        if status:
            return status, words, b""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if len(body) < 5 or body[0] or int.from_bytes(body[1:5], "big") != len(body) - 5:
            raise ValueError("not one uncompressed message")
        return 0, words, body[5:]

    def _send(self) -> bytes:
        """As much of the message as the server takes now."""
        parts = []
        while self._unsent:
            room = min(self._frame, self._window, self._stream_window, len(self._unsent))
            if room <= 0:  # the server says when it takes more
                break
            part, self._unsent = self._unsent[:room], self._unsent[room:]
            parts.append(_frame(_DATA, 0 if self._unsent else _END_STREAM, self._stream, part))
            self._window -= room
            self._stream_window -= room
        return b"".join(parts)

    def _take_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        """Take one frame; the frame that answers it, if any does."""
        if kind in (_DATA, _HEADERS, _CONTINUATION):
            if stream == self._stream and not self.done:  # not the end of a call that was given up
                self._take_answer(kind, flags, payload)
            return self._refill(len(payload)) if kind == _DATA else b""
        if kind == _SETTINGS and not flags & _ACK:
            self._settle(payload)
            return _frame(_SETTINGS, _ACK, 0, b"")
        if kind == _PING and not flags & _ACK:
            return _frame(_PING, _ACK, 0, payload)
        if kind == _WINDOW:
            more = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += more
            elif stream == self._stream:
                self._stream_window += more
        elif kind == _GO_AWAY:
            self.over = True
            if not self.done and self._stream > int.from_bytes(payload[:4], "big") & _LAST_STREAM:
                raise ConnectionLost("the server is going away")
        elif kind == _RESET and stream == self._stream and not self.done:
            raise ConnectionLost(f"the server gave the call up with code {int.from_bytes(payload, 'big')}")
        return b""

    def _take_answer(self, kind: int, flags: int, payload: bytes) -> None:
        if kind != _CONTINUATION and flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if kind == _DATA:
            self._body.append(payload)
            self.done = bool(flags & _END_STREAM)
            return
        if kind == _HEADERS:
            self._closing = bool(flags & _END_STREAM)
            if flags & _PRIORITY:
                payload = payload[5:]
        self._block += payload
        if flags & _END_HEADERS:
            self._result = self._status(self._block) or self._result
            self._block = b""
            self.done = self._closing

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

    def _refill(self, length: int) -> bytes:
        self._received += length
        if self._received < _REFILL:
            return b""
        received, self._received = self._received, 0
        return _frame(_WINDOW, 0, 0, struct.pack(">I", received))


def method_path(method: str) -> str:
    """The path of one of the service's methods, such as "ModelInfer"."""
    return _SERVICE + method


@functools.lru_cache(maxsize=64)
def opening_headers(path: str, authority: str) -> bytes:
    """The headers that every call begins with. The server is told no deadline: it would cancel the call then.

    Args:
        path: the method's, such as `INFER`.
        authority: the server's host and port.
    """
    return header_block(
        (
            *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)),
            *(("te", "trailers"), ("content-type", "application/grpc")),
        )
    )


def header_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Headers as HPACK literals that no table keeps (RFC 7541, 6.2.2); names in lower case, values in ASCII."""
    parts = []
    for pair in headers:
        parts.append(b"\0")
        for text in pair:
            raw = text.encode("ascii")
            parts += (_length(len(raw)), raw)
    return b"".join(parts)


def _length(number: int) -> bytes:
    if number < 127:
        return bytes((number,))
    number, out = number - 127, bytearray(b"\x7f")
    while number >= 128:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _frame(kind: int, flags: int, stream: int, payload: bytes | memoryview) -> bytes:
    return b"".join((struct.pack(">IBI", len(payload) << 8 | kind, flags, stream), payload))

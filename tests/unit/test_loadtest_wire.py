"""HTTP/1.1 and HTTP/2 below the load tester, against servers that answer as real ones sometimes do."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tristage.client._late import Late
from tristage.client._wire import Address
from tristage.errors import InferenceFailed, ServerUnavailable
from tristage.loadtest._http1 import Http1
from tristage.loadtest._http2 import Http2


@contextmanager
def serving(talk: Callable[[socket.socket], None], protocol: str = "http") -> Iterator[Address]:
    """A server that hands each connection to `talk`, one after the other, and closes it then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(10)
                    with suppress(OSError):
                        talk(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield Address(protocol, "127.0.0.1", listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


# ------------------------------------------------------------------------------------------------------------ HTTP/1.1


def answers(*pieces: bytes) -> Callable[[socket.socket], None]:
    """Answer every request of four bytes with these pieces, one send each."""

    def talk(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            read(connection, 4)
            for piece in pieces:
                connection.sendall(piece)

    return talk


def test_http_answers_come_whole_however_they_arrive():
    body = bytes(range(256)) * 2000
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nInference-Header-Content-Length: 17\r\n\r\n".encode()
    whole = head + body
    cuts = [whole[:5], whole[5 : len(head) - 2], whole[len(head) - 2 : len(head) + 3], whole[len(head) + 3 :]]
    with serving(answers(*cuts)) as address:
        sender = Http1(address, "m", 10)
        for _ in range(3):
            assert sender.send(b"ping") == (body, "17")
        sender.close()


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (b'HTTP/1.1 400 Bad\r\nContent-Length: 14\r\n\r\n{"error":"no"}', InferenceFailed, "no"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", ServerUnavailable, "503"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", InferenceFailed, "Content-Length"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", InferenceFailed, "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxyz", InferenceFailed, "more than one answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", InferenceFailed, "cannot be read"),
    ],
)
def test_http_answers_that_are_none(answer: bytes, error: type[Exception], says: str):
    with serving(answers(answer)) as address:
        sender = Http1(address, "m", 10)
        for _ in range(2):  # and it can go on after each
            with pytest.raises(error, match=says):
                sender.send(b"ping")
        sender.close()


def test_http_opens_again_after_the_server_closed():
    def talk(connection: socket.socket) -> None:
        read(connection, 4)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")

    with serving(talk) as address:
        sender = Http1(address, "m", 10)
        assert [sender.send(b"ping")[0] for _ in range(3)] == [b"x"] * 3
        sender.close()


def test_http_says_when_it_is_too_late_or_gone():
    with serving(lambda connection: read(connection, 100)) as address:
        sender = Http1(address, "m", 0.2)
        with pytest.raises(ServerUnavailable, match="within 0.2 s"):
            sender.send(b"ping")
        sender.close()
    gone = serving(lambda connection: read(connection, 4))
    with gone as address, pytest.raises(ServerUnavailable, match="closed"):
        Http1(address, "m", 10).send(b"ping")
    with pytest.raises(ServerUnavailable):
        Http1(address, "m", 10).send(b"ping")


# --------------------------------------------------------------------------------------------------------------- gRPC


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


OPENING = frame(4, 0, 0, b"")
HEADERS = b"\x20\x88@\x0ccontent-type\x10application/grpc"  # a table of size 0, :status 200
DONE = b"@\x0bgrpc-status\x010"


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


class Grpc:
    """Reads the frames of one client; `reply` makes the frames that answer a whole request."""

    def __init__(self, reply: Callable[[int, bytes], bytes], opening: bytes = OPENING) -> None:
        self.reply = reply
        self.opening = opening
        self.seen: list[tuple[int, int, bytes]] = []

    def __call__(self, connection: socket.socket) -> None:
        assert read(connection, 24) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        connection.sendall(self.opening)
        asked = b""
        while True:
            head = read(connection, 9)
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            payload = read(connection, int.from_bytes(head[:3], "big"))
            self.seen.append((kind, flags, payload))
            if kind == 0:
                asked += payload
                connection.sendall(frame(8, 0, 0, struct.pack(">I", len(payload) or 1)))
                connection.sendall(frame(8, 0, stream, struct.pack(">I", len(payload) or 1)))
                if flags & 1:
                    connection.sendall(self.reply(stream, asked))
                    asked = b""


def echo(stream: int, asked: bytes) -> bytes:
    return frame(1, 4, stream, HEADERS) + frame(0, 0, stream, asked) + frame(1, 5, stream, DONE)


def test_grpc_calls_one_after_the_other():
    server = Grpc(echo)
    with serving(server, "grpc") as address:
        sender = Http2(address, "/s/m", "m", 10, Late())
        for number in range(5):
            assert sender.send(b"request %d" % number) == b"request %d" % number
        sender.close()
    calls = [payload for kind, _, payload in server.seen if kind == 1]
    assert len(calls) == 5
    assert len(set(calls)) == 1
    assert (4, 1, b"") in server.seen  # the server's settings were acknowledged


class Strict:
    """A server that says how much it takes, checks that no more comes, and says more only when all of it is used."""

    FIRST, MORE = 20_000, 50_000

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.faults: list[str] = []

    def __call__(self, connection: socket.socket) -> None:
        read(connection, 24)
        connection.sendall(frame(4, 0, 0, struct.pack(">HI", 4, self.FIRST)))
        whole, room, asked = 65_535, 0, b""
        while True:
            head = read(connection, 9)
            payload = read(connection, int.from_bytes(head[:3], "big"))
            stream = int.from_bytes(head[5:], "big")
            if head[3] == 1:
                room = self.FIRST
            if head[3] != 0:
                continue
            self.sizes.append(len(payload))
            asked, whole, room = asked + payload, whole - len(payload), room - len(payload)
            if whole < 0 or (stream > 1 and room < 0):  # the first call may be made before the client has heard
                self.faults.append(f"stream {stream}: {whole}, {room}")
            grants = b""
            if whole <= 0:
                grants += frame(8, 0, 0, struct.pack(">I", self.MORE))
                whole += self.MORE
            if room <= 0:
                grants += frame(8, 0, stream, struct.pack(">I", self.MORE))
                room += self.MORE
            if head[4] & 1:
                parts = [frame(0, 0, stream, asked[at : at + 16384]) for at in range(0, len(asked), 16384)]
                grants += frame(1, 4, stream, HEADERS) + b"".join(parts) + frame(1, 5, stream, DONE)
                asked = b""
            connection.sendall(grants)


def test_grpc_keeps_to_the_servers_windows_and_frames():
    body = bytes(range(256)) * 3000  # far beyond every window
    server = Strict()
    with serving(server, "grpc") as address:
        sender = Http2(address, "/s/m", "m", 10, Late())
        for request in (b"small", body, body):
            assert sender.send(request) == request
        sender.close()
    assert server.faults == []
    assert max(server.sizes) <= 16_384
    assert sum(server.sizes) == 2 * len(body) + len(b"small") + 3 * 5


def test_grpc_answers_pings_and_reads_padding_and_continued_headers():
    def reply(stream: int, asked: bytes) -> bytes:
        padded = frame(0, 8, stream, bytes([3]) + asked + b"\0\0\0")
        parts = [frame(6, 0, 0, b"12345678"), frame(1, 0, stream, HEADERS[:9]), frame(9, 4, stream, HEADERS[9:])]
        other = frame(0, 1, stream + 1000, b"the end of a call long given up")
        return b"".join([*parts, other, frame(99, 0, 0, b"unknown"), padded, frame(1, 5, stream, DONE)])

    server = Grpc(reply)
    with serving(server, "grpc") as address:
        sender = Http2(address, "/s/m", "m", 10, Late())
        for _ in range(2):
            assert sender.send(b"hello") == b"hello"
        sender.close()
    assert (6, 1, b"12345678") in server.seen


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (
            lambda s, _: frame(1, 5, s, HEADERS + b"@\x0bgrpc-status\x015@\x0cgrpc-message\x07no%20it"),
            InferenceFailed,
            "no it",
        ),
        (lambda s, _: frame(1, 5, s, HEADERS + b"@\x0bgrpc-status\x0214"), ServerUnavailable, "no server answers"),
        (lambda s, _: frame(1, 5, s, HEADERS + b"@\x0bgrpc-status\x014"), ServerUnavailable, "within"),
        (lambda s, _: frame(1, 5, s, HEADERS), InferenceFailed, "no gRPC status"),
        (lambda s, _: frame(1, 5, s, b"\x8d"), InferenceFailed, "HTTP status 404"),
        (lambda s, _: frame(1, 5, s, b"\xff\xff\xff\xff\xff"), InferenceFailed, "headers that cannot be read"),
        (lambda s, _: frame(1, 4, s, HEADERS) + frame(1, 5, s, DONE), InferenceFailed, "not one uncompressed message"),
        (lambda s, _: frame(7, 0, 0, bytes(8)), ServerUnavailable, "going away"),
        (lambda s, _: frame(3, 0, s, struct.pack(">I", 11)), ServerUnavailable, "code 11"),
    ],
)
def test_grpc_answers_that_are_none(reply, error: type[Exception], says: str):
    with serving(Grpc(reply), "grpc") as address:
        sender = Http2(address, "/s/m", "m", 10, Late())
        for _ in range(2):  # and it can go on after each
            with pytest.raises(error, match=says):
                sender.send(b"hello")
        sender.close()


def test_grpc_says_when_it_is_too_late_or_gone():
    with serving(Grpc(lambda stream, asked: b""), "grpc") as address:
        sender = Http2(address, "/s/m", "m", 0.3, Late())
        with pytest.raises(ServerUnavailable, match="within 0.3 s"):
            sender.send(b"hello")
        sender.close()
    with pytest.raises(ServerUnavailable):
        Http2(address, "/s/m", "m", 10, Late()).send(b"hello")

"""Answers leave the gateway whole, and nothing else about a connection is changed by that."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import uvicorn

from tristage.gateway.connections import Connections, _Whole

LARGE = b"x" * 3_000_000


class Written(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def test_a_head_goes_with_the_body_and_all_else_at_once() -> None:
    below = Written()
    transport = _Whole(below)
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    transport.write(head)
    assert below.writes == []
    transport.write(b"body")
    transport.write(b"more")
    assert below.writes == [head + b"body", b"more"]
    transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    transport.flush()
    assert below.writes[2:] == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    transport.write(head)
    transport.write(b"HTTP/1.1 is what this body begins with")
    assert below.writes[3:] == [head + b"HTTP/1.1 is what this body begins with"]
    transport.write(head)
    transport.flush()
    assert below.writes[4:] == [head]
    transport.write(head)
    assert not transport.is_closing()
    transport.close()
    assert below.writes[5:] == [head]
    assert transport.is_closing()
    transport = _Whole(below)
    transport.write(head)
    transport.close()  # the caller has gone meanwhile
    assert below.writes[6:] == []


whole_ones: list[bool] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    path, body, more, whole = scope["path"], b"", True, "whole" in scope["state"]
    while more:
        step = receive()
        if whole:  # it is there
            with pytest.raises(StopIteration) as at_once:
                step.send(None)
            message = at_once.value.value
        else:
            message = await step
        body, more = body + message.get("body", b""), message.get("more_body", False)
    whole_ones.append(whole)
    start: dict[str, Any] = {"type": "http.response.start", "status": 204 if path == "/nothing" else 200, "headers": []}
    if path in ("/echo", "/large"):
        body = body if path == "/echo" else LARGE
        start["headers"] = [(b"content-length", b"%d" % len(body))]
    await send(start)
    if path == "/fails":
        raise RuntimeError("on purpose")
    if path == "/parts":
        await send({"type": "http.response.body", "body": b"HTTP/1.1 ", "more_body": True})
        await asyncio.sleep(0)
        body = b"end"
    await send({"type": "http.response.body", "body": b"" if path == "/nothing" else body})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(app, http=Connections(64, lambda code: None), log_level="critical", lifespan="off")  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def said(port: int, *requests: bytes) -> bytes:
    """All that the server says to requests that are sent at once, until it closes."""
    with closing(socket.create_connection(("127.0.0.1", port), 30)) as caller:
        caller.sendall(b"".join(requests))
        parts = []
        while part := caller.recv(1 << 20):
            parts.append(part)
        return b"".join(parts)


def ask(path: str, body: bytes = b"", method: str = "POST", last: bool = True, **more: str) -> bytes:
    fields = {"Host": "h", "Content-Length": str(len(body)), **({"Connection": "close"} if last else {}), **more}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def test_an_answer_is_whole(port: int) -> None:
    head, _, body = said(port, ask("/echo", b"hello")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"hello"


def test_a_body_may_begin_like_an_answer(port: int) -> None:
    body = b"HTTP/1.1 200 OK\r\n\r\n"
    assert said(port, ask("/echo", body)).partition(b"\r\n\r\n")[2] == body


def test_answers_to_requests_that_came_at_once_keep_their_order(port: int) -> None:
    texts = [b"%d" % number for number in range(20)]
    answer = said(port, *(ask("/echo", text, last=text == texts[-1]) for text in texts))
    assert answer.count(b"HTTP/1.1 200 OK") == 20
    assert [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]] == texts


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_answer_without_a_body_leaves(port: int, method: str) -> None:
    for path in ("/nothing", "/echo"):
        answer = said(port, ask(path, method=method, last=False), ask(path, method=method))
        assert answer.count(b"HTTP/1.1 20") == 2


def test_parts_and_large_bodies(port: int) -> None:
    assert said(port, ask("/parts")).endswith(b"\r\n\r\n9\r\nHTTP/1.1 \r\n3\r\nend\r\n0\r\n\r\n")
    assert said(port, ask("/large")).partition(b"\r\n\r\n")[2] == LARGE


def test_a_caller_that_waits_for_100_is_told_before_it_sends(port: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), 30)) as caller:
        head, _, body = ask("/echo", b"hello", Expect="100-continue").partition(b"\r\n\r\n")
        caller.sendall(head + b"\r\n\r\n")
        assert caller.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.sendall(body)
        answer = b""
        while part := caller.recv(1 << 16):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"\r\n\r\nhello")


def test_what_fails_after_its_head_says_so_and_closes(port: int) -> None:
    answer = said(port, ask("/fails", last=False))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"0\r\n\r\n" not in answer  # a caller sees that it was cut short


def test_what_came_with_its_headers_is_known_to_be_whole(port: int) -> None:
    whole_ones.clear()
    assert said(port, ask("/echo", b"hello"))
    assert said(port, ask("/echo", b"one", last=False), ask("/echo", b"two"))
    assert whole_ones == [True] * 3
    with closing(socket.create_connection(("127.0.0.1", port), 30)) as caller:
        head, _, body = ask("/echo", b"hello", Expect="100-continue").partition(b"\r\n\r\n")
        caller.sendall(head + b"\r\n\r\n")
        assert caller.recv(1 << 16).startswith(b"HTTP/1.1 100")
        caller.sendall(body)
        while caller.recv(1 << 16):
            pass
    assert whole_ones[3:] == [False]

"""Connections: addresses, the bytes of tensors, and every way in which what is below can fail."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from contextlib import closing, contextmanager, suppress

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from tristage.client import AsyncClient, Client, _wire, connect, connect_async
from tristage.client._client import find_signature, join, split
from tristage.client._wire import Address, from_bytes, parse_url, to_bytes
from tristage.columns import SIGNATURE_PARAMETER, Column, Signature
from tristage.errors import InferenceFailed, InputError, RepositoryError, ServerError, ServerUnavailable

PROTOCOLS = ("http", "grpc")
X = {"x": np.ones((2, 1), np.float32)}


def objects(values, shape=None):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array if shape is None else array.reshape(shape)


# ------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "protocol", "address"),
    [
        ("http://host:9000", None, Address("http", "host", 9000)),
        ("http://host", None, Address("http", "host", 8000)),
        ("grpc://host", None, Address("grpc", "host", 8001)),
        ("host:9000", None, Address("http", "host", 9000)),
        ("host:9000", "grpc", Address("grpc", "host", 9000)),
        ("grpc://host:1", "grpc", Address("grpc", "host", 1)),
        ("http://host:80/behind/a/proxy/", None, Address("http", "host", 80, "/behind/a/proxy")),
        ("http://[::1]:8000", None, Address("http", "::1", 8000)),
    ],
)
def test_urls(url, protocol, address):
    got = parse_url(url, protocol)
    assert got == address
    assert parse_url(got.url) == address


@pytest.mark.parametrize(
    ("url", "protocol", "says"),
    [
        ("ftp://host", None, "not a server's"),
        ("https://host", None, "not a server's"),
        ("", None, "not a server's"),
        ("http://", None, "not a server's"),
        ("http://host:port", None, "cannot be read"),
        ("http://host:99999", None, "cannot be read"),
        ("http://host?x=1", None, "not a server's"),
        ("http://host:8000", "grpc", "says http and the protocol asked for is grpc"),
        ("grpc://host/path", None, "has a path"),
        ("host:8000", "smtp", '"smtp" is not known'),
    ],
)
def test_bad_urls(url, protocol, says):
    for make in (connect, connect_async, Client):
        with pytest.raises(InputError, match=says):
            make(url, protocol=protocol)


# --------------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("texts", [["a", "", "ümläut", "x" * 300, "\x00\x01"], [""], ["€"] * 1000])
def test_strings_are_written_as_tritonclient_writes_them(texts):
    array = objects(texts, (-1, 1))
    data = to_bytes("c", array)
    assert data == serialize_byte_tensor(array).item()
    assert [item.decode() for item in deserialize_bytes_tensor(data)] == texts
    assert from_bytes(data, "BYTES", array.shape).tolist() == array.tolist()


def test_no_strings_are_no_bytes():
    assert to_bytes("c", objects([], (0, 1))) == b""
    assert from_bytes(b"", "BYTES", (0, 1)).shape == (0, 1)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int32", "int64", "uint64", "float32", "float64"])
def test_numbers_come_back_from_slices_too(dtype):
    array = np.arange(24).reshape(6, 4).astype(dtype)
    for piece in (array, array[2:5], array[:, 1:2], np.asfortranarray(array)):
        got = from_bytes(to_bytes("c", piece), _wire.triton_name("c", piece), piece.shape)
        np.testing.assert_array_equal(got, piece)
        assert got.dtype == array.dtype


def test_what_triton_does_not_take_is_refused():
    with pytest.raises(InputError, match=r'column "c" is an array of complex128'):
        _wire.http_request({"c": np.ones((1, 1), complex)}, ["y"])
    with pytest.raises(InputError, match='column "c" holds what is not a string'):
        _wire.http_request({"c": objects(["a", 5], (2, 1))}, ["y"])


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [(b"\x05\0\0\0ab", "BYTES", (1,)), (b"\0\0\0", "FP32", (1,)), (b"\0\0\0\0", "FP32", (2,)), (b"", "FP128", (0,))],
)
def test_bytes_that_do_not_fit_their_shape(data, dtype, shape):
    with pytest.raises((ValueError, KeyError)):
        from_bytes(data, dtype, shape)


def test_a_protobuf_message_reads_as_json():
    message = service_pb2.ModelStatisticsResponse()
    entry = message.model_stats.add(name="m", inference_count=2**40)
    entry.inference_stats.success.count = 3
    entry.response_stats["0"].success.ns = 7
    got = _wire.to_dict(message)["model_stats"][0]
    assert got["inference_count"] == 2**40
    assert got["execution_count"] == 0
    assert got["inference_stats"]["success"] == {"count": 3, "ns": 0}
    assert got["response_stats"]["0"]["success"]["ns"] == 7
    assert got["batch_stats"] == []


# ---------------------------------------------------------------------------------------------------------- errors


@contextmanager
def server(behave):
    """A port at which `behave(connection)` happens to each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=safely, args=(connection,), daemon=True).start()

    def safely(connection):
        with suppress(OSError):
            behave(connection)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in connections:
            connection.close()


def hang(connection):
    time.sleep(30)


def hang_up(connection):
    connection.shutdown(socket.SHUT_RDWR)


def babble(connection):
    connection.recv(100)
    connection.sendall(b"220 mail.example.org ESMTP\r\n\r\n" * 10)
    connection.shutdown(socket.SHUT_RDWR)


def answer(status, body, headers=b"", *, length=None):
    def behave(connection):
        while connection.recv(1 << 16):
            size = len(body) if length is None else length
            connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, size, headers, body))
            if length is not None:
                connection.shutdown(socket.SHUT_RDWR)

    return behave


def ask(url, kind, question, timeout=5.0):
    """One question through the blocking or the asyncio connection."""
    arguments = {"infer": ("m", X, ["y"]), "models": ()}.get(question, ("m",))
    if kind == "blocking":
        with closing(connect(url)) as transport:
            return getattr(transport, question)(*arguments, timeout)

    async def main():
        transport = connect_async(url)
        try:
            return await getattr(transport, question)(*arguments, timeout)
        finally:
            await transport.close()

    return asyncio.run(main())


QUESTIONS = ("ready", "config", "infer", "statistics", "models")
both_kinds = pytest.mark.parametrize("kind", ["blocking", "asyncio"])
both_protocols = pytest.mark.parametrize("protocol", PROTOCOLS)


@both_kinds
@both_protocols
@pytest.mark.parametrize("question", QUESTIONS)
def test_nothing_there(kind, protocol, question):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"{protocol}://127.0.0.1:{port}"
    with pytest.raises(ServerUnavailable, match=f"no server answers at {url} .*tristage serve REPOSITORY") as caught:
        ask(url, kind, question)
    assert caught.value.url == url
    assert caught.value.__cause__ is not None


@both_kinds
@both_protocols
def test_no_such_host(kind, protocol):
    with pytest.raises(ServerUnavailable, match="no server answers"):
        ask(f"{protocol}://no-such-host.invalid:8000", kind, "infer")
    if protocol == "http":
        with pytest.raises(ServerUnavailable, match="no server answers"):
            ask(f"http://{'a' * 70}..example:8000", kind, "infer")


@both_kinds
@both_protocols
@pytest.mark.parametrize("behave", [hang_up, babble])
def test_what_is_there_hangs_up_or_is_no_triton(kind, protocol, behave):
    with server(behave) as port, pytest.raises((ServerUnavailable, InferenceFailed)) as caught:
        ask(f"{protocol}://127.0.0.1:{port}", kind, "infer", timeout=2.0)
    assert f"127.0.0.1:{port}" in str(caught.value)


@both_kinds
@both_protocols
def test_what_is_there_says_nothing(kind, protocol):
    start = time.monotonic()
    with server(hang) as port, pytest.raises(ServerUnavailable, match=r"did not answer within 0.5 s"):
        ask(f"{protocol}://127.0.0.1:{port}", kind, "infer", timeout=0.5)
    assert time.monotonic() - start < 5


BINARY = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2,1],"parameters":{"binary_data_size":8}}]}'
HEADER = b"Inference-Header-Content-Length: %d\r\n" % len(BINARY)


@both_kinds
@pytest.mark.parametrize(
    ("behave", "error", "says"),
    [
        (answer(b"400 Bad Request", b'{"error":"bad shape"}'), InferenceFailed, r'request to "m" \[400\]: bad shape'),
        (answer(b"404 Not Found", b"<html>"), InferenceFailed, r"\[404\]: <html>"),
        (answer(b"500 Oh", b""), InferenceFailed, r"\[500\]: it gave no reason"),
        (answer(b"503 Busy", b'{"error":"stopping"}'), ServerUnavailable, "HTTP 503: stopping"),
        (answer(b"504 Late", b""), ServerUnavailable, "did not answer within 5 s"),
        (answer(b"200 OK", b"hello"), InferenceFailed, "cannot be read"),
        (answer(b"200 OK", b"[]"), InferenceFailed, "cannot be read"),
        (answer(b"200 OK", b'{"outputs":[]}'), InferenceFailed, "KeyError: 'y'"),
        (answer(b"200 OK", b'{"outputs":[{"name":"y","data":[1]}]}'), InferenceFailed, "is not binary"),
        (answer(b"200 OK", BINARY + b"\0" * 4, HEADER), InferenceFailed, "cannot be read"),
        (answer(b"200 OK", BINARY, HEADER, length=500), ServerUnavailable, "no server answers"),
    ],
)
def test_answers_that_are_none(kind, behave, error, says):
    with server(behave) as port, pytest.raises(error, match=says):
        ask(f"http://127.0.0.1:{port}", kind, "infer")


@both_kinds
def test_an_answer_that_is_one(kind):
    with server(answer(b"200 OK", BINARY + np.array([1, 2], "<f4").tobytes(), HEADER)) as port:
        got = ask(f"http://127.0.0.1:{port}", kind, "infer")
    assert got["y"].tolist() == [[1.0], [2.0]]


@both_kinds
@pytest.mark.parametrize("question", ["config", "statistics", "models"])
def test_other_answers_that_are_none(kind, question):
    for body in (b"nonsense", b"5", b'["x"]'):
        with server(answer(b"200 OK", body)) as port, pytest.raises(InferenceFailed, match="is it a Triton server"):
            ask(f"http://127.0.0.1:{port}", kind, question)


@both_kinds
def test_a_kept_connection_that_the_server_dropped_is_made_anew(kind):
    body = BINARY + b"\0" * 8

    def once(connection):
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), HEADER, body))
        connection.recv(1)  # the next request: too late for it
        connection.shutdown(socket.SHUT_RDWR)

    with server(once) as port:
        url = f"http://127.0.0.1:{port}"
        if kind == "blocking":
            with closing(connect(url)) as transport:
                for _ in range(3):
                    assert transport.infer("m", X, ["y"], 5.0)["y"].tolist() == [[0.0], [0.0]]
            return

        async def main():
            transport = connect_async(url)
            for _ in range(3):
                assert (await transport.infer("m", X, ["y"], 5.0))["y"].tolist() == [[0.0], [0.0]]
            await transport.close()

        asyncio.run(main())


def test_after_an_interrupt_no_answer_is_taken_for_another():
    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    def late(connection):
        for n in range(2):
            connection.recv(1 << 16)
            time.sleep(0.5)
            body = BINARY + np.full(2, n, "<f4").tobytes()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), HEADER, body))

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with server(late) as port, closing(connect(f"http://127.0.0.1:{port}")) as transport:
            assert transport.infer("m", X, ["y"], 5.0)["y"].tolist() == [[0.0], [0.0]]
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(Interrupted):
                transport.infer("m", X, ["y"], 5.0)
            # on the old connection this would be the interrupted request's answer, all ones
            assert transport.infer("m", X, ["y"], 5.0)["y"].tolist() == [[0.0], [0.0]]
    finally:
        signal.signal(signal.SIGUSR1, before)


@both_protocols
def test_a_closed_connection_says_so(protocol):
    transport = connect(f"{protocol}://127.0.0.1:9")
    transport.close()
    transport.close()
    with pytest.raises(ServerUnavailable, match="was closed"):
        transport.config("m", 1.0)

    async def main():
        other = connect_async(f"{protocol}://127.0.0.1:9")
        await other.close()
        await other.close()
        with pytest.raises(ServerUnavailable, match="was closed"):
            await other.config("m", 1.0)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------- what clients do


def config(name):
    text = Signature(name, 8, (Column("a", "int64"),), (Column("y", "float32"),)).to_json()
    return {"parameters": {SIGNATURE_PARAMETER: {"string_value": text}}}


def test_the_only_stack_is_found():
    assert find_signature("u", None, {"s_x": {}, "s": config("s"), "t": {"parameters": {}}}).stack == "s"


@pytest.mark.parametrize(
    ("stack", "configs", "error", "says"),
    [
        (None, {}, ServerError, "u serves no stack that tristage exported, but nothing"),
        (None, {"b": {}, "a": {}}, ServerError, 'but "a", "b"'),
        (None, {"s": config("s"), "r": config("r")}, ServerError, r'several stacks, "r", "s"; .*--stack'),
        ("a", {"a": {}}, ServerError, '"a" at u was not exported by tristage'),
        (
            None,
            {"a": {"parameters": {SIGNATURE_PARAMETER: {"string_value": "{"}}}},
            RepositoryError,
            "signature cannot be read",
        ),
    ],
)
def test_no_stack_or_several(stack, configs, error, says):
    with pytest.raises(error, match=says):
        find_signature("u", stack, configs)


def test_parts_are_in_order_and_join():
    tensors = {"a": np.arange(10).reshape(10, 1), "b": np.arange(20).reshape(10, 2)}
    parts = list(split(tensors, 4))
    assert [len(part["a"]) for part in parts] == [4, 4, 2]
    for name, array in join(parts, ["a", "b"]).items():
        np.testing.assert_array_equal(array, tensors[name])
    with pytest.raises(InferenceFailed, match="do not fit together"):
        join([{"a": np.ones((1, 1))}, {"a": np.ones((1, 2))}], ["a"])


def test_clients_need_no_server_to_be_made():
    with Client("grpc://127.0.0.1:9") as client:
        assert client.url == "grpc://127.0.0.1:9"

    async def main():
        async with AsyncClient("http://127.0.0.1:9/") as client:
            assert client.url == "http://127.0.0.1:9"

    asyncio.run(main())

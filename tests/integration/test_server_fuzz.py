"""Requests that no client of ours sends, to the ensemble itself: whatever comes, the next good request is answered."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tristage.client import Client, encode, verify
from tristage.serving import Server, serve

pytestmark = pytest.mark.xdist_group("fuzz")  # one worker exports and serves
LARGE = 10 << 20
ODD_NUMBERS = (np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, -0.0, 2.0**63, -(2.0**63))


@pytest.fixture(scope="module", params=["ensemble", "fused"])
def served(
    request: pytest.FixtureRequest,
    tiny_stack: Path,
    tiny_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
    cli: Callable[..., Any],
) -> Iterator[tuple[Server, Path]]:
    path = tiny_repository
    if request.param == "fused":
        path = tmp_path_factory.mktemp("fuzz") / "repository"
        done = cli("export", "--trust", tiny_stack / "stack.yaml", "-o", path, "--layout", "fused")
        assert done.code == 0, done.err
    with serve(path, cores=[0], http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server, path


def good(path: Path, url: str, rows: int = 3) -> dict[str, np.ndarray]:
    with Client(url) as client:
        table = pq.read_table(path / "golden.parquet").slice(0, rows)
        return dict(encode(table, client.signature, unknown="ignore"))


def ask(url: str, tensors: dict[str, np.ndarray], told: dict[str, str] | None = None) -> None:
    """Send tensors as they are, with the dtype that they have or are `told` to have."""
    module: Any = http if url.startswith("http") else grpc
    address = url.partition("://")[2]
    inputs = []
    for name, values in tensors.items():
        tensor = module.InferInput(name, list(values.shape), (told or {}).get(name, np_to_triton_dtype(values.dtype)))
        if told and name in told:  # its bytes as of another type
            tensor._data_type = np_to_triton_dtype(values.dtype)
            tensor.set_data_from_numpy(values)
            (tensor._tensor if module is grpc else tensor).__setattr__(
                "datatype" if module is grpc else "_datatype", told[name]
            )
        else:
            tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    with module.InferenceServerClient(address, **({} if module is grpc else {"network_timeout": 60.0})) as client:
        client.infer("tiny", inputs, **({"client_timeout": 60} if module is grpc else {}))


def processes(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.pid).children(recursive=True)}


def check(server: Server, path: Path, before: set[int]) -> None:
    """The server and every process of it are there, and the golden rows are answered as at export."""
    assert server.alive()
    assert processes(server) == before
    with Client(server.grpc_url) as client:
        verify(client, path).check()


def refuse(url: str, tensors: dict[str, np.ndarray], told: dict[str, str] | None = None) -> None:
    with pytest.raises(InferenceServerException):
        ask(url, tensors, told)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_wrong_dtypes_and_shapes(served: tuple[Server, Path], protocol: str) -> None:
    server, path = served
    url = getattr(server, f"{protocol}_url")
    before, rows = processes(server), good(path, server.grpc_url)
    for name, values in rows.items():
        text = values.dtype == object
        for wrong in (np.zeros(values.shape, np.int8), np.full(values.shape, "x", object)):
            if wrong.dtype != values.dtype and not (text and wrong.dtype == object):
                refuse(url, {**rows, name: wrong})
        for shape in ((3,), (0, values.shape[1]), (3, 0), (3, values.shape[1] + 1), (3, values.shape[1], 1), (2, 1)):
            wrong = np.full(shape, "", object) if text else np.zeros(shape, values.dtype)
            if wrong.shape != values.shape:
                refuse(url, {**rows, name: wrong})
        refuse(url, {key: tensor for key, tensor in rows.items() if key != name})
    refuse(url, {**rows, "nobody": np.zeros((3, 1), np.float32)})
    refuse(url, {})
    check(server, path, before)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_odd_values(served: tuple[Server, Path], protocol: str) -> None:
    server, path = served
    url = getattr(server, f"{protocol}_url")
    before, rows = processes(server), good(path, server.grpc_url)
    for name, values in rows.items():
        odd: list[Any]
        if values.dtype == object:
            odd = [b"\x00", b"\xff\xfe", "\U0001f600" * 50, b"", b"\x01", b"a\x00b"]
        elif values.dtype.kind == "f":
            odd = list(ODD_NUMBERS)
        elif values.dtype.kind == "b":
            odd = [True, False]
        else:
            about = np.iinfo(values.dtype)
            odd = [about.min, about.max, 0, -1 if about.min else 1]
        for value in odd:
            with_it = values.copy()
            with_it[1] = value
            with contextlib.suppress(InferenceServerException):  # answered or refused, but not the end of anything
                ask(url, {**rows, name: with_it})
    check(server, path, before)


def test_failing_requests_among_good_ones(served: tuple[Server, Path]) -> None:
    """Steps side by side that fail at once are what Triton 2.51 itself does not survive."""
    server, path = served
    before, rows = processes(server), good(path, server.grpc_url)
    tokens = rows["tokens"].copy()
    tokens[1] = 2**62  # in no table of the two nets, which read it side by side
    user = rows["user"].copy()
    user[1] = b"\xff\xfe"

    def some(worker: int) -> None:
        for number in range(60):
            wrong = {0: {}, 1: {"tokens": tokens}, 2: {}, 3: {"tokens": tokens, "user": user}}[(worker + number) % 4]
            if wrong:
                refuse(server.grpc_url, {**rows, **wrong})
            else:
                ask(server.grpc_url, rows)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(some, range(8)))
    check(server, path, before)


def test_ten_megabytes_of_text_in_a_field(served: tuple[Server, Path]) -> None:
    server, path = served
    before, rows = processes(server), good(path, server.grpc_url)
    texts = [name for name, values in rows.items() if values.dtype == object]
    assert texts
    for name in texts:
        for value in (b"x" * LARGE, b"1\t" * (LARGE // 2), b"\xff" * LARGE):
            with_it = rows[name].copy()
            with_it[0] = value
            with contextlib.suppress(InferenceServerException):
                ask(server.grpc_url, {**rows, name: with_it})
    check(server, path, before)


def test_a_hundred_thousand_rows(served: tuple[Server, Path]) -> None:
    server, path = served
    before, rows = processes(server), good(path, server.grpc_url, 1)
    refuse(server.grpc_url, {name: np.repeat(values, 100_000, axis=0) for name, values in rows.items()})
    check(server, path, before)


def test_bytes_that_lie_about_their_type(served: tuple[Server, Path]) -> None:
    server, path = served
    before, rows = processes(server), good(path, server.grpc_url)
    for name, values in rows.items():
        if values.dtype == object:  # what should be lengths and bytes is anything
            for junk in (b"", b"\xff\xff\xff\x7f", b"\x00" * 3, b"\x05\x00\x00\x00ab", b"\xff" * 64):
                tensors = {}
                for key, tensor in rows.items():
                    made = grpc.InferInput(key, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
                    made.set_data_from_numpy(tensor)
                    if key == name:
                        made._raw_content = junk
                    tensors[key] = made
                with (
                    grpc.InferenceServerClient(server.grpc_url.partition("://")[2]) as client,
                    pytest.raises(InferenceServerException),
                ):
                    client.infer("tiny", list(tensors.values()), client_timeout=60)
        else:
            refuse(server.grpc_url, rows, {name: "INT8" if values.dtype.itemsize > 1 else "INT64"})
    check(server, path, before)


def test_requests_that_break_off(served: tuple[Server, Path]) -> None:
    server, path = served
    before = processes(server)
    host, _, port = server.http_url.partition("://")[2].partition(":")
    for sent in (
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n{",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\nInference-Header-Content-Length: 99999999999\r\n"
        b"Content-Length: 2\r\n\r\n{}",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[]",
        b"\x00" * 10_000,
    ):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
            connection.settimeout(1)
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                connection.recv(1024)
    check(server, path, before)

"""What is checked before a server starts: ports, host, cores; and what is read from its log after."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path

import pytest

from tristage.errors import PortInUse, ServerError
from tristage.serving.cli import parse_cores
from tristage.serving.log import Log, reason, still_loading, taken_port
from tristage.serving.machine import address_of, check_cores, choose_ports
from tristage.serving.server import _listens

ZEROS = {"--http-port": 0, "--grpc-port": 0, "--metrics-port": 0}


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_free_ports_are_chosen_and_differ() -> None:
    ports = choose_ports("127.0.0.1", ZEROS)
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert min(ports.http, ports.grpc, ports.metrics) > 1023


@pytest.mark.parametrize("option", list(ZEROS))
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_named_with_the_option_that_changes_it(taken: int, option: str, address: str) -> None:
    with pytest.raises(PortInUse, match=f"port {taken} on {address} is already taken.*{option}") as caught:
        choose_ports(address, {**ZEROS, option: taken})
    assert caught.value.port == taken
    assert caught.value.exit_code == 3


def test_a_port_wanted_twice_is_taken() -> None:
    port = choose_ports("127.0.0.1", ZEROS).http
    with pytest.raises(PortInUse, match="--grpc-port"):
        choose_ports("127.0.0.1", {"--http-port": port, "--grpc-port": port, "--metrics-port": 0})


def test_a_port_that_waits_out_its_last_use_is_free() -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = listener.accept()
        accepted.close()  # the side that closes first is left in TIME_WAIT
        client.recv(1)
    listener.close()
    assert choose_ports("127.0.0.1", {**ZEROS, "--http-port": port}).http == port


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ServerError, match=f"--grpc-port {port} is not a port"):
        choose_ports("127.0.0.1", {**ZEROS, "--grpc-port": port})


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ServerError, match=r"--host 203\.0\.113\.1 is not an address of this machine"):
        choose_ports("203.0.113.1", ZEROS)


def test_host_names_are_resolved_and_unknown_ones_refused() -> None:
    assert address_of("localhost") == "127.0.0.1"
    assert address_of("0.0.0.0") == "0.0.0.0"
    with pytest.raises(ServerError, match=r"--host zork\.invalid"):
        address_of("zork.invalid")


def test_cores_are_checked_without_changing_this_program() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    assert check_cores(None) is None
    assert check_cores([core, core]) == (core,)
    for wrong in ([100_000], [core, 100_000], [-1], []):
        with pytest.raises(ServerError, match="--cores: cannot use core"):
            check_cores(wrong)
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(("text", "cores"), [("0", [0]), ("0,2-3", [0, 2, 3]), (" 3 , 1", [1, 3]), ("1-1,1", [1])])
def test_core_lists_are_parsed(text: str, cores: list[int]) -> None:
    assert parse_cores(text) == cores


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "0,", "0-99999999999"])
def test_what_is_no_core_list_is_refused(text: str) -> None:
    with pytest.raises(ServerError, match="--cores .* is no list of cores"):
        parse_cores(text)


def test_who_listens_on_a_port_is_told(taken: int) -> None:
    assert _listens(os.getpid(), taken)
    assert not _listens(os.getpid(), 1)
    assert not _listens(os.getppid(), taken)
    assert not _listens(2**22 + 1, taken)


NOISE = [
    'E1120 18:31:11.410501 7171 server.cc:241] "CudaDriverHelper has not been initialized."',
    'I1120 18:31:11.411345 7171 model_lifecycle.cc:472] "loading: a:1"',
    'I1120 18:31:11.411345 7171 model_lifecycle.cc:472] "loading: b:1"',
    "I1120 18:31:13.738032 7171 model_lifecycle.cc:839] \"successfully loaded 'b'\"",
]


def test_the_reason_is_the_model_that_failed_without_its_traceback() -> None:
    line = (
        "E1120 18:31:11.730399 7171 model_lifecycle.cc:642] \"failed to load 'a' version 1: Internal: KeyError: "
        '\\"zork\\"\\nsecond line\\n\\nAt:\\n  /m/a/1/model.py(1): <module>\\n"'
    )
    ended = "error: creating server: Internal - failed to load all models"
    assert reason([*NOISE, line, ended]) == 'model a does not load: Internal: KeyError: "zork"\nsecond line'


def test_the_reason_is_the_first_error_where_no_model_failed() -> None:
    lines = [f'E1120 18:31:16.3382{n} 7 repository.cc:1] "cause {n}"' for n in range(4)]
    assert reason(NOISE + lines) == "cause 0\ncause 1"


def test_the_reason_is_the_last_line_where_there_is_no_error() -> None:
    assert (
        reason(["tritonserver: cannot open shared object file", ""]) == "tritonserver: cannot open shared object file"
    )
    assert reason([]) == "it wrote nothing"


def test_models_still_loading_are_told() -> None:
    assert still_loading(NOISE) == ["a"]


def test_a_port_triton_found_taken_is_told() -> None:
    line = "E1120 1 7 main.cc:293] \"failed: Unavailable - Socket '127.0.0.1:354' already in use \""
    assert taken_port([*NOISE, line]) == 354
    assert taken_port(NOISE) is None


def test_the_log_goes_to_files_and_functions_whole(tmp_path: Path) -> None:
    raw = b"one\ntwo \xff\r\nlast without newline"
    expected = ["one", "two \ufffd", "last without newline"]
    text, lines = StringIO(), list[str]()
    for target in (text, lines.append, None):
        log = Log(BytesIO(raw), target)
        log.finish(5)
        assert log.tail() == expected
    assert text.getvalue().splitlines() == expected
    assert lines == expected


def test_a_target_that_raises_is_dropped_and_the_rest_still_read() -> None:
    calls = []

    def refuse(line: str) -> None:
        calls.append(line)
        raise ValueError(line)

    log = Log(BytesIO(b"a\nb\n"), refuse)
    log.finish(5)
    assert calls == ["a"]
    assert log.tail() == ["a", "b"]
    assert not [thread for thread in threading.enumerate() if thread.name == "tristage-log"]

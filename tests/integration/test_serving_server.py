"""A real Triton on small hand-written repositories."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

import tristage
from tristage.columns import Column, Signature
from tristage.errors import PortInUse, RepositoryError, ServerError
from tristage.manifest import Manifest, checksums, write_manifest
from tristage.serving import Server, serve

RUNNER = "from tristage.serving.runner import TritonPythonModel  # noqa: F401\n"
SLOW = """
import time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if x[0, 0] > 0:
                Path(__file__).with_name("executing").touch()
            time.sleep(float(x[0, 0]))
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.float32(2) * x)]))
        return answers
"""
CONFIG = """
backend: "python"
max_batch_size: 64
input {{ name: "x" data_type: TYPE_FP32 dims: [2] }}
{more_inputs}
output {{ name: "y" data_type: TYPE_FP32 dims: [2] }}
{more_outputs}
instance_group {{ count: 1 kind: KIND_CPU }}
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 64
input {{ name: "x" data_type: TYPE_FP32 dims: [2] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [2] }}
ensemble_scheduling {{ step {{ model_name: "{model}" model_version: -1
  input_map {{ key: "x" value: "x" }} output_map {{ key: "y" value: "y" }} }} }}
"""
STRINGS_IN = 'input { name: "s" data_type: TYPE_STRING dims: [1] }'
STRINGS_OUT = 'output { name: "t" data_type: TYPE_STRING dims: [1] }'


def graph(path: Path, strings: bool = False) -> None:
    """y = 2 * x, where row n of x has two columns; t = s."""
    nodes = [helper.make_node("Mul", ["x", "two"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    if strings:
        nodes.append(helper.make_node("Identity", ["s"], ["t"]))
        inputs.append(helper.make_tensor_value_info("s", TensorProto.STRING, ["n", 1]))
        outputs.append(helper.make_tensor_value_info("t", TensorProto.STRING, ["n", 1]))
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    made = helper.make_graph(nodes, "g", inputs, outputs, [two])
    onnx.save(helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), path)


def seal(root: Path) -> Path:
    column = (Column("x", "float32", length=2, pad=0.0),)
    signature = Signature("tiny", 64, column, (Column("y", "float32"),))
    write_manifest(root, Manifest("tiny", "pip-cpu", "ensemble", signature, {}, {}, checksums(root)))
    return root


def write(root: Path, model: str = RUNNER, *, ensemble: bool = True, strings: bool = False, delay: int = 0) -> Path:
    step = "tiny_step" if ensemble else "tiny"
    (root / step / "1").mkdir(parents=True)
    (root / step / "1" / "model.py").write_text(model)
    more = (
        {"more_inputs": STRINGS_IN, "more_outputs": STRINGS_OUT} if strings else {"more_inputs": "", "more_outputs": ""}
    )
    (root / step / "config.pbtxt").write_text(f'name: "{step}"' + CONFIG.format(delay=delay, **more))
    graph(root / step / "1" / "graph.onnx", strings)
    if ensemble:
        (root / "tiny" / "1").mkdir(parents=True)
        (root / "tiny" / "1" / ".keep").touch()
        (root / "tiny" / "config.pbtxt").write_text('name: "tiny"' + ENSEMBLE.format(model=step))
    return seal(root)


FREE: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
# a program started here imports the same tristage
HOME = str(Path(tristage.__file__).resolve().parent.parent)
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [HOME, os.environ.get("PYTHONPATH")]))}


def request(module: Any, value: float, rows: int = 1) -> list[Any]:
    tensor = module.InferInput("x", [rows, 2], "FP32")
    tensor.set_data_from_numpy(np.full((rows, 2), value, np.float32))
    return [tensor]


def infer(server_url: str, value: float, rows: int = 1, model: str = "tiny") -> np.ndarray[Any, Any]:
    """y of one request, over the protocol of the URL."""
    protocol, _, address = server_url.partition("://")
    module: Any = grpcclient if protocol == "grpc" else httpclient
    client = module.InferenceServerClient(address)
    try:
        answer = client.infer(model, request(module, value, rows))
        found: np.ndarray[Any, Any] = answer.as_numpy("y")
        return found
    finally:
        client.close()


def await_executing(root: Path) -> None:
    """Return once a SLOW model of this repository is at a request."""
    deadline = time.monotonic() + 30
    while not list(root.glob("*/1/executing")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def group(pid: int) -> list[int]:
    """Processes of the group that tritonserver and its stubs form."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def gone(pid: int, within: float = 15.0) -> bool:
    """Whether tritonserver and all its stubs end in time."""
    deadline = time.monotonic() + within
    while group(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not group(pid)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that only talk: strings too, requests joined for up to 50 ms, pinned to core 0."""
    root = write(tmp_path_factory.mktemp("shared") / "repository", ensemble=False, strings=True, delay=50_000)
    with serve(root, cores=[min(os.sched_getaffinity(0))], **FREE) as running:
        yield running


def ask_strings(client: Any, module: Any, x: float, strings: list[object]) -> tuple[Any, list[object]]:
    tensor = module.InferInput("s", [len(strings), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(strings, dtype=object).reshape(-1, 1))
    answer = client.infer("tiny", [*request(module, x, len(strings)), tensor])
    return answer.as_numpy("y"), answer.as_numpy("t").ravel().tolist()


@pytest.mark.parametrize("module", [httpclient, grpcclient])
def test_a_step_answers_numbers_and_strings(server: Server, module: Any) -> None:
    url = server.http_url if module is httpclient else server.grpc_url
    with module.InferenceServerClient(url.partition("://")[2]) as client:
        y, strings = ask_strings(client, module, 1.5, ["ü", "", "\x01", "ends in nul\x00"])
    assert y.tolist() == [[3.0, 3.0]] * 4
    assert strings == [b"\xc3\xbc", b"", b"\x01", b"ends in nul\x00"]


def test_joined_requests_get_their_own_answers(server: Server) -> None:
    address = server.grpc_url.removeprefix("grpc://")

    def one(number: int) -> tuple[Any, list[object]]:
        with grpcclient.InferenceServerClient(address) as client:
            return ask_strings(client, grpcclient, number, [f"r{number}"] * (1 + number % 3))

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(16)))
    for number, (y, strings) in enumerate(answers):
        assert y.tolist() == [[2.0 * number] * 2] * (1 + number % 3)
        assert strings == [f"r{number}".encode()] * (1 + number % 3)
    with grpcclient.InferenceServerClient(address) as client:
        statistics = client.get_inference_statistics("tiny").model_stats[0]
    assert statistics.execution_count < statistics.inference_stats.success.count, "nothing was joined"


def test_a_string_that_is_not_utf8_fails_only_its_own_request(server: Server) -> None:
    address = server.grpc_url.removeprefix("grpc://")

    def one(number: int) -> Any:
        with grpcclient.InferenceServerClient(address) as client:
            try:
                return ask_strings(client, grpcclient, number, [b"\xff\xfe" if number == 3 else "fine"])[0][0, 0]
            except InferenceServerException as error:
                return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    assert "input s holds a string that is not UTF-8" in answers.pop(3)
    assert answers == [0.0, 2.0, 4.0, 8.0, 10.0, 12.0, 14.0]


def test_server_and_stubs_are_pinned(server: Server) -> None:
    core = min(os.sched_getaffinity(0))
    processes = group(server.pid)
    assert server.cores == (core,)
    assert len(processes) >= 2, "a stub should be there"
    for pid in processes:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            assert f"Cpus_allowed_list:\t{core}\n" in (thread / "status").read_text()


def test_thread_pools_are_as_large_as_the_cores(server: Server) -> None:
    variables = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=1" in variables
    assert b"TRISTAGE_THREADS=1" in variables


def test_metrics_are_served(server: Server) -> None:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        assert b"nv_inference_request_success" in answer.read()


def test_only_loopback_is_listened_on(server: Server) -> None:
    inodes = {os.readlink(entry) for entry in Path(f"/proc/{server.pid}/fd").iterdir()}
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                listening.add(fields[1].rpartition(":")[0])
    assert listening
    assert listening <= {"0100007F", "0000000000000000FFFF00000100007F"}


def admin_calls(server: Server, http: dict[str, str], grpc: dict[str, str]) -> dict[str, bool]:
    """Which of the calls that administer Triton it answers to requests with these headers."""
    over_http = httpclient.InferenceServerClient(server.http_url.removeprefix("http://"))
    over_grpc = grpcclient.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
    calls: dict[str, Callable[[], object]] = {
        f"{kind} {what}": functools.partial(getattr(client, method), headers=headers, **arguments)
        for kind, client, headers in (("http", over_http, http), ("grpc", over_grpc, grpc))
        for what, method, arguments in (
            ("shared memory", "get_system_shared_memory_status", {}),
            ("shared memory's end", "unregister_system_shared_memory", {}),
            ("tracing", "get_trace_settings", {}),
            ("tracing's change", "update_trace_settings", {"settings": {"trace_rate": "1000"}}),
            ("logging", "get_log_settings", {}),
            ("logging's change", "update_log_settings", {"settings": {"log_verbose_level": 0}}),
        )
    }
    answered = {}
    with over_http, over_grpc:
        for name, call in calls.items():
            try:
                call()
                answered[name] = True
            except InferenceServerException as error:
                if "restricted" not in str(error):
                    raise
                answered[name] = False
    return answered


def test_administration_is_closed_where_other_machines_reach_it(tmp_path: Path) -> None:
    guess = {"tristage-admin-key": "guessed", "triton-grpc-protocol-tristage-admin-key": "guessed"}
    with serve(write(tmp_path / "repository"), host="0.0.0.0", **FREE) as running:
        for headers in ({}, guess):
            answered = admin_calls(running, headers, headers)
            assert len(answered) == 12
            assert not any(answered.values()), answered


def test_shared_memory_alone_is_open_to_this_machine(server: Server) -> None:
    answered = admin_calls(server, {}, {})
    assert {name for name, done in answered.items() if done} == {name for name in answered if "shared memory" in name}


@pytest.mark.parametrize("percentiles", [False, True])
def test_metrics_hold_percentiles_where_asked(tmp_path: Path, percentiles: bool) -> None:
    with serve(write(tmp_path / "repository"), percentiles=percentiles, **FREE) as running:
        infer(running.http_url, 2.0)
        metrics = urllib.request.urlopen(running.metrics_url, timeout=10).read().decode()
    found = re.findall(r'nv_inference_request_summary_us\{.*quantile="([^"]+)"', metrics)
    assert sorted(set(found)) == (["0.5", "0.9", "0.95", "0.99", "0.999"] if percentiles else [])


def test_administration_is_open_to_who_has_the_key(tmp_path: Path) -> None:
    key = "0123456789abcdef-_XYZ"
    with serve(write(tmp_path / "repository"), host="0.0.0.0", admin_key=key, **FREE) as running:
        http, grpc = {"tristage-admin-key": key}, {"triton-grpc-protocol-tristage-admin-key": key}
        assert all(admin_calls(running, http, grpc).values())
        assert not any(admin_calls(running, {"tristage-admin-key": key + "x"}, {}).values())
        assert infer(running.http_url, 2.0).tolist() == infer(running.grpc_url, 2.0).tolist() == [[4.0, 4.0]]


@pytest.mark.parametrize("module", [httpclient, grpcclient])
def test_models_cannot_be_loaded_or_unloaded(server: Server, module: Any) -> None:
    url = server.http_url if module is httpclient else server.grpc_url
    with module.InferenceServerClient(url.rpartition("/")[2]) as client:
        for change in (client.unload_model, client.load_model):
            with pytest.raises(InferenceServerException, match=r"This (API|protocol) is restricted"):
                change("tiny")
        assert client.is_model_ready("tiny")


@pytest.mark.parametrize("key", ["", "short", "0123456789abcdef,metadata", "0123456789abcdef=", "0123456789abcdef\n"])
def test_a_key_that_triton_would_misread_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ServerError, match="admin key must be 16 or more"):
        serve(tmp_path, admin_key=key, **FREE)


@pytest.mark.parametrize("option", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_another_server_has_is_refused(server: Server, tmp_path: Path, option: str) -> None:
    urls = {"http_port": server.http_url, "grpc_port": server.grpc_url, "metrics_port": server.metrics_url}
    port = int(urls[option].removesuffix("/metrics").rpartition(":")[2])
    with pytest.raises(PortInUse, match=f"port {port} .* --{option.replace('_', '-')}") as caught:
        serve(write(tmp_path / "repository"), **{**FREE, option: port})
    assert caught.value.port == port
    assert server.alive()


@pytest.mark.parametrize("option", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_taken_while_models_load_is_noticed(tmp_path: Path, option: str) -> None:
    port = free_port()
    takers: list[socket.socket] = []

    def take(line: str) -> None:
        if "loading:" in line and not takers:
            takers.append(socket.socket())
            takers[0].bind(("127.0.0.1", port))
            takers[0].listen()

    ports = {"http_port": free_port(), "grpc_port": free_port(), "metrics_port": free_port(), option: port}
    try:
        with pytest.raises(PortInUse, match=f"port {port} was taken"):
            serve(write(tmp_path / "repository", "import time\ntime.sleep(1)\n" + RUNNER), log=take, **ports)
    finally:
        for taker in takers:
            taker.close()


def test_an_ensemble_starts_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    log = StringIO()
    with serve(write(tmp_path / "repository"), log=log, **FREE) as running:
        assert infer(running.http_url, 2.0, rows=3).tolist() == [[4.0, 4.0]] * 3
        assert infer(running.grpc_url, 2.0).tolist() == [[4.0, 4.0]]
        names = shared_memory(running.pid)
        assert running.alive()
        assert len(group(running.pid)) == 2
        assert names
    assert running.wait() == 0
    assert not running.alive()
    assert gone(running.pid, 0)
    assert not [name for name in names if Path("/dev/shm", name).exists()]
    assert "successfully loaded 'tiny_step'" in log.getvalue()
    running.stop()  # once more is harmless


def shared_memory(pid: int) -> list[str]:
    """Names in /dev/shm that a server has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sorted({line.rpartition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line})


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "repository")
    with (root / "tiny_step" / "1" / "graph.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(RepositoryError, match=r"changed since export: tiny_step/1/graph\.onnx"):
        serve(root, **FREE)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "repository")
    (root / "tiny_step" / "config.pbtxt").unlink()
    with pytest.raises(RepositoryError, match=r"missing: tiny_step/config\.pbtxt"):
        serve(root, **FREE)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"manifest\.json"):
        serve(tmp_path, **FREE)


@pytest.mark.parametrize(
    ("model", "graph_bytes", "config", "said"),
    [
        ("raise ImportError('no zork here')\n", None, None, "model tiny_step does not load: .*no zork here$"),
        (RUNNER, b"junk", None, "model tiny_step does not load: .*graph.onnx cannot be opened by ONNX Runtime"),
        (
            RUNNER,
            None,
            ("TYPE_FP32", "TYPE_FP64"),
            "model tiny_step does not load: .*config.pbtxt and the model differ",
        ),
        (RUNNER, None, ("max_batch_size", "zork"), "no field named \"zork\"(.|\n)*model directory 'tiny_step'"),
        (RUNNER, None, ("dims: [2]", "dims: [3]"), "inconsistent shape"),
        ("import os\nos._exit(1)\n", None, None, "model tiny_step does not load: .*not healthy"),
    ],
    ids=["import", "graph", "type", "config", "shape", "crash"],
)
def test_a_model_that_does_not_load_is_named_with_the_reason(
    tmp_path: Path, model: str, graph_bytes: bytes | None, config: tuple[str, str] | None, said: str
) -> None:
    root = write(tmp_path / "repository", model)
    if graph_bytes is not None:
        (root / "tiny_step" / "1" / "graph.onnx").write_bytes(graph_bytes)
    if config is not None:
        path = root / "tiny_step" / "config.pbtxt"
        path.write_text(path.read_text().replace(*config))
    with pytest.raises(ServerError, match=said) as caught:
        serve(seal(root), **FREE)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_model_that_takes_too_long_is_named_and_ended(tmp_path: Path) -> None:
    root = write(tmp_path / "repository", "import time\ntime.sleep(600)\n")
    pids: list[int] = []

    def note(line: str) -> None:
        if "TRITONBACKEND_ModelInstanceInitialize" in line:
            pids.append(int(line.split()[2]))

    with pytest.raises(ServerError, match=r"not ready after 2 s, loading tiny_step; allow more with --timeout"):
        serve(root, timeout=2, log=note, **FREE)
    assert len(pids) == 1
    assert gone(pids[0], 0)


def test_a_log_that_raises_does_not_stop_the_server(tmp_path: Path) -> None:
    def refuse(line: str) -> None:
        raise OSError("disk full")

    with serve(write(tmp_path / "repository"), log=refuse, **FREE) as running:
        assert infer(running.http_url, 1.0).tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_stop_answers_the_request_in_flight_and_drops_idle_connections(tmp_path: Path, protocol: str) -> None:
    with serve(write(tmp_path / "repository", SLOW), **FREE) as running:
        url = running.http_url if protocol == "http" else running.grpc_url
        with httpclient.InferenceServerClient(running.http_url.removeprefix("http://")) as idle:
            assert idle.is_server_ready()
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(infer, url, 3.0)
                await_executing(tmp_path / "repository")
                began = time.monotonic()
                running.stop()
                assert answer.result().tolist() == [[6.0, 6.0]]
    assert running.wait() == 0
    # Triton by itself waits 30 s for the idle connection
    assert time.monotonic() - began < 15


def test_kill_does_not_wait_for_requests(tmp_path: Path) -> None:
    with serve(write(tmp_path / "repository", SLOW), **FREE) as running, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(infer, running.grpc_url, 20.0)
        await_executing(tmp_path / "repository")
        began = time.monotonic()
        running.kill()
        running.stop()
        assert time.monotonic() - began < 10
        with pytest.raises(InferenceServerException):
            answer.result()
    assert gone(running.pid, 0)


def test_a_killed_tritonserver_takes_its_stubs_along(tmp_path: Path) -> None:
    with serve(write(tmp_path / "repository"), **FREE) as running:
        names = shared_memory(running.pid)
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait(10) == 128 + signal.SIGKILL
        assert "SIGKILL" in running.why()
        assert not group(running.pid)
        assert names
        assert not [name for name in names if Path("/dev/shm", name).exists()]


PARENT = """
import sys, threading, time
from tristage.serving import Server, serve
started = []
def start():
    started.append(serve(sys.argv[1], http_port=0, grpc_port=0, metrics_port=0))
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(1)  # the server must outlive the thread that started it
print(started[0].pid, started[0].alive(), flush=True)
time.sleep(600)
"""


def test_a_killed_parent_does_not_leave_the_server_behind(tmp_path: Path) -> None:
    root = write(tmp_path / "repository")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(root)], stdout=subprocess.PIPE, text=True, env=ENV)
    try:
        assert parent.stdout is not None
        pid, alive = parent.stdout.readline().split()
        assert alive == "True"
        assert len(group(int(pid))) == 2
        names = shared_memory(int(pid))
    finally:
        parent.kill()
        parent.wait()
    assert gone(int(pid))
    time.sleep(0.5)
    assert names
    assert not [name for name in names if Path("/dev/shm", name).exists()]


COMMAND = """
import sys, typer
from tristage.errors import TristageError
from tristage.serving.cli import serve
app = typer.Typer()
app.command()(serve)
try:
    app()
except TristageError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


class Command:
    """`tristage serve` in a process of its own; `lines` is what it wrote to stderr."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments], stderr=subprocess.PIPE, text=True, env=ENV
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def expect(self, pattern: str, within: float = 30.0) -> str:
        """The first group of the pattern, once a line matches."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if match := re.search(pattern, "".join(self.lines)):
                return match.group(1)
            time.sleep(0.05)
        raise AssertionError(f"{pattern} never came:\n{''.join(self.lines)}")

    def ended(self, within: float = 30.0) -> int:
        code = self.process.wait(within)
        self._reader.join(5)
        return code


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    made: list[Command] = []

    def make(*arguments: str) -> Command:
        made.append(Command(*arguments, *(f"--{name.replace('_', '-')}=0" for name in FREE)))
        return made[-1]

    yield make
    for each in made:
        each.process.kill()
        each.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_serve_finishes_the_request_in_flight_when_told_to_end(
    tmp_path: Path, command: Callable[..., Command], number: signal.Signals
) -> None:
    running = command(str(write(tmp_path / "repository", SLOW)), "--cores", str(min(os.sched_getaffinity(0))))
    pid = int(running.expect(r"process (\d+)\)"))
    url = running.expect(r"HTTP +(\S+)")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(infer, url, 3.0)
        await_executing(tmp_path / "repository")
        running.process.send_signal(number)
        assert answer.result().tolist() == [[6.0, 6.0]]
    assert running.ended() == 0
    assert gone(pid, 0)
    assert "Traceback" not in "".join(running.lines)


def test_serve_can_be_interrupted_while_it_starts(tmp_path: Path, command: Callable[..., Command]) -> None:
    running = command(str(write(tmp_path / "repository", "import time\ntime.sleep(600)\n")))
    pid = int(running.expect(r"(\d+) python_be.cc\S+ \"TRITONBACKEND_ModelInstanceInitialize"))
    running.process.send_signal(signal.SIGTERM)
    assert running.ended() == 0
    assert gone(pid, 0)


def test_serve_says_why_triton_ended_by_itself(tmp_path: Path, command: Callable[..., Command]) -> None:
    running = command(str(write(tmp_path / "repository")))
    os.kill(int(running.expect(r"process (\d+)\)")), signal.SIGKILL)
    assert running.ended() == 3
    assert "error: Triton ended by itself: it was ended by SIGKILL" in running.lines[-1]


def test_serve_ends_with_2_for_a_corrupt_repository_and_3_for_a_broken_model(
    tmp_path: Path, command: Callable[..., Command]
) -> None:
    corrupt = write(tmp_path / "corrupt")
    (corrupt / "tiny" / "config.pbtxt").write_text("")
    refused = command(str(corrupt))
    broken = command(str(write(tmp_path / "broken", "raise ValueError('zork')\n")))
    assert refused.ended() == 2
    assert "changed since export: tiny/config.pbtxt" in refused.lines[-1]
    assert broken.ended() == 3
    assert "zork" in broken.lines[-1]


def test_models_see_the_packages_that_the_program_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "zork_of_the_user.py").touch()
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "numpy.py").write_text("raise ImportError('the wrong numpy')")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "cwd")
    root = write(tmp_path / "repository", RUNNER + "import zork_of_the_user\n")
    with serve(root, **FREE) as running:
        assert infer(running.grpc_url, 1.0).tolist() == [[2.0, 2.0]]

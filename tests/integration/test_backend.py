"""Triton's backend `tristage`, in a real server: every type there and back, batches, requests that are not right."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import psutil
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tristage.columns import Column, Signature
from tristage.errors import ServerError
from tristage.manifest import Manifest, checksums, write_manifest
from tristage.serving import Server, serve
from tristage.serving import triton as layout

pytestmark = pytest.mark.xdist_group("backend")

# type of ONNX, of Triton, and numpy's
TYPES: dict[str, tuple[int, str, Any]] = {
    "bool": (TensorProto.BOOL, "BOOL", np.bool_),
    "int8": (TensorProto.INT8, "INT8", np.int8),
    "int16": (TensorProto.INT16, "INT16", np.int16),
    "int32": (TensorProto.INT32, "INT32", np.int32),
    "int64": (TensorProto.INT64, "INT64", np.int64),
    "uint8": (TensorProto.UINT8, "UINT8", np.uint8),
    "uint16": (TensorProto.UINT16, "UINT16", np.uint16),
    "uint32": (TensorProto.UINT32, "UINT32", np.uint32),
    "uint64": (TensorProto.UINT64, "UINT64", np.uint64),
    "float16": (TensorProto.FLOAT16, "FP16", np.float16),
    "float32": (TensorProto.FLOAT, "FP32", np.float32),
    "float64": (TensorProto.DOUBLE, "FP64", np.float64),
    "text": (TensorProto.STRING, "STRING", np.object_),
}
TEXTS = ["", "a", "a\x00b", "\U0001f600" * 9, "a longer text, of an odd number of bytes", "\n"]
NUMBERS = [0.0, -0.0, 1.5, -2.0, np.inf, -np.inf, np.nan, 65504.0, 1e-45]


def write(root: Path, damaged: bool = False) -> Path:
    """An ensemble around a model that answers what it is given."""
    names, step = list(TYPES), root / "echo_step"
    (step / "1").mkdir(parents=True)
    given = [helper.make_tensor_value_info(name, TYPES[name][0], ["n", 2]) for name in names]
    made = [helper.make_tensor_value_info(f"out_{name}", TYPES[name][0], ["n", 2]) for name in names]
    nodes = [helper.make_node("Identity", [name], [f"out_{name}"]) for name in names]
    whole = helper.make_graph(nodes, "echo", given, made)
    onnx.save(
        helper.make_model(whole, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), step / "1" / "graph.onnx"
    )
    if damaged:
        (step / "1" / "graph.onnx").write_bytes(b"no graph")

    def sides(kind: str, prefix: str) -> str:
        return "\n".join(
            f'{kind} {{ name: "{prefix}{name}" data_type: TYPE_{TYPES[name][1]} dims: [2] }}' for name in names
        )

    both = sides("input", "") + "\n" + sides("output", "out_")
    delay = "dynamic_batching { max_queue_delay_microseconds: 20000 }"
    group = "instance_group { count: 1 kind: KIND_CPU }"
    (step / "config.pbtxt").write_text(
        f'name: "echo_step" backend: "tristage" max_batch_size: 64\n{both}\n{delay}\n{group}\n'
    )
    maps = "".join(f'input_map {{ key: "{name}" value: "{name}" }}' for name in names)
    maps += "".join(f'output_map {{ key: "out_{name}" value: "out_{name}" }}' for name in names)
    (root / "echo" / "1").mkdir(parents=True)
    (root / "echo" / "1" / ".keep").touch()
    (root / "echo" / "config.pbtxt").write_text(
        f'name: "echo" platform: "ensemble" max_batch_size: 64\n{both}\n'
        f'ensemble_scheduling {{ step {{ model_name: "echo_step" model_version: -1 {maps} }} }}\n'
    )
    signature = Signature("echo", 64, (Column("int8", "int8", length=2, pad=0),), (Column("out_int8", "int8"),))
    write_manifest(root, Manifest("echo", "pip-cpu", "ensemble", signature, {}, {}, checksums(root)))
    return root


@pytest.fixture(scope="module", params=["compiled", "without a compiler"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The echo, inside tritonserver and, where nothing was compiled, by NVIDIA's Python backend."""
    root = write(tmp_path_factory.mktemp("echo"))
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "compiled":
            patch.setattr(layout, "find_library", lambda: None)
        with serve(root, cores=[0], http_port=0, grpc_port=0, metrics_port=0) as server:
            processes = psutil.Process(server.pid).children(recursive=True)
            assert bool(processes) == (request.param != "compiled")
            yield server


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for name, (_, _, dtype) in TYPES.items():
        if name == "text":
            made[name] = draw.choice(np.array(TEXTS, object), (count, 2))
        elif name == "bool":
            made[name] = draw.random((count, 2)) < 0.5
        elif name.startswith("float"):
            with np.errstate(over="ignore"):
                made[name] = draw.choice(np.array(NUMBERS), (count, 2)).astype(dtype)
        else:
            about = np.iinfo(dtype)
            made[name] = draw.integers(about.min, about.max, (count, 2), dtype=dtype, endpoint=True)
    return made


def infer(url: str, tensors: dict[str, np.ndarray], outputs: list[str] | None = None) -> Any:
    module: Any = httpclient if url.startswith("http") else grpcclient
    inputs = []
    for name, values in tensors.items():
        tensor = module.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    wanted = None if outputs is None else [module.InferRequestedOutput(name) for name in outputs]
    with module.InferenceServerClient(url.partition("://")[2]) as client:
        return client.infer("echo", inputs, outputs=wanted)


def same(answer: Any, tensors: dict[str, np.ndarray]) -> None:
    for name, values in tensors.items():
        got = answer.as_numpy(f"out_{name}")
        if name == "text":
            assert [text.decode() for text in got.ravel()] == values.ravel().tolist()
        else:
            assert got.dtype == values.dtype
            np.testing.assert_array_equal(got, values)
            assert np.array_equal(np.signbit(got), np.signbit(values)) if name.startswith("float") else True


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_every_type_there_and_back(server: Server, protocol: str, count: int) -> None:
    for seed in range(5):  # texts of other lengths put what follows them at other addresses
        tensors = rows(count, seed)
        same(infer(getattr(server, f"{protocol}_url"), tensors), tensors)


def test_the_outputs_that_are_asked_for(server: Server) -> None:
    answer = infer(server.grpc_url, rows(2), ["out_text", "out_int8"])
    assert {output.name for output in answer.get_response().outputs} == {"out_text", "out_int8"}


def test_requests_that_are_joined_get_their_own_answers(server: Server) -> None:
    def ask(seed: int) -> None:
        tensors = rows(1 + seed % 7, seed)
        same(infer(server.grpc_url, tensors), tensors)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(80)))


def test_a_bad_request_among_good_ones(server: Server) -> None:
    bad = rows(2)
    bad["text"][1, 0] = b"\xff\xfe"

    def ask(number: int) -> None:
        if number % 4:
            tensors = rows(2, number)
            same(infer(server.grpc_url, tensors), tensors)
            return
        with pytest.raises(InferenceServerException, match=r"input text holds a string that is not UTF-8: b'\\xff"):
            infer(server.grpc_url, bad)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(40)))


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff\xff\xff\xff", struct.pack("<I", 9) + b"short"])
def test_texts_that_are_cut_short(server: Server, content: bytes) -> None:
    request = service_pb2.ModelInferRequest(model_name="echo_step")
    for name, values in rows(1).items():
        tensor = request.inputs.add(name=name, datatype=np_to_triton_dtype(values.dtype), shape=values.shape)
        assert tensor.name == name
        request.raw_input_contents.append(content if name == "text" else values.tobytes())
    with grpc.insecure_channel(server.grpc_url.partition("://")[2]) as channel, pytest.raises(grpc.RpcError):
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    tensors = rows(3)
    same(infer(server.grpc_url, tensors), tensors)


def test_its_time_is_counted(server: Server) -> None:
    def counted() -> Any:
        with grpcclient.InferenceServerClient(server.grpc_url.partition("://")[2]) as client:
            return client.get_inference_statistics("echo_step").model_stats[0].inference_stats

    before = counted()
    for _ in range(10):
        infer(server.grpc_url, rows(2))
    after = counted()
    assert after.success.count - before.success.count == 10
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        took = getattr(after, part).ns - getattr(before, part).ns
        assert 0 < took < 10 * 10**9, part


def test_a_model_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot be opened by ONNX Runtime"):
        serve(write(tmp_path, damaged=True), cores=[0], http_port=0, grpc_port=0, metrics_port=0)

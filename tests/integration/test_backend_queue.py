"""Requests that wait for a model of Triton's backend `tristage`: how many may, and what the others are told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import requests
import tritonclient.grpc as grpcclient
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from tristage.columns import Column, Signature
from tristage.manifest import Manifest, checksums, write_manifest
from tristage.serving import serve

WIDTH, STEPS = 512, 24


def write_slow(root: Path, most: int) -> Path:
    """A model that multiplies matrices for a while, whatever it is given, and of which so many requests may wait."""
    (root / "slow" / "1").mkdir(parents=True)
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "none"], ["naught"]),  # of the request, so that it is not known before
        helper.make_node("Expand", ["naught", "shape"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{step}", "m0"], [f"m{step + 1}"]) for step in range(STEPS)),
        helper.make_node("ReduceMax", [f"m{STEPS}"], ["zero"], keepdims=0),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in "xy"]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [WIDTH, WIDTH])
    none = helper.make_tensor("none", TensorProto.FLOAT, [], [0])
    graph = helper.make_graph(nodes, "slow", sides[:1], sides[1:], [shape, none])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, root / "slow" / "1" / "graph.onnx")
    (root / "slow" / "config.pbtxt").write_text(
        'name: "slow" backend: "tristage" max_batch_size: 4 dynamic_batching { }\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [1] } output { name: "y" data_type: TYPE_FP32 dims: [1] }\n'
        "instance_group { count: 1 kind: KIND_CPU }\n"
        f'parameters {{ key: "max_queue" value {{ string_value: "{most}" }} }}\n'
    )
    signature = Signature("slow", 4, (Column("x", "float32"),), (Column("y", "float32"),))
    write_manifest(root, Manifest("slow", "pip-cpu", "fused", signature, {"slow": "slow"}, {}, checksums(root)))
    return root


def ask_slow(url: str, count: int) -> list[Any]:
    """So many requests at once: what each is answered, or its error."""
    address = url.partition("://")[2]

    def ask(number: int) -> Any:
        tensor = grpcclient.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[number]], np.float32))
        try:
            return client.infer("slow", [tensor]).as_numpy("y").item()
        except InferenceServerException as error:
            return error

    with grpcclient.InferenceServerClient(address) as client, ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


def test_one_too_many_is_told_at_once(tmp_path: Path) -> None:
    with serve(write_slow(tmp_path, 2), cores=[0], http_port=0, grpc_port=0, metrics_port=0) as server:
        for _ in range(2):  # and who comes later is served again
            answers = ask_slow(server.grpc_url, 64)
            refused = [answer for answer in answers if isinstance(answer, InferenceServerException)]
            assert 0 < len(refused) < 64
            for error in refused:
                assert error.status() == "StatusCode.UNAVAILABLE"
                assert "2 requests wait for the model, as many as may; try again later" in str(error)
            for number, answer in enumerate(answers):
                assert answer in refused or answer == number
            assert ask_slow(server.grpc_url, 1) == [0]
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [3]}]}

        def post(_: int) -> int:
            return requests.post(f"{server.http_url}/v2/models/slow/infer", json=body, timeout=60).status_code

        with ThreadPoolExecutor(64) as pool:
            assert set(pool.map(post, range(64))) == {200, 503}


def test_without_a_bound_all_wait(tmp_path: Path) -> None:
    with serve(write_slow(tmp_path, 0), cores=[0], http_port=0, grpc_port=0, metrics_port=0) as server:
        count = 300  # more than the queue has places for at first
        assert ask_slow(server.grpc_url, count) == list(range(count))

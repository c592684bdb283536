"""A small ensemble of two steps written by hand, for the load tester's tests against a real Triton."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tristage.client import connect
from tristage.columns import SIGNATURE_PARAMETER, Column, Signature
from tristage.manifest import Manifest, checksums, write_manifest
from tristage.serving import Server

SIGNATURE = Signature(
    stack="tiny",
    max_batch=256,
    inputs=(Column("x", "float32"), Column("word", "string")),
    outputs=(Column("y", "float32"),),
)

ENSEMBLE = f"""
name: "tiny"
platform: "ensemble"
max_batch_size: 256
input [
  {{ name: "x" data_type: TYPE_FP32 dims: [1] }},
  {{ name: "word" data_type: TYPE_STRING dims: [1] }}
]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [1] }} ]
ensemble_scheduling {{
  step [
    {{ model_name: "tiny_length" model_version: -1
       input_map {{ key: "word" value: "word" }} output_map {{ key: "length" value: "length" }} }},
    {{ model_name: "tiny_add" model_version: -1
       input_map {{ key: "x" value: "x" }} input_map {{ key: "length" value: "length" }}
       output_map {{ key: "y" value: "y" }} }}
  ]
}}
parameters {{ key: "{SIGNATURE_PARAMETER}" value {{ string_value: {json.dumps(SIGNATURE.to_json())} }} }}
"""

LENGTH = """
name: "tiny_length"
backend: "python"
max_batch_size: 256
input [ { name: "word" data_type: TYPE_STRING dims: [1] } ]
output [ { name: "length" data_type: TYPE_FP32 dims: [1] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""

ADD = """
name: "tiny_add"
backend: "python"
max_batch_size: 256
input [ { name: "x" data_type: TYPE_FP32 dims: [1] }, { name: "length" data_type: TYPE_FP32 dims: [1] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [1] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""

LENGTH_MODEL = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            words = pb.get_input_tensor_by_name(request, "word").as_numpy()
            lengths = np.array([[len(word) for word in row] for row in words], dtype=np.float32)
            answers.append(pb.InferenceResponse([pb.Tensor("length", lengths)]))
        return answers
"""

# sleeps 5 ms, so that its share is known to be the larger one, and computes 2 ms; fails on rows below zero
ADD_MODEL = """
import time
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x, length = (pb.get_input_tensor_by_name(request, name).as_numpy() for name in ("x", "length"))
            time.sleep(0.005)
            begun = time.thread_time()
            while time.thread_time() - begun < 0.002:
                pass
            if (x < 0).any():
                answers.append(pb.InferenceResponse(error=pb.TritonError("a row is below zero")))
            else:
                answers.append(pb.InferenceResponse([pb.Tensor("y", x + length)]))
        return answers
"""

ROWS = [{"x": float(number), "word": "w" * (number % 7)} for number in range(100)]


def write_repository(root: Path) -> Path:
    """Write the ensemble, its golden rows and its manifest."""
    texts = {
        "tiny/config.pbtxt": ENSEMBLE,
        "tiny/1/.keep": "",
        "tiny_length/config.pbtxt": LENGTH,
        "tiny_length/1/model.py": LENGTH_MODEL,
        "tiny_add/config.pbtxt": ADD,
        "tiny_add/1/model.py": ADD_MODEL,
    }
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    golden = pa.Table.from_pylist(ROWS, schema=pa.schema([("x", pa.float32()), ("word", pa.string())]))
    expected = pa.array([row["x"] + len(str(row["word"])) for row in ROWS], pa.float32())
    pq.write_table(golden.append_column("expected.y", expected), root / "golden.parquet")
    write_manifest(
        root,
        Manifest(
            stack="tiny",
            target="pip-cpu",
            layout="ensemble",
            signature=SIGNATURE,
            models={"length": "tiny_length", "add": "tiny_add"},
            versions={},
            files=checksums(root),
        ),
    )
    return root


def answered(server: Server) -> int:
    """Requests that the ensemble has answered so far."""
    transport = connect(server.http_url)
    try:
        return transport.statistics("tiny", 5.0)["model_stats"][0]["inference_stats"]["success"]["count"]
    finally:
        transport.close()

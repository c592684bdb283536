"""A small hand-written stack of four Triton models, and a gateway in front of it as a user starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tristage.client import encode
from tristage.columns import SIGNATURE_PARAMETER, Column, Signature
from tristage.export.golden import write_reference
from tristage.manifest import GOLDEN, Manifest, checksums, write_manifest

SIGNATURE = Signature(
    "shop",
    64,
    (
        Column("amount", "float32"),
        Column("user.age", "int32", nullable=True),
        Column("class", "string"),
        Column("verified", "bool"),
        Column("tokens", "int64", length=4, pad=0),
        Column("tags", "string", length=2, pad=""),
    ),
    (Column("click", "float32"), Column("buy", "float64")),
)
_FEATURES = """
        letters = np.frompyfunc(lambda text: len(text.decode()), 1, 1)
        word = x("class")
        if word[0, 0] == b"sleep":
            time.sleep(1.5)
        while word[0, 0].startswith(b"/") and os.path.exists(word[0, 0]):
            time.sleep(0.01)
        if word[0, 0] == b"nap":
            time.sleep(0.02)
        if word[0, 0] == b"crash":
            raise RuntimeError("the model has crashed")
        if word[0, 0] == b"fail":
            raise pb_utils.TritonModelException("the model is unwell")
        age = np.nan_to_num(x("user.age"), nan=-1.0)
        lengths = letters(word).astype(np.float32)
        tokens = x("tokens").sum(axis=1, keepdims=True)
        made = np.hstack([x("amount"), age, lengths, x("verified"), tokens]).astype(np.float32)
        return {"features__float32": made}
"""
_TREES = """
        f = x("features__float32")
        return {"trees__float32": f[:, :2] * np.float32(0.5)}
"""
_NET = """
        tags = np.frompyfunc(lambda text: len(text.decode()), 1, 1)(x("tags")).astype(np.float32)
        return {"net__float32": x("features__float32")[:, 2:4] + tags.sum(axis=1, keepdims=True)}
"""
_SCORE = """
        trees, net = x("trees__float32"), x("net__float32")
        f = x("features__float32")
        return {"click": trees[:, :1] + net[:, :1], "buy": (trees[:, 1:] + net[:, 1:] + f[:, 4:]).astype(np.float64)}
"""
_MODEL = """
import os
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def answer(self, request):
        x = lambda name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
{body}
    def execute(self, requests):
        answers = []
        for request in requests:
            try:
                made = [pb_utils.Tensor(name, array) for name, array in self.answer(request).items()]
                answers.append(pb_utils.InferenceResponse(made))
            except pb_utils.TritonModelException as error:
                answers.append(pb_utils.InferenceResponse([], pb_utils.TritonError(str(error))))
        return answers
"""
_F32 = ("features__float32", "FP32", 5)
_RAW = {
    column.name: (column.name, column.triton_dtype.replace("BYTES", "STRING"), column.width)
    for column in SIGNATURE.inputs
}
_STEPS: dict[str, tuple[str, list[Any], list[Any]]] = {
    "features": (_FEATURES, [_RAW[name] for name in _RAW if name != "tags"], [_F32]),
    "trees": (_TREES, [_F32], [("trees__float32", "FP32", 2)]),
    "net": (_NET, [_F32, _RAW["tags"]], [("net__float32", "FP32", 2)]),
    "score": (
        _SCORE,
        [_F32, ("trees__float32", "FP32", 2), ("net__float32", "FP32", 2)],
        [("click", "FP32", 1), ("buy", "FP64", 1)],
    ),
}


def some_rows(count: int) -> list[dict[str, Any]]:
    """Good rows, with nulls and lists of every length."""
    return [
        {
            "amount": n + 0.25,
            "user.age": None if n % 3 == 0 else n,
            "class": "wörd" * (n % 4),
            "verified": n % 2 == 0,
            "tokens": list(range(n % 5)),
            "tags": ["tag"] * (n % 3),
        }
        for n in range(count)
    ]


def answer(row: dict[str, Any]) -> dict[str, float]:
    """What the stack makes of one row; all of it is exact in float32."""
    age = -1 if row["user.age"] is None else row["user.age"]
    tags = sum(map(len, row["tags"][:2]))
    return {
        "click": row["amount"] / 2 + len(row["class"]) + tags,
        "buy": age / 2 + row["verified"] + tags + sum(row["tokens"][:4]),
    }


def _io(tensors: list[Any], kind: str) -> str:
    return "".join(
        f'{kind} {{ name: "{name}" data_type: TYPE_{dtype} dims: [ {width} ] }}\n' for name, dtype, width in tensors
    )


def write_repository(root: Path) -> Path:
    """The stack as a repository, with golden rows and a manifest."""
    steps = ""
    for step, (body, reads, writes) in _STEPS.items():
        folder = root / f"shop_{step}"
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.py").write_text(_MODEL.format(body=body))
        (folder / "config.pbtxt").write_text(
            'backend: "python"\nmax_batch_size: 64\ndynamic_batching { }\n'
            + _io(reads, "input")
            + _io(writes, "output")
        )
        maps = "".join(f'input_map {{ key: "{name}" value: "{name}" }}\n' for name, *_ in reads)
        maps += "".join(f'output_map {{ key: "{name}" value: "{name}" }}\n' for name, *_ in writes)
        steps += f'step {{ model_name: "shop_{step}" model_version: -1\n{maps} }}\n'
    outputs = [(column.name, column.triton_dtype, 1) for column in SIGNATURE.outputs]
    parameter = f'key: "{SIGNATURE_PARAMETER}" value {{ string_value: {json.dumps(SIGNATURE.to_json())} }}'
    (root / "shop" / "1").mkdir(parents=True)
    (root / "shop" / "1" / ".keep").touch()
    (root / "shop" / "config.pbtxt").write_text(
        f'platform: "ensemble"\nmax_batch_size: 64\n{_io(list(_RAW.values()), "input")}{_io(outputs, "output")}'
        f"parameters {{ {parameter} }}\nensemble_scheduling {{ {steps} }}\n"
    )
    rows = some_rows(20)[7:]
    table = pa.Table.from_pylist(rows)
    for name in ("click", "buy"):
        table = table.append_column(f"expected.{name}", pa.array([answer(row)[name] for row in rows]))
    pq.write_table(table, root / GOLDEN)
    expected = {name: np.array([answer(row)[name] for row in rows]) for name in ("click", "buy")}
    write_reference(root, encode(rows, SIGNATURE), SIGNATURE, expected)
    models = {step: f"shop_{step}" for step in _STEPS}
    versions = {"tristage": "0.1.0", "xgboost": "3.2.0"}
    write_manifest(root, Manifest("shop", "pip-cpu", "ensemble", SIGNATURE, models, versions, checksums(root)))
    return root


@contextmanager
def run_gateway(*arguments: object, **environment: str) -> Iterator[str]:
    """`tristage gateway` on a free port until the block ends; its URL."""
    command = [str(Path(sys.executable).with_name("tristage")), "gateway", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stderr is not None
    lines: list[str] = []
    try:
        url = None
        for line in process.stderr:
            lines.append(line)
            url = url or re.match(r"gateway +(http://\S+)", line)
            if "Ctrl-C" in line:
                break
        assert url is not None, "".join(lines)
        rest = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
        rest.start()
        yield url[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, "".join(lines)
        rest.join(10)
        assert "Traceback" not in "".join(lines), "".join(lines)
    finally:
        process.kill()
        process.wait()

"""NVIDIA's perf_analyzer, from the tritonclient 2.50.0 wheel: where it is, what it needs, what it says.

The wheel is installed into an environment of its own, since later ones have no perf_analyzer. The two libraries that it
misses, libcudart and libb64, are inside the nvidia-pytriton wheel under names of their own.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tristage.columns import Signature

sys.path.append(str(Path(__file__).parents[1] / "tests"))

_LIBRARIES = {"libcudart.so.12": "libcudart-*.so.12*", "libb64.so.0d": "libb64-*.so.0d"}


@dataclass(frozen=True)
class Measured:
    """What a closed loop took: milliseconds a request, and examples a second."""

    mean_ms: float
    p50_ms: float
    p99_ms: float
    examples_per_s: float
    server_ms: float


def find(folder: Path) -> tuple[Path, dict[str, str]]:
    """The program, and the environment that it runs in; links to its libraries are made in `folder`."""
    from environments import python_with

    program = python_with("tritonclient==2.50.0").with_name("perf_analyzer")
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    libraries = Path(spec.origin).parents[1] / "nvidia_pytriton.libs"
    for name, pattern in _LIBRARIES.items():
        (folder / name).symlink_to(next(libraries.glob(pattern)))
    return program, {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{libraries}"}


def write_rows(tensors: Mapping[str, Any], signature: Signature, path: Path) -> None:
    """The rows as perf_analyzer reads them: an entry a row, numbers as bytes, so that NaN is one."""
    entries = []
    for row in range(len(next(iter(tensors.values())))):
        entry: dict[str, Any] = {}
        for column in signature.inputs:
            values = np.ascontiguousarray(tensors[column.name][row])
            content = (
                {"content": values.tolist()}
                if values.dtype == object
                else {"content": {"b64": base64.b64encode(values.tobytes()).decode()}}
            )
            entry[column.name] = {**content, "shape": [column.width]}
        entries.append(entry)
    path.write_text(json.dumps({"data": entries}), encoding="utf-8")


def measure(
    found: tuple[Path, dict[str, str]],
    url: str,
    model: str,
    rows: Path,
    *,
    batch: int,
    concurrency: int,
    seconds: float,
    cores: Sequence[int],
) -> Measured:
    """A closed loop of about `seconds`, on these cores."""
    program, environment = found
    protocol, _, address = url.partition("://")
    command = [str(program), "-m", model, "-u", address, "-i", protocol, "-b", str(batch)]
    command += ["--concurrency-range", str(concurrency), "--input-data", str(rows)]
    # three windows, however much they differ
    command += ["--measurement-interval", str(int(seconds / 3 * 1000)), "--stability-percentage", "999"]

    def pin() -> None:
        os.sched_setaffinity(0, cores)

    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60 + 10 * seconds, preexec_fn=pin, check=False
    )
    text = done.stdout + done.stderr

    def number(pattern: str) -> float:
        match = re.search(pattern, text)
        if match is None:
            raise SystemExit(f"perf_analyzer did not say {pattern!r}:\n{text}")
        return float(match[1])

    return Measured(
        mean_ms=number(r"Avg latency: (\d+) usec") / 1e3,
        p50_ms=number(r"p50 latency: (\d+) usec") / 1e3,
        p99_ms=number(r"p99 latency: (\d+) usec") / 1e3,
        examples_per_s=number(r"throughput: ([\d.]+) infer/sec"),
        server_ms=number(r"Avg request latency: (\d+) usec") / 1e3,
    )

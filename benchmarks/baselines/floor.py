"""Baseline 4: the graph that tristage serves, evaluated as its runner does, in one process without a server.

What Triton, the runner and a client cost is what the served stack takes beyond this.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines.rows import difference, golden, test_rows
from tristage.client.codec import encode
from tristage.manifest import read_manifest
from tristage.serving.graph import GraphError
from tristage.serving.runner import Runnable, evaluate, open_folder

__all__ = ["Floor"]


class Floor:
    """The fused model, and each model of the other layout, whose times say which step takes how long."""

    def __init__(self, artifacts: Path, fused: Path, ensemble: Path) -> None:
        manifest = read_manifest(fused)
        self._signature = manifest.signature
        (model,) = set(manifest.models.values())
        self._model = open_folder(fused / model / "1")
        models = read_manifest(ensemble).models.items()
        self._models = {step: open_folder(ensemble / name / "1") for step, name in models}
        self._tensors = encode(test_rows(artifacts), self._signature, unknown="ignore")
        self._golden = golden(fused, [column.name for column in self._signature.outputs])
        self.rows = len(next(iter(self._tensors.values())))

    def check(self) -> dict[str, float]:
        rows, expected = self._golden
        tensors = encode(rows, self._signature)
        parts = [
            self.call({name: values[at : at + 1024] for name, values in tensors.items()})
            for at in range(0, len(expected), 1024)
        ]
        names = [column.name for column in self._signature.outputs]
        return difference(np.concatenate([_side_by_side(part, names) for part in parts]), expected)

    def tune(self, batch: int) -> Mapping[str, str]:
        return {}

    def request(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return {name: values[rows] for name, values in self._tensors.items()}

    def call(self, request: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return _run(self._model, request)

    def steps(self, request: dict[str, NDArray[Any]]) -> Mapping[str, float]:
        known, spent = dict(request), {}
        for step, model in self._models.items():
            start = time.perf_counter()
            known.update(_run(model, known))
            spent[step] = time.perf_counter() - start
        return spent


def _run(model: Runnable, tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    (answer,) = evaluate(model, [tensors])
    if isinstance(answer, GraphError):
        raise answer
    return answer


def _side_by_side(answer: dict[str, NDArray[Any]], names: list[str]) -> NDArray[Any]:
    return np.concatenate([answer[name].reshape(-1, 1) for name in names], axis=1)

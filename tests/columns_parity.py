"""Graphs that the columns engine and ONNX Runtime both answer, and rows to compare them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tristage.export.columns import pack
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.repository import save_model
from tristage.serving.columns.call import Columns
from tristage.serving.graph import Graph

ROWS = (1, 2, 63, 64, 65, 200)
HUGE = {"int32": 2**31 - 1, "int64": 2**63 - 1}


def awkward(dtype: str, rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Small whole numbers, so that many are equal, among the largest, the smallest and what is no number."""
    draw = np.random.default_rng(seed)
    values = draw.integers(-3, 4, (rows, width))
    if dtype == "bool":
        return values > 0
    made = values.astype(dtype)
    if dtype.startswith("float"):
        made += draw.choice([0, 0.25, 0.5], made.shape).astype(dtype)
        odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, 1e30, -1e30], dtype)
    else:
        odd = np.array([HUGE[dtype], -HUGE[dtype] - 1, 0], dtype)
    places = draw.random(made.shape) < 0.3
    made[places] = draw.choice(odd, int(places.sum()))
    return made


class Both:
    """A graph that is built once and answered by the engine and by ONNX Runtime."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.graph = folder, GraphBuilder(folder)
        self.dtypes: dict[str, tuple[str, int]] = {}

    def input(self, name: str, dtype: str, width: int = 1) -> str:
        self.dtypes[name] = (dtype, width)
        return self.graph.input(name, dtype, width)

    def open(self, *outputs: tuple[str, str, int]) -> tuple[Graph, Columns]:
        """The outputs' tensors, dtypes and widths."""
        named = [(f"out{at}", tensor, dtype, width) for at, (tensor, dtype, width) in enumerate(outputs)]
        model = self.graph.model(named)
        whole, own = self.folder / "whole", self.folder / "own"
        whole.mkdir(), own.mkdir()
        save_model(model, whole, self.folder, columns=False)
        save_model(model, own, self.folder, columns=False)
        inferred = onnx.shape_inference.infer_shapes(model)
        return Graph.open(whole / "graph.onnx"), Columns.open(own, pack(inferred, own / "columns0.bin", "graph.onnx"))

    def given(self, rows: int) -> dict[str, np.ndarray]:
        """Awkward rows for its inputs."""
        inputs = enumerate(self.dtypes.items())
        return {name: awkward(dtype, rows, width, seed) for seed, (name, (dtype, width)) in inputs}

    def agree(self, *outputs: tuple[str, str, int], exact: bool = True) -> None:
        reference, engine = self.open(*outputs)
        for rows in ROWS:
            given = {
                name: awkward(*its[:1], rows, its[1], seed) for seed, (name, its) in enumerate(self.dtypes.items())
            }
            wanted, made = reference.run(given), engine.run(given)
            assert list(made) == list(wanted)
            for name, values in wanted.items():
                assert made[name].dtype == values.dtype
                if exact:
                    np.testing.assert_array_equal(made[name], values)
                else:
                    np.testing.assert_allclose(made[name], values, rtol=3e-7 if values.dtype == np.float32 else 1e-14)

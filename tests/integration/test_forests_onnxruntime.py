"""Forests' graphs answer the same in the oldest ONNX Runtime that is supported, and in that of Triton 24.10."""

from __future__ import annotations

import subprocess
from pathlib import Path

import lightgbm
import numpy as np
import pytest
import xgboost
from environments import python_with
from forest_parity import awkward, close, rows_of
from sklearn.ensemble import RandomForestClassifier

from tristage.export.forest import read_forests
from tristage.export.forest.to_onnx import add_forests
from tristage.export.onnx_graph import GraphBuilder

RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + ".onnx", providers=["CPUExecutionProvider"])
numpy.save(sys.argv[1] + ".answers.npy", session.run(None, {"rows": numpy.load(sys.argv[1] + ".npy")})[0])
print(onnxruntime.__version__)
"""


@pytest.mark.parametrize("version", ["1.19.2", "1.20.1"])
def test_old_onnxruntime(version: str, tmp_path: Path) -> None:
    python = python_with(f"onnxruntime=={version}", "numpy==1.26.4")
    random = np.random.default_rng(5)
    rows = rows_of(5, 300, 4)
    rows[:, 3] = random.integers(0, 60, 300)
    labels = (rows[:, 3] % 4 == 1) ^ (random.random(300) < 0.1)
    types = ["q", "q", "q", "c"]
    data = xgboost.DMatrix(rows, labels, feature_types=types, enable_categorical=True)
    options = {"objective": "binary:logistic", "max_cat_to_onehot": 1, "nthread": 1}
    models = {
        "xgboost": xgboost.train(options, data, 6),
        "lightgbm": lightgbm.train(
            {"objective": "binary", "verbose": -1, "min_data_per_group": 1},
            lightgbm.Dataset(rows, labels, categorical_feature=[3]),
            6,
        ),
        "sklearn": RandomForestClassifier(6, random_state=0).fit(rows, random.integers(0, 3, 300)),
    }
    every = np.concatenate([*awkward(rows)[:2], awkward(rows, random.integers(-5, 70, 60).astype(np.float32))[4]])
    for name, model in models.items():
        forests = read_forests(name, model, (), grouped=False)
        graph = GraphBuilder()
        answers = add_forests(graph, graph.input("rows", "float32", 4), forests, None)
        path = tmp_path / name
        path.with_suffix(".onnx").write_bytes(
            graph.model([("out", answers, "float32", forests.width)]).SerializeToString()
        )
        np.save(path.with_suffix(".npy"), every)
        done = subprocess.run([python, "-c", RUN, path], check=True, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == version
        close(np.load(f"{path}.answers.npy"), forests.all()[0].predict(every))

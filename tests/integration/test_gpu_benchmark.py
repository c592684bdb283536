"""benchmarks.gpu, from the exported repository to what it found, on torch's CPU: no figure of it is a GPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xgboost

from benchmarks.gpu.bundle import bundle
from benchmarks.gpu.parts import PartsMissing, join
from benchmarks.gpu.report import _markdown, _report
from tristage.errors import RepositoryError
from tristage.export import export
from tristage.stack import ForestStep, MeanStep, Stack

ROOT = Path(__file__).parents[2]


ROWS = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32), columns=["a", "b"])
LABELS = xgboost.DMatrix(ROWS, (ROWS["a"] > 0).to_numpy(np.float32))
FOREST = {"trees": ForestStep(xgboost.train({"objective": "binary:logistic", "max_depth": 6}, LABELS, 30), ("a", "b"))}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    ROWS.to_parquet(folder / "golden.parquet")
    stack = Stack("trees", FOREST, {"score": "trees.score"}, golden=folder / "golden.parquet")
    return export(stack, folder / "models", layout="fused").path


def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """As a stranger runs it: in the checkout, which is installed or not."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_from_a_repository_to_what_was_found(repository: Path, tmp_path: Path) -> None:
    assert "golden rows" in bundle(repository, tmp_path / "parts", 2_000)
    parts = sorted((tmp_path / "parts").glob("part-*"))
    assert len(parts) > 2
    assert all(part.stat().st_size <= 2_000 for part in parts)
    away = tmp_path / "away"
    away.mkdir()
    parts[1].rename(away / parts[1].name)
    run = ("run", tmp_path / "parts", "-o", tmp_path / "found", "--unpacked", tmp_path / "unpacked")
    tried = command(*run, "--device", "cpu", "--most", 4)
    assert tried.returncode == 2
    assert "1 of" in tried.stderr
    assert parts[1].name in tried.stderr
    assert not (tmp_path / "unpacked").exists()
    done = command(*run[:2], away, *run[2:], "--device", "cpu", "--most", 4)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found" / "gpu.json").read_text(encoding="utf-8"))
    assert [cell["batch"] for cell in found["cells"]] == [1, 4]
    assert all(value < 1e-6 for its in found["parity"].values() for value in its.values())
    assert "trees" in found["parts"]["1"]
    assert found["sizes"]["a_row"]["trees_met"] == 30
    # what is not a GPU's is not published; what would be is whole
    refused = command("publish", tmp_path / "found" / "gpu.json")
    assert refused.returncode == 2
    assert "without a GPU" in refused.stderr
    assert not list((ROOT / "benchmarks" / "results").glob("gpu_trees*"))
    text = "\n".join(_markdown(found, None))
    assert "| 4 |" in text
    assert "A row meets 30 trees" in text
    report = _report(found)
    assert type(report).from_json(report.to_json()) == report
    if not torch.cuda.is_available():
        alone = command(*run[:2], away, *run[2:])
        assert alone.returncode == 2


def test_what_is_damaged_or_does_not_fit(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(PartsMissing, match="index.json"):
        join([tmp_path], tmp_path / "out")
    bundle(repository, tmp_path / "parts", 2_000)
    part = tmp_path / "parts" / "part-001"
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Exception, match="damaged|CRC|invalid"):
        join([tmp_path / "parts"], tmp_path / "out")
    assert not (tmp_path / "out" / "whole").exists()
    steps = {**FOREST, "mean": MeanStep(("trees",))}
    several = Stack("several", steps, {"score": "mean.score"}, golden=repository / "golden.parquet")
    with pytest.raises(RepositoryError, match="needs the layout fused"):
        bundle(export(several, tmp_path / "models", layout="ensemble").path, tmp_path / "never", 2_000)

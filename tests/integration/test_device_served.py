"""Stacks for a GPU on the real server: their configuration, and, moved to torch on a CPU, their answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import torch
import xgboost

from tristage.client import Client, verify
from tristage.errors import RepositoryError, ServerError, StackError
from tristage.export import export
from tristage.export.config import read_config
from tristage.export.tuning import tune
from tristage.manifest import checksums, read_manifest, write_manifest
from tristage.serving import serve
from tristage.serving.runner import TABLE_BYTES
from tristage.stack import ForestStep, NetStep, Stack
from tristage.triton_settings import TritonSettings

IDS = 300_000


class Net(torch.nn.Module):
    """An embedding that is large enough to be worth a place of its own, 19 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(IDS, 16)
        self.top = torch.nn.Linear(17, 1)

    def forward(self, item: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.top(torch.cat([self.table(item[:, 0]), a], dim=1)))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"a": draw.normal(size=300).astype(np.float32), "item": draw.integers(0, IDS, 300)})
    rows.loc[::7, "a"] = np.nan
    labels = xgboost.DMatrix(rows[["a"]], (rows["item"] % 2).astype(float))
    forest = xgboost.train({"objective": "binary:logistic", "max_depth": 5}, labels, 20)
    golden = tmp_path_factory.mktemp("device") / "golden.parquet"
    rows.to_parquet(golden)
    torch.manual_seed(0)
    net = Net().eval()
    examples = {"item": torch.zeros(2, 1, dtype=torch.int64), "a": torch.zeros(2, 1)}
    steps = {
        "trees": ForestStep(forest, ("a",)),
        "net": NetStep(net, {"item": ("item",), "a": ("trees.score",)}, examples=examples),
    }
    return Stack("gpu", steps, {"score": "net.score", "first": "trees.score"}, golden=golden)


def moved(repository: Path) -> Path:
    """The GPU's configuration with its instances moved to torch on a CPU."""
    for path in repository.glob("*/config.pbtxt"):
        text = path.read_text(encoding="utf-8")
        text = text.replace("KIND_GPU", "KIND_CPU").replace('string_value: "cuda"', 'string_value: "cpu"')
        path.write_text(text, encoding="utf-8")
    write_manifest(repository, replace(read_manifest(repository), files=checksums(repository)))
    return repository


def test_one_model_on_the_gpu(stack: Stack, tmp_path: Path, cli: Callable[..., Any]) -> None:
    made = export(stack, tmp_path / "models", target="pip-gpu")
    assert (made.manifest.target, made.manifest.layout) == ("pip-gpu", "fused")
    config = read_config(made.path, "gpu_fused")
    assert config.backend == "python"
    assert {name: value.string_value for name, value in config.parameters.items()} == {
        "device": "cuda",
        "cuda_graphs": "1",
    }
    assert [request.batch_size for request in config.model_warmup] == [1, 4, 16, 64, 256, 1024]
    shown = json.loads(cli("inspect", made.path, "--json").out)
    assert {tensor["device"] for tensor in shown["tensors"] if tensor["made_by"] == "gpu_fused"} == {"GPU"}
    text = " ".join(cli("inspect", made.path).out.split())
    assert "torch has the GPU" in text
    assert {part["device"] for part in shown["parts"]} == {"GPU"}
    assert "trees" in [part["name"] for part in shown["parts"]]
    assert "a request's way, in order" in text
    with pytest.raises(RepositoryError, match="the GPU answers forests"):
        tune(made.path)
    if not torch.cuda.is_available():
        with (
            pytest.raises(ServerError, match="KIND_GPU but no GPUs are available"),
            serve(made.path, http_port=0, grpc_port=0, metrics_port=0),
        ):
            pass
    off = replace(stack, triton=TritonSettings(cuda_graphs=False, warmup=(2,)))
    config = read_config(export(off, tmp_path / "off", target="pip-gpu").path, "gpu_fused")
    assert config.parameters["cuda_graphs"].string_value == "0"
    assert [request.batch_size for request in config.model_warmup] == [2]
    with pytest.raises(StackError, match="accelerator"):
        export(
            replace(stack, triton=TritonSettings(steps={"net": TritonSettings(accelerator="tensorrt-fp32")})),
            tmp_path / "never",
            target="pip-gpu",
        )


@pytest.mark.parametrize("layout", ["fused", "ensemble"])
def test_what_torch_answers_is_proven(layout: str, stack: Stack, tmp_path: Path) -> None:
    repository = moved(export(stack, tmp_path / "models", target="pip-gpu", layout=layout).path)
    with serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        for url in (server.http_url, server.grpc_url):
            with Client(url) as client:
                verified = verify(client, repository)
                verified.check()
                assert verified.rows == 300
                with pytest.raises(Exception, match="out of range|not in its table"):
                    client.predict(pd.DataFrame({"a": np.float32([0.0]), "item": [IDS]}))
                assert len(client.predict(pd.DataFrame({"a": np.float32([np.inf]), "item": [-1]}))) == 1


def test_tables_that_do_not_fit_are_counted(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = moved(export(stack, tmp_path / "models", target="pip-gpu").path)
    monkeypatch.setenv(TABLE_BYTES, str(4_000_000))
    with serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        with Client(server.grpc_url) as client:
            verify(client, repository).check()
        text = requests.get(server.metrics_url, timeout=10).text
    counts = {
        line.split("{")[0]: float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("tristage_table_rows")
    }
    asked, found = counts["tristage_table_rows_asked"], counts["tristage_table_rows_on_gpu"]
    assert asked >= 300
    assert 0 < found < asked

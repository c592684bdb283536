"""Features from a real Redis, through a real Triton: found, not found, changed, and gone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tristage.client import Client
from tristage.errors import ArtifactError, ServerError
from tristage.export import export
from tristage.export.stack_file import read_stack
from tristage.serving import serve
from tristage.stack import FeatureSource, FeaturesStep, MeanStep, Stack

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
redis_store = pytest.importorskip("examples.feature_store.redis_store")

SOURCE = "examples.feature_store.redis_store:open_store"
FREE: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
IDS = np.arange(200)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0", running
        running.terminate()


def features(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(len(IDS), 2)).astype(np.float32)


def stack(url: str, folder: Path) -> Stack:
    pd.DataFrame({"user": [0, 3, 199, 200, -1]}).to_parquet(folder / "golden.parquet")
    said = FeatureSource(
        SOURCE,
        {"age": "float32", "spend": "float32"},
        {"url": url, "prefix": "user:", "columns": ["age", "spend"], "timeout": 5.0},
    )
    steps = {"users": FeaturesStep(said, "user"), "same": MeanStep(("users",))}
    outputs = {"age": "same.age", "spend": "same.spend"}
    return Stack("stored", steps, outputs, golden=folder / "golden.parquet")


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_what_redis_holds_is_answered(
    layout: str, redis: tuple[str, Any], tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, running = redis
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    redis_store.write_features(url, "user:", IDS, features(0))
    export(stack(url, tmp_path), tmp_path / "made", layout=layout, trust=True)
    asked = pd.DataFrame({"user": [5, 7, 1000, 5]})
    with pytest.raises(ServerError, match="tristage serve --trust"):
        serve(tmp_path / "made", **FREE)
    with serve(tmp_path / "made", trust=True, **FREE) as server, Client(server.grpc_url) as client:
        for seed in (0, 1):  # what is written is answered with the next request
            redis_store.write_features(url, "user:", IDS, features(seed))
            made = client.predict(asked).to_numpy(np.float32)
            expected = np.vstack([features(seed)[[5, 7]], [[np.nan] * 2], features(seed)[5:6]])
            np.testing.assert_array_equal(made, expected)
        running.terminate()
        running.wait(30)
        with pytest.raises(ServerError, match="the source of step users failed: ConnectionError"):
            client.predict(asked)


def test_what_is_refused(tmp_path: Path, redis: tuple[str, Any]) -> None:
    url, _ = redis
    with pytest.raises(ArtifactError, match="opening it runs its code"):
        export(stack(url, tmp_path), tmp_path / "made")
    text = """
name: stored
golden: golden.parquet
steps:
  users:
    key: user
    features: {source: "SOURCE", settings: {url: "URL", prefix: "user:", columns: [age]}, columns: {age: float32}}
outputs: {age: users.age}
"""
    (tmp_path / "stack.yaml").write_text(text.replace("SOURCE", SOURCE).replace("URL", url))
    redis_store.write_features(url, "user:", IDS, features(0)[:, :1])
    made = export(read_stack(tmp_path / "stack.yaml"), tmp_path / "yaml", trust=True)
    assert made.parity is not None
    (tmp_path / "stack.yaml").write_text(text.replace("SOURCE", "no.such.module:open").replace("URL", url))
    with pytest.raises(ArtifactError, match=r"the source no\.such\.module:open cannot be opened"):
        export(read_stack(tmp_path / "stack.yaml"), tmp_path / "other", trust=True)

"""Settings of Triton's that a stack asks for, by a real Triton: warm-up, response cache, queue, rate limits."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

from tristage.client import Client
from tristage.errors import RepositoryError
from tristage.export import export
from tristage.manifest import read_manifest
from tristage.serving import serve
from tristage.stack import ForestStep, Stack
from tristage.triton_settings import TritonSettings

ROWS = pd.DataFrame(np.random.default_rng(7).normal(size=(400, 3)).astype(np.float32), columns=["a", "b", "c"])


def stack(folder: Path, seed: int = 0, **said: Any) -> Stack:
    names = list(ROWS)
    rows = xgboost.DMatrix(ROWS, ROWS["a"] > ROWS["b"] * seed)
    forest = xgboost.train({"objective": "binary:logistic", "nthread": 1, "seed": seed}, rows, 8)
    ROWS[:64].to_parquet(folder / "golden.parquet")
    steps = {
        "one": ForestStep(forest, reads=names),
        "two": ForestStep(forest, reads=names),
    }
    outputs = {"y": "one.y", "z": "two.y"}
    return Stack("said", steps, outputs, ("y",), golden=folder / "golden.parquet", triton=TritonSettings(**said))


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(url, timeout=20) as answer:
        found = re.findall(rf"^{name}{{[^}}]*}} ([\d.]+)$", answer.read().decode(), re.MULTILINE)
    return sum(map(float, found))


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_equal_requests_are_answered_from_the_cache(layout: str, tmp_path: Path) -> None:
    export(stack(tmp_path, response_cache=True), tmp_path / "models", layout=layout)
    with serve(tmp_path / "models", http_port=0, grpc_port=0, metrics_port=0) as server:
        with Client(server.grpc_url) as client:
            answers = [client.predict(ROWS[:5]) for _ in range(3)]
            other = client.predict(ROWS[5:10])
        assert metric(server.metrics_url, "nv_cache_num_hits_per_model") == 2
        assert all(answer.equals(answers[0]) for answer in answers[1:])
        assert not other.equals(answers[0])
        export(stack(tmp_path, 1, response_cache=True), tmp_path / "models", layout=layout, overwrite=True)
        with pytest.raises(RepositoryError, match="answers are kept for equal requests"):
            server.reload()


def test_a_server_without_a_cache_does_not_get_one_by_a_reload(tmp_path: Path) -> None:
    export(stack(tmp_path), tmp_path / "models")
    with serve(tmp_path / "models", http_port=0, grpc_port=0, metrics_port=0) as server:
        export(stack(tmp_path, 1, response_cache=True), tmp_path / "models", overwrite=True)
        with pytest.raises(RepositoryError, match="answers are kept for equal requests"):
            server.reload()


def test_every_model_is_warmed_up_before_it_is_ready(tmp_path: Path) -> None:
    said = {"warmup": [1, 16], "steps": {"two": TritonSettings(warmup=())}}
    export(stack(tmp_path, **said), tmp_path / "models", max_batch=64)
    log: list[str] = []
    with serve(tmp_path / "models", http_port=0, grpc_port=0, metrics_port=0, log=log.append) as server:
        with Client(server.http_url) as client:
            expected = client.predict(ROWS)
        assert len(expected) == len(ROWS)
    configs = {
        model: (tmp_path / "models" / model / "config.pbtxt").read_text().count("model_warmup {")
        for model in ("said_one", "said_two")
    }
    assert configs == {"said_one": 2, "said_two": 0}
    assert not [line for line in log if "warm" in line.lower() and ("fail" in line.lower() or "error" in line.lower())]


def test_rate_limits_and_queues(tmp_path: Path, cli: Callable[..., Any]) -> None:
    said = {"resources": {"turn": 1}, "max_queue": 64, "preferred_batch": [16, 64], "queue_delay_us": 100}
    export(stack(tmp_path, **said), tmp_path / "models", max_batch=64)
    with serve(tmp_path / "models", http_port=0, grpc_port=0, metrics_port=0) as server:
        done = cli("verify", tmp_path / "models", "--url", server.grpc_url)
        assert done.code == 0, done.err


def test_inspect_says_what_was_chosen_and_where_tensors_lie(tmp_path: Path, cli: Callable[..., Any]) -> None:
    said = {"instances": 1, "steps": {"two": TritonSettings(queue_delay_us=250)}}
    export(stack(tmp_path, **said), tmp_path / "gpu", target="ngc-gpu")
    shown = cli("inspect", tmp_path / "gpu")
    assert shown.code == 0, shown.err
    text = " ".join(shown.out.split())
    for words in ("how Triton runs them", "250 us", "the stack says so", "lies on", "GPU", "copied for"):
        assert words in text
    document = json.loads(cli("inspect", tmp_path / "gpu", "--json").out)
    manifest = read_manifest(tmp_path / "gpu")
    assert set(document["choices"]) == {path.parent.name for path in (tmp_path / "gpu").glob("*/config.pbtxt")}
    assert {choice.value for choice in manifest.choices["said_two"] if choice.setting == "queue_delay_us"} == {"250 us"}
    tensors = {each["name"]: each for each in document["tensors"]}
    forests = [each for each in tensors.values() if each["made_by"] in ("said_one", "said_two")]
    assert [each["device"] for each in forests] == ["GPU", "GPU"]
    assert all(each["copied_by"] for each in forests)  # what takes answers apart is on the CPU
    assert {tensors[name]["made_by"] for name in ROWS} == {"request"}
    assert [each["answer"] for each in tensors.values() if each["name"] in ("y", "z")] == [True, True]

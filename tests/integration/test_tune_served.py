"""`tristage tune` on the tiny stack: by the command line; served by a real Triton, every engine at its batch sizes."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tristage.client import Client
from tristage.export.tuning import tune
from tristage.export.tuning.choose import choose
from tristage.manifest import check_files, read_manifest
from tristage.serving import Server, serve
from tristage.serving.program_file import read_calls
from tristage.tuning import Tuning

FASTEST = {1: "xgboost", 16: "onnxruntime-joined", 64: "onedal", 256: "onnxruntime"}


@pytest.fixture(scope="module")
def tuned(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny repository with another engine for every batch size than the one that is fastest."""
    path = shutil.copytree(tiny_repository, tmp_path_factory.mktemp("tuned") / "repository")

    def measure(engines: Mapping[str, Any], rows: Any, groups: Any, batch: int) -> dict[str, float]:
        return {name: 1.0 if name == FASTEST[batch] else 2.0 for name in engines}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tune(path, batches=tuple(FASTEST), measure=measure)
    return path


@pytest.fixture(scope="module")
def server(tuned: Path) -> Iterator[Server]:
    with serve(tuned, cores=[0], http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


def test_every_engine_serves(server: Server, tuned: Path, cli: Callable[..., Any]) -> None:
    manifest = read_manifest(tuned)
    check_files(tuned, manifest)
    calls = read_calls(tuned, dict.fromkeys(manifest.models.values()))
    assert [call.step for call in calls] == ["trees", "grouped", "stage2"]
    for call in calls:
        assert [choice.engine for choice in call.engines] == ["xgboost", "onnxruntime", "onedal", "onnxruntime"]
        assert [choice.rows for choice in call.engines] == [4, 32, 128, None]
    done = cli("verify", tuned, "--url", server.grpc_url, "--json")
    assert done.code == 0, done.err
    golden = pq.read_table(tuned / "golden.parquet")
    inputs = golden.select([column.name for column in manifest.signature.inputs])
    with Client(server.grpc_url) as client:
        for start, count in ((0, 1), (1, 1), (2, 4), (6, 20), (26, 100), (0, 300)):
            answers = client.predict(inputs.slice(start, count))
            for name in ("like", "reply"):
                expected = golden[f"expected.{name}"].slice(start, count).to_numpy()
                np.testing.assert_allclose(answers[name].to_numpy(), expected, atol=1e-5)


def test_the_command(tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    path = shutil.copytree(tiny_repository, tmp_path / "repository")
    before = cli("inspect", path)
    assert "not measured" in before.out
    assert "tristage tune" in before.out
    done = cli("tune", path, "--batches", "1,64", "--json")
    assert done.code == 0, done.err
    said = Tuning.of(json.loads(done.out))
    manifest = read_manifest(path)
    assert said == manifest.tuned
    check_files(path, manifest)
    assert set(said.forests) == {"trees", "grouped", "stage2"}
    for forest in said.forests.values():
        assert forest.engines == choose(forest.milliseconds, forest.default)
        assert set(forest.milliseconds) == {1, 64}
        assert forest.rows.startswith("300 golden rows")
        assert forest.left_out == {}
    shown = cli("inspect", path)
    assert shown.code == 0, shown.err
    assert ", 1 thread" in shown.out
    assert "not measured" not in shown.out
    assert "stage2 is compared with XGBoost on 300 golden rows" in shown.out.replace("\n", " ")
    assert json.loads(cli("inspect", path, "--json").out)["tuned"]["forests"].keys() == said.forests.keys()


def test_what_is_wrong_is_said(tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    done = cli("tune", tiny_repository, "--batches", "1,many")
    assert done.code == 2
    assert "--batches is 1,many; write batch sizes with commas between" in done.err
    done = cli("export", "stack.yaml", "-o", tmp_path / "new", "--target", "ngc-cpu", "--tune")
    assert done.code == 2
    assert "ngc-cpu has none to choose" in done.err
    done = cli("tune", tmp_path)
    assert done.code == 2
    assert "holds no manifest.json" in done.err


def test_export_and_tune(tiny_stack: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    arguments = ("export", "--trust", tiny_stack / "stack.yaml", "-o", tmp_path / "repository", "--tune", "--json")
    done = cli(*arguments)
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert set(said["tuned"]["forests"]) == {"trees", "grouped", "stage2"}
    assert read_manifest(tmp_path / "repository").tuned == Tuning.of(said["tuned"])

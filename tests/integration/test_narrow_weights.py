"""Nets with narrow weights, served by the wheel's Triton: verify allows what the export measured, and no more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import xgboost
from typer.testing import CliRunner

from tests import native_nets as nets
from tristage.cli import app
from tristage.export import export
from tristage.export.tuning import tune
from tristage.manifest import read_manifest, write_manifest
from tristage.serving import serve
from tristage.stack import ForestStep, ListInput, NetStep, Stack


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of int8, and a forest that reads its answers."""
    folder = tmp_path_factory.mktemp("narrow")
    net = NetStep(nets.module(), nets.READS, examples=nets.make_rows(2), weights="int8")
    rows = nets.make_rows(2000, 1)["numeric"][:, :2]
    forest = xgboost.train({"max_depth": 3, "nthread": 1}, xgboost.DMatrix(abs(rows) % 1, rows[:, 0] > 0), 5)
    steps = {"net": net, "top": ForestStep(forest, ("net",))}
    outputs = {"first": "net.score0", "top": "top.score"}
    golden = nets.write_golden(folder)
    stack = Stack("narrow", steps, outputs, inputs={"items": ListInput(7)}, golden=golden)
    export(stack, folder / "repository")
    return folder / "repository"


def test_verify(repository: Path, tmp_path: Path) -> None:
    weights = read_manifest(repository).weights
    assert weights is not None
    assert weights.outputs["first"] > 1e-5
    with serve(repository, cores=[0], http_port=0, grpc_port=0, metrics_port=0) as server:
        command = ["verify", str(repository), "--url", server.grpc_url]
        said = CliRunner().invoke(app, [*command, "--json"])
        assert said.exit_code == 0, said.output
        found = json.loads(said.output)
        assert found["narrow_weights"] == weights.outputs
        assert found["differences"] == {name: pytest.approx(value, abs=1e-6) for name, value in weights.outputs.items()}
        assert "what narrow weights do" in CliRunner().invoke(app, command, env={"COLUMNS": "200"}).output
        other = tmp_path / "other"
        other.mkdir()
        (other / "golden.parquet").write_bytes((repository / "golden.parquet").read_bytes())
        write_manifest(other, replace(read_manifest(repository), weights=None))
        refused = CliRunner().invoke(app, ["verify", str(other), "--url", server.grpc_url])
        assert refused.exit_code == 1


def test_tune(repository: Path) -> None:
    """Golden rows stay that differ for narrow weights alone."""
    before = read_manifest(repository)
    tuned = tune(repository, batches=(1, 16))
    assert tuned.tuned is not None
    assert tuned.weights == before.weights
    assert not [note for note in tuned.notes if "were left out" in note and note not in before.notes]

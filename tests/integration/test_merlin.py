"""Graphs of Merlin Systems 23.8, made by Merlin Systems itself, become stacks that answer what it answers.

Merlin Systems lives in an environment of its own (`make merlin`); tests/merlin/graphs.py runs in it and leaves its
repositories and answers. Everything here runs where Merlin Systems is not installed.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as grpc

from benchmarks.merlin_server import python, serve_merlin
from tristage.client import Client, verify
from tristage.errors import ArtifactError, StackError
from tristage.export import export
from tristage.export.merlin import MerlinNote
from tristage.manifest import read_manifest
from tristage.serving import serve
from tristage.stack import ListInput, Stack

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("merlin")]

GRAPHS = Path(__file__).parents[1] / "merlin" / "graphs.py"
ANSWERED = ("mixed", "stacked", "classes", "tasks", "features", "leaves", "last")


@pytest.fixture(scope="session")
def merlin(shared: Path) -> Path:
    """What tests/merlin/graphs.py wrote; not to be changed."""
    folder = shared / "merlin"
    with (shared / "merlin.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "refused.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            done = subprocess.run(
                [python(), "-P", GRAPHS, folder], capture_output=True, text=True, timeout=500, check=False
            )
            assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="session")
def exported(merlin: Path, shared: Path, cli: Callable[..., Any]) -> Callable[[str], Path]:
    """Export a graph's folder, once; `mixed` by the command line."""

    def make(name: str) -> Path:
        folder, golden = shared / f"from_merlin_{name}", merlin / "golden.parquet"
        if folder.exists():
            return folder
        if name == "mixed":
            done = cli("export", "--from-merlin", merlin / name, "--golden", golden, "--trust", "-o", folder)
            assert done.code == 0, done.err
            assert "note: output torch/click is called torch_click" in done.err
        else:
            lists = {"tokens": ListInput(4)} if name == "lists" else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MerlinNote)
                stack = Stack.from_merlin(merlin / name, golden=golden, inputs=lists, trust=True)
            export(stack, folder, trust=True)
        return folder

    return make


def described(stack: Stack) -> Mapping[str, Any]:
    return {
        "steps": {name: type(step).__name__ for name, step in stack.steps.items()},
        "outputs": dict(stack.outputs),
    }


def test_merlin_systems_is_not_installed_here() -> None:
    assert importlib.util.find_spec("merlin.systems") is None


@pytest.mark.parametrize("name", ANSWERED)
def test_served_answers_are_merlins_own(name: str, merlin: Path, exported: Callable[[str], Path]) -> None:
    repository = exported(name)
    rows = pd.read_parquet(merlin / "golden.parquet")
    expected = pd.read_parquet(merlin / f"{name}.parquet")
    with (
        serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        Client(server.grpc_url) as client,
    ):
        read = [column.name for column in client.signature.inputs]
        verify(client, repository).check()
        answers = client.predict(rows[read])
        one = client.predict(rows[read].iloc[:1])
    assert server.stack == "executor_model"
    assert len(answers) == 400
    for column in answers:
        merlins = expected["torch/click" if column == "torch_click" else column.replace("view_like", "view/like")]
        np.testing.assert_allclose(answers[column], merlins, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one[column], merlins[:1], rtol=1e-5, atol=1e-5)
        assert answers[column].dtype == merlins.dtype
    left_out = set(expected) - set(answers) - {"torch/click", "view/like"}
    assert left_out == ({"age"} if name == "last" else set())


def test_merlin_served_by_triton_answers_the_same(merlin: Path, exported: Callable[[str], Path]) -> None:
    rows = pd.read_parquet(merlin / "golden.parquet")
    expected = pq.read_table(exported("features") / "golden.parquet").to_pandas()
    kinds = {"user": "BYTES", "item": "INT64", "price": "FP64", "age": "INT64"}
    inputs = []
    for name, kind in kinds.items():
        values = rows[name].to_numpy()
        inputs.append(grpc.InferInput(name, values.shape, kind))
        inputs[-1].set_data_from_numpy(values)
    with serve_merlin(merlin / "features") as address, grpc.InferenceServerClient(address) as client:
        answers = client.infer("executor_model", inputs)
    for name in ("user_id", "item_id", "n_price", "n_age"):
        np.testing.assert_allclose(answers.as_numpy(name), expected[f"expected.{name}"], rtol=1e-5, atol=1e-5)


def test_a_graph_in_memory_becomes_the_same_repository(merlin: Path, exported: Callable[[str], Path]) -> None:
    memory, folder = (read_manifest(path) for path in (merlin / "mixed.memory", exported("mixed")))
    assert memory.signature == folder.signature
    assert memory.models == folder.models
    tables = [pq.read_table(path / "golden.parquet") for path in (merlin / "mixed.memory", exported("mixed"))]
    for name in tables[0].column_names[4:]:
        np.testing.assert_allclose(*(table[name].to_numpy() for table in tables), atol=1e-6)


@pytest.mark.parametrize("name", ANSWERED)
def test_a_node_its_ensemble_and_the_folder_read_the_same(name: str, merlin: Path) -> None:
    read = json.loads((merlin / "stacks.json").read_text())[name]
    assert read["node"] == read["ensemble"] == read["exported"]
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", MerlinNote)
        stack = Stack.from_merlin(merlin / name, trust=True)
    assert described(stack) == {key: read["node"][key] for key in ("steps", "outputs")}
    assert [str(note.message) for note in notes if note.category is MerlinNote] == read["node"]["notes"]


def test_lists_have_a_length(merlin: Path, exported: Callable[[str], Path]) -> None:
    (column,) = read_manifest(exported("lists")).signature.inputs
    assert (column.name, column.dtype, column.length) == ("tokens", "int64", 4)
    with pytest.raises(StackError, match="raw column tokens holds lists.*--list-length tokens=N"):
        Stack.from_merlin(merlin / "lists", trust=True)
    assert Stack.from_merlin(merlin / "lists", inputs={"tokens": ListInput(4)}, name="text", trust=True).name == "text"


def test_a_scikit_learn_forest_is_read_from_memory(merlin: Path) -> None:
    golden = pq.read_table(merlin / "averaged.memory" / "golden.parquet").to_pandas()
    merlins = pd.read_parquet(merlin / "averaged.parquet")
    np.testing.assert_allclose(golden["expected.output__0"], merlins["output__0"], rtol=1e-5, atol=1e-5)
    with pytest.raises(ArtifactError, match="checkpoint.tl is a scikit-learn forest .* Stack.from_merlin"):
        Stack.from_merlin(merlin / "averaged", trust=True)


def test_target_encoding_needs_no_target(merlin: Path) -> None:
    signature = read_manifest(merlin / "encoded.memory").signature
    assert [column.name for column in signature.inputs] == ["item"]
    assert [column.name for column in signature.outputs] == ["TE_item_click"]
    golden = pq.read_table(merlin / "encoded.memory" / "golden.parquet")
    assert len(set(golden["expected.TE_item_click"].to_pylist())) > 10


def test_what_is_carried_otherwise_is_said(merlin: Path) -> None:
    read = json.loads((merlin / "stacks.json").read_text())
    assert read["mixed"]["node"]["notes"] == ["output torch/click is called torch_click"]
    assert read["same"]["node"]["outputs"] == {"workflow_age": "workflow.age"}
    assert read["named"]["node"]["reads"]["forest"] == [
        f"workflow.{name}" for name in ("n_age", "n_price", "item_id", "user_id")
    ]
    assert "answers otherwise than Merlin" in read["named"]["node"]["notes"][0]
    probability, raw, forest = read["last"]["node"]["notes"]
    assert "probability of class 1 alone" in probability
    assert "raw column age" in raw
    assert forest.startswith("forest1 is left out")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("SoftmaxSampling", "operator SoftmaxSampling cannot be carried over: its draw is random"),
        ("UnrollFeatures", "operator UnrollFeatures cannot be carried over: send a row for each candidate"),
        ("FilterCandidates", "operator FilterCandidates cannot be carried over"),
        ("LogOp", "operator LogOp cannot be carried over: .* in the NVTabular workflow"),
        ("TargetEncoding", "has lost its target .* give the workflow as it was fitted"),
        ("labels", "answers labels of classes"),
        ("lists", "raw column tokens holds lists"),
        ("ragged", "reads tokens as values and offsets"),
        ("two workflows", "make one workflow of the two"),
    ],
)
def test_what_cannot_be_carried_is_refused(case: str, words: str, merlin: Path) -> None:
    assert re.search(words, json.loads((merlin / "refused.json").read_text())[case])


def test_a_folder_is_read_with_trust_only(merlin: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    done = cli("export", "--from-merlin", merlin / "mixed", "-o", tmp_path / "out")
    assert done.code == 2
    assert "--trust" in done.err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtifactError, match="trust=True"):
        Stack.from_merlin(merlin / "mixed")


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_runs_without_trust(tmp_path: Path) -> None:
    pickled = tmp_path / "executor_model" / "1" / "ensemble" / "ensemble.pkl"
    pickled.parent.mkdir(parents=True)
    pickled.write_bytes(pickle.dumps(_Runs(tmp_path / "ran")))
    with pytest.raises(ArtifactError, match="runs whatever its pickles say"):
        Stack.from_merlin(tmp_path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(StackError, match="no Merlin Systems graph"):
        Stack.from_merlin(tmp_path, trust=True)
    assert (tmp_path / "ran").exists()


def test_folders_that_are_none(merlin: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a folder that Merlin Systems' Ensemble.export wrote: it has no"):
        Stack.from_merlin(tmp_path, trust=True)
    shutil.copytree(merlin / "mixed", tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "1_filtriton" / "1")
    with pytest.raises(ArtifactError, match="no version of model 1_filtriton"):
        Stack.from_merlin(tmp_path / "mixed", trust=True)
    (tmp_path / "mixed" / "1_filtriton" / "7").mkdir()
    (tmp_path / "mixed" / "1_filtriton" / "7" / "xgboost.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot read .*xgboost.json"):
        Stack.from_merlin(tmp_path / "mixed", trust=True)
    shutil.copytree(merlin / "leaves", tmp_path / "leaves")
    text = tmp_path / "leaves" / "1_filtriton" / "1" / "model.txt"
    text.write_bytes(text.read_bytes()[:-900])  # LightGBM itself would end the process
    with pytest.raises(ArtifactError, match="model.txt is no whole model of LightGBM"):
        Stack.from_merlin(tmp_path / "leaves", trust=True)
    shutil.copytree(merlin / "mixed" / "executor_model", tmp_path / "mixed" / "another")
    with pytest.raises(ArtifactError, match="it has 2 of"):
        Stack.from_merlin(tmp_path / "mixed", trust=True)
    shutil.rmtree(tmp_path / "mixed" / "another")
    (tmp_path / "mixed" / "executor_model" / "1" / "ensemble" / "ensemble.pkl").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="cannot be unpickled"):
        Stack.from_merlin(tmp_path / "mixed", trust=True)


def test_the_command_line_takes_a_stack_or_a_graph(merlin: Path, cli: Callable[..., Any]) -> None:
    stack = "stack.yaml"
    for arguments in ((), (stack, "--from-merlin", merlin / "mixed")):
        done = cli("export", *arguments)
        assert done.code == 2
        assert "give a stack.yaml, or --from-merlin" in done.err
    done = cli("export", stack, "--golden", merlin / "golden.parquet")
    assert done.code == 2
    assert "leave --golden and --list-length out" in done.err
    done = cli("export", "--from-merlin", merlin / "mixed", "--list-length", "tokens", "--trust")
    assert done.code == 2
    assert "write it as COLUMN=N" in done.err


def test_the_same_bytes_in_every_process(merlin: Path, exported: Callable[[str], Path], tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("tristage"), "export", "--from-merlin", merlin / "mixed", "--trust"]
    command += ["--golden", merlin / "golden.parquet", "-o", tmp_path / "again"]
    subprocess.run(command, check=True, capture_output=True, timeout=300, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert read_manifest(tmp_path / "again").files == read_manifest(exported("mixed")).files

"""A stack whose workflow NVTabular itself serves, in a real Triton: both layouts, both protocols, who may start it."""

from __future__ import annotations

import dataclasses
import json
import os
import pickletools
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tristage.client import Client
from tristage.errors import ArtifactError, InferenceFailed, ServerError
from tristage.manifest import checksums, read_manifest, write_manifest
from tristage.serving import Server, serve
from tristage.serving.workflow_file import TRUST

pytest.importorskip("nvtabular")
LAYOUTS = ("ensemble", "fused")
FREE: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts and a stack.yaml; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    script = Path(__file__).parents[1] / "fallback_stack.py"
    subprocess.run([sys.executable, str(script), str(folder / "own")], check=True, timeout=300, cwd=folder)
    return folder / "own"


@pytest.fixture(scope="module")
def exported(
    trained: Path, tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Any]
) -> dict[str, tuple[Path, Any]]:
    """Layout -> its repository, and how the export ended; not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    made = {}
    for layout in LAYOUTS:
        done = cli("export", "--trust", trained / "stack.yaml", "-o", folder / layout, "--layout", layout)
        assert done.code == 0, done.err
        made[layout] = (folder / layout, done)
    return made


@pytest.fixture(scope="module", params=LAYOUTS)
def served(request: pytest.FixtureRequest, exported: dict[str, tuple[Path, Any]]) -> Iterator[tuple[Path, Server]]:
    repository, _ = exported[request.param]
    with serve(repository, cores=[0], trust=True, **FREE) as server:
        yield repository, server


def test_the_export_says_what_it_costs(exported: dict[str, tuple[Path, Any]], trained: Path) -> None:
    for repository, done in exported.values():
        (said,) = [line for line in done.err.splitlines() if line.startswith("step features is served by NVTabular")]
        assert "operator Letters has no lowering" in said
        assert "LambdaOp on user: column 'user' holds text" in said
        assert "tristage.export.workflow.lowers" in said
        assert "docs/custom_operators.md" in said
        took = float(said.partition("took ")[2].partition(" ms")[0])
        assert took > 0
        assert "--trust" in done.err.splitlines()[-1] + done.err.splitlines()[-2]
        (note,) = [note for note in read_manifest(repository).notes if "NVTabular itself" in note]
        assert " ms" not in note  # measured figures would make every export another one


def test_forests_behind_it_are_tuned_on_golden_rows_with_trust(
    exported: dict[str, tuple[Path, Any]], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    path = shutil.copytree(exported["ensemble"][0], tmp_path / "repository")
    done = cli("tune", path, "--batches", "1", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)["forests"]["trees"]["rows"]
    assert "drawn around its thresholds, for the golden rows cannot be followed" in said
    assert "tristage serve --trust" in said
    done = cli("tune", path, "--batches", "1", "--trust", "--json")
    assert done.code == 0, done.err
    assert " golden rows, and 512 drawn" in json.loads(done.out)["forests"]["trees"]["rows"]


def test_served_answers_equal_the_training_libraries(served: tuple[Path, Server], cli: Callable[..., Any]) -> None:
    repository, server = served
    for url in (server.http_url, server.grpc_url):
        done = cli("verify", repository, "--url", url, "--json")
        assert done.code == 0, done.err
        differences = json.loads(done.out)["differences"]
        assert set(differences) == {"like", "prefix"}
        assert max(differences.values()) <= 1e-5


def test_one_row_alone_and_nulls(served: tuple[Path, Server]) -> None:
    repository, server = served
    golden = pq.read_table(repository / "golden.parquet")
    with Client(server.grpc_url) as client:
        for row in range(12):
            (answer,) = client.predict(golden.slice(row, 1), unknown="ignore").to_pylist()
            for name in ("like", "prefix"):
                assert answer[name] == pytest.approx(golden[f"expected.{name}"][row].as_py(), abs=1e-5)
        (nothing,) = client.predict(
            [{"user": None, "name": None, "age": None, "n": 3, "verified": True, "tags": [], "tokens": []}]
        )
        assert nothing["prefix"] == 1  # NVTabular's code of a null


def test_a_bad_request_takes_no_other_with_it(served: tuple[Path, Server]) -> None:
    repository, server = served
    golden = pq.read_table(repository / "golden.parquet").to_pylist()
    rows = [{name: value for name, value in row.items() if not name.startswith("expected.")} for row in golden[:24]]
    rows[7]["name"] = "no!"

    def ask(row: int) -> Any:
        with Client(server.grpc_url) as client:
            try:
                return client.predict([rows[row]])[0]
            except InferenceFailed as error:
                return error

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(len(rows))))
    assert isinstance(answers[7], InferenceFailed)
    assert "NVTabular's transform fails: an exclamation mark" in str(answers[7])
    for row, answer in enumerate(answers):
        if row != 7:
            assert answer["like"] == pytest.approx(golden[row]["expected.like"], abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_lines_of_a_gpu_answer_the_same_by_dlpack(
    layout: str, exported: dict[str, tuple[Path, Any]], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    path = shutil.copytree(exported[layout][0], tmp_path / "repository")
    config = path / "own_features" / "config.pbtxt"
    device = 'parameters { key: "device" value { string_value: "cpu" } }\n'
    config.write_text(config.read_text(encoding="utf-8") + device, encoding="utf-8")
    write_manifest(path, dataclasses.replace(read_manifest(path), files=checksums(path)))
    with serve(path, cores=[0], trust=True, **FREE) as server:
        done = cli("verify", path, "--url", server.grpc_url, "--json")
        assert done.code == 0, done.err
        assert max(json.loads(done.out)["differences"].values()) <= 1e-5
        golden = pq.read_table(path / "golden.parquet")

        def ask(row: int) -> Any:
            with Client(server.grpc_url) as client:
                return client.predict(golden.slice(row, 1), unknown="ignore").to_pylist()[0]

        with ThreadPoolExecutor(12) as pool:  # requests that wait for each other are joined, and taken apart again
            answers = list(pool.map(ask, range(24)))
        for row, answer in enumerate(answers):
            for name in ("like", "prefix"):
                assert answer[name] == pytest.approx(golden[f"expected.{name}"][row].as_py(), abs=1e-5)


def test_the_server_reads_the_gpus_configuration(trained: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    done = cli("export", "--trust", trained / "stack.yaml", "-o", tmp_path / "gpu", "--target", "ngc-gpu")
    assert done.code == 0, done.err
    with pytest.raises(ServerError) as caught:
        serve(tmp_path / "gpu", cores=[0], trust=True, **FREE).stop()
    reasons = dict(re.findall(r"model (\w+) does not load: (.*)", str(caught.value)))
    no_gpu = "model own_features has kind KIND_GPU but no GPUs are available"  # with one, it is cuDF that is not there
    said = reasons.pop("own_features")
    assert no_gpu in said or "is not installed in the server's Python" in said
    assert reasons
    assert all("unable to find backend library for backend" in reason for reason in reasons.values())


def test_nothing_exported_is_a_pickle(exported: dict[str, tuple[Path, Any]]) -> None:
    for repository, _ in exported.values():
        files = [path for path in repository.rglob("*") if path.is_file() and path.stat().st_size]
        assert repository / "own_features" / "1" / "workflow.json" in files
        for path in files:
            assert path.suffix not in (".pkl", ".pickle", ".joblib")
            with pytest.raises(Exception, match=r".*"):  # noqa: B017, PT011 - whatever it is, it is no pickle
                list(pickletools.genops(path.read_bytes()))


def test_exporting_twice_gives_the_same_bytes(
    exported: dict[str, tuple[Path, Any]], trained: Path, tmp_path: Path
) -> None:
    for layout in LAYOUTS:
        again = tmp_path / layout
        environment = {**os.environ, "PYTHONHASHSEED": "7"}
        command = [str(Path(sys.executable).with_name("tristage")), "export", "--trust", str(trained / "stack.yaml")]
        subprocess.run(
            [*command, "-o", str(again), "--layout", layout],
            check=True,
            capture_output=True,
            timeout=180,
            env=environment,
        )
        one, two = (
            {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.suffix != ".pyc"}
            for folder in (exported[layout][0], again)
        )
        assert one == two


def test_it_is_not_served_without_a_word(
    exported: dict[str, tuple[Path, Any]], trained: Path, cli: Callable[..., Any]
) -> None:
    for repository, _ in exported.values():
        done = cli("serve", repository, "--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
        assert done.code == 2
        assert str(trained / "workflow") in done.err
        assert "--trust" in done.err
        assert "tritonserver" not in done.err
        assert "Traceback" not in done.err
        with pytest.raises(ArtifactError, match="trust=True") as caught:
            serve(repository, **FREE)
        assert caught.value.path == trained / "workflow"


def test_the_runner_asks_for_the_word_too(
    exported: dict[str, tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST, "1")  # the environment alone does not make `serve` trust
    with pytest.raises(ArtifactError, match="--trust"):
        serve(exported["fused"][0], **FREE)
    monkeypatch.setattr("tristage.serving.server._check_workflows", lambda *_: None)
    with pytest.raises(ServerError, match=r"own_features does not load.*workflow\.json names a saved workflow"):
        serve(exported["fused"][0], **FREE)


def test_served_by_the_command_line(exported: dict[str, tuple[Path, Any]], cli: Callable[..., Any]) -> None:
    command = [str(Path(sys.executable).with_name("tristage")), "serve", str(exported["ensemble"][0]), "--trust"]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen([*command, *ports], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(line.split()[1] for line in process.stderr if line.startswith("gRPC "))
        for line in process.stderr:
            if line.startswith("Ctrl-C"):
                break
        done = cli("verify", exported["ensemble"][0], "--url", url)
        assert done.code == 0, done.err
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 0


def test_a_changed_workflow_is_not_served(trained: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    mine = shutil.copytree(trained, tmp_path / "mine")
    done = cli("export", "--trust", mine / "stack.yaml", "-o", tmp_path / "repository")
    assert done.code == 0, done.err
    changes: dict[str, Callable[[Path], Any]] = {
        "changed since export: workflow.pkl": lambda folder: (folder / "workflow.pkl").write_bytes(b"\x80\x04."),
        "missing: categories/unique.tags": lambda folder: next(folder.rglob("unique.tags*")).unlink(),
        "is gone": shutil.rmtree,
    }
    for words, change in changes.items():
        change(mine / "workflow")
        done = cli("serve", tmp_path / "repository", "--trust", "--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
        assert done.code == 2
        assert words in done.err
        assert str(mine / "workflow") in done.err
        assert "Traceback" not in done.err


def test_an_operator_of_a_module_of_its_own(tmp_path: Path) -> None:
    """Saved by reference: the module is found where the program that serves finds it."""
    import pandas as pd

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "halves.py").write_text(
        "from nvtabular.ops import Operator\n\n\nclass Halves(Operator):\n"
        "    def transform(self, col_selector, df):\n        return df[col_selector.names] / 2\n"
    )
    pd.DataFrame({"n": [1.0, 2.5, None]}).to_parquet(tmp_path / "golden.parquet")
    fit = (
        "import nvtabular as nvt, pandas as pd; from halves import Halves;"
        "rows = pd.read_parquet('golden.parquet');"
        "nvt.Workflow(['n'] >> Halves()).fit(nvt.Dataset(rows)).save('workflow')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "mine")}
    subprocess.run([sys.executable, "-c", fit], check=True, timeout=120, cwd=tmp_path, env=environment)
    (tmp_path / "stack.yaml").write_text(
        "name: halved\ngolden: golden.parquet\nsteps: {f: {workflow: workflow}}\noutputs: {half: f.n}\n"
    )
    script = (
        "from tristage.client import Client; from tristage.export import export; from tristage.serving import serve;"
        "from tristage.export.stack_file import read_stack; from pathlib import Path\n"
        "export(read_stack(Path('stack.yaml')), 'repository', trust=True)\n"
        "with serve('repository', trust=True, http_port=0, grpc_port=0, metrics_port=0) as server:\n"
        "    with Client(server.grpc_url) as client: print(client.predict([{'n': 5.0}, {'n': None}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        timeout=300,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[{'half': 2.5}, {'half': nan}]"
    with pytest.raises(ServerError, match=r"halved_f does not load.*No module named 'halves'; set PYTHONPATH"):
        serve(tmp_path / "repository", trust=True, **FREE)

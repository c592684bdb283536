"""The whole way on the tiny stack: exported by the command line, served by a real Triton, asked over both protocols."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tristage.client import Client
from tristage.manifest import read_manifest
from tristage.serving import Server, serve


@pytest.fixture(scope="module")
def server(tiny_repository: Path) -> Iterator[Server]:
    with serve(tiny_repository, cores=[0], http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, server: Server) -> str:
    return server.http_url if request.param == "http" else server.grpc_url


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


def test_served_answers_equal_the_training_libraries(url: str, tiny_repository: Path, cli: Callable[..., Any]) -> None:
    done = cli("verify", tiny_repository, "--url", url, "--json")
    assert done.code == 0, done.err
    differences = json.loads(done.out)["differences"]
    assert set(differences) == {"like", "reply"}
    assert max(differences.values()) <= 1e-5


def test_answers_that_differ_are_found(
    url: str, tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    other = shutil.copytree(tiny_repository, tmp_path / "other")
    golden = pq.read_table(other / "golden.parquet")
    at = golden.column_names.index("expected.reply")
    wrong = golden["expected.reply"].to_numpy().copy()
    wrong[17] += 2e-5
    import pyarrow as pa

    pq.write_table(golden.set_column(at, "expected.reply", pa.array(wrong)), other / "golden.parquet")
    done = cli("verify", other, "--url", url)
    assert done.code == 1
    assert "reply" in done.err
    assert "Traceback" not in done.err


def test_every_kind_of_step_is_a_model_of_one_ensemble(tiny_repository: Path, server: Server) -> None:
    manifest = read_manifest(tiny_repository)
    assert set(manifest.models) == {"features", "trees", "grouped", "keras", "torch", "stage2", "score"}
    with Client(server.http_url) as client:
        golden = pq.read_table(tiny_repository / "golden.parquet")
        client.predict(golden.slice(0, 8), unknown="ignore")
    import tritonclient.http as http

    missing, deadline = {"tiny", *manifest.models.values()}, time.monotonic() + 30
    with http.InferenceServerClient(server.http_url.removeprefix("http://")) as triton:
        while missing:  # a request is counted a moment after it was answered
            assert time.monotonic() < deadline, f"{missing} never ran"
            statistics = triton.get_inference_statistics()["model_stats"]
            missing -= {entry["name"] for entry in statistics if entry["inference_stats"]["success"]["count"]}


def test_columns_that_nobody_reads_are_not_asked_for(tiny_repository: Path) -> None:
    signature = read_manifest(tiny_repository).signature
    assert {column.name for column in signature.inputs} == {
        "user",
        "language",
        "followers",
        "age",
        "verified",
        "tokens",
        "tags",
    }  # neither target


def test_plain_triton_clients_need_no_tristage(server: Server, tiny_repository: Path) -> None:
    import urllib.request

    golden = pq.read_table(tiny_repository / "golden.parquet")
    row = {
        "user": ("BYTES", ["u1"], 1),
        "language": ("BYTES", ["en"], 1),
        "followers": ("FP64", [120.0], 1),
        "age": ("INT64", [30], 1),
        "verified": ("BOOL", [False], 1),
        "tokens": ("INT64", [1, 2, 3, 0, 0, 0], 6),
        "tags": ("BYTES", ["a", "", ""], 3),
    }
    assert set(row) == {name for name in golden.column_names if not name.startswith("expected.")}
    body = {
        "inputs": [
            {"name": name, "datatype": kind, "shape": [1, width], "data": data}
            for name, (kind, data, width) in row.items()
        ]
    }
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/tiny/infer", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        outputs = {output["name"]: output for output in json.load(answer)["outputs"]}
    with Client(server.grpc_url) as client:
        same = client.predict(
            [
                {
                    "user": "u1",
                    "language": "en",
                    "followers": 120.0,
                    "age": 30,
                    "verified": False,
                    "tokens": [1, 2, 3],
                    "tags": ["a"],
                }
            ]
        )
    for name in ("like", "reply"):
        assert outputs[name]["shape"] == [1, 1]
        assert outputs[name]["data"][0] == pytest.approx(same[0][name], abs=1e-6)


def test_predict_reads_and_writes_files(
    url: str, tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    golden = pq.read_table(tiny_repository / "golden.parquet")
    rows = golden.select([name for name in golden.column_names if not name.startswith("expected.")])
    pq.write_table(rows, tmp_path / "rows.parquet")
    done = cli("predict", "--url", url, tmp_path / "rows.parquet", "-o", tmp_path / "answers.parquet")
    assert done.code == 0, done.err
    assert "tokens" in done.err  # lists were cut, and that is said
    answers = pq.read_table(tmp_path / "answers.parquet")
    for name in ("like", "reply"):
        np.testing.assert_allclose(answers[name], golden[f"expected.{name}"], atol=1e-5)
    line = {"user": "u1", "language": None, "followers": None, "age": 3, "verified": True, "tokens": [], "tags": []}
    done = cli(
        "predict", "--url", url, "-", stdin=json.dumps(line) + "\n" + json.dumps({**line, "user": "nobody"}) + "\n"
    )
    assert done.code == 0, done.err
    assert [set(json.loads(text)) for text in done.out.splitlines()] == [{"like", "reply"}] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"age": None}, "age"),
        ({"age": "old"}, "age"),
        ({"age": [1, 2]}, "age"),
        ({"agee": 1}, "agee"),
        ({"tokens": 5}, "tokens"),
        ({"tokens": ["a"]}, "tokens"),
        ({"user": 12}, "user"),
    ],
)
def test_rows_that_do_not_fit_get_one_clear_line(
    server: Server, cli: Callable[..., Any], change: dict[str, Any], words: str
) -> None:
    line = {"user": "u1", "language": "en", "followers": 1.0, "age": 3, "verified": True, "tokens": [], "tags": []}
    done = cli("predict", "--url", server.http_url, "-", stdin=json.dumps({**line, **change}) + "\n")
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_the_fused_layout_answers_the_same_in_one_model(
    tiny_stack: Path, tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    done = cli("export", "--trust", tiny_stack / "stack.yaml", "-o", tmp_path / "fused", "--layout", "fused")
    assert done.code == 0, done.err
    fused = tmp_path / "fused"
    assert set(read_manifest(fused).models.values()) == {"tiny_fused"}
    assert read_manifest(fused).signature == read_manifest(tiny_repository).signature
    assert (fused / "golden.parquet").read_bytes() == (tiny_repository / "golden.parquet").read_bytes()
    with serve(fused, cores=[0], http_port=0, grpc_port=0, metrics_port=0) as server:
        for url in (server.http_url, server.grpc_url):
            done = cli("verify", fused, "--url", url, "--json")
            assert done.code == 0, done.err
            assert max(json.loads(done.out)["differences"].values()) <= 1e-5


def test_exporting_twice_gives_the_same_bytes(
    tiny_stack: Path, tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    done = cli("export", "--trust", tiny_stack / "stack.yaml", "-o", tmp_path / "again")
    assert done.code == 0, done.err
    assert _digests(tmp_path / "again") == _digests(tiny_repository)


def test_nothing_exported_is_a_pickle(tiny_repository: Path) -> None:
    import pickletools

    files = [path for path in tiny_repository.rglob("*") if path.is_file() and path.stat().st_size]
    assert files
    for path in files:
        assert path.suffix not in (".pkl", ".pickle", ".joblib")
        assert not path.read_bytes().startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), path
        with pytest.raises(Exception, match=r".*"):  # noqa: B017, PT011 - whatever it is, it is no pickle
            list(pickletools.genops(path.read_bytes()))


def test_a_repository_is_not_overwritten_unasked(
    tiny_stack: Path, tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    mine = shutil.copytree(tiny_repository, tmp_path / "mine")
    (mine / "README.md").write_text("my own words\n")
    before = _digests(mine)
    done = cli("export", "--trust", tiny_stack / "stack.yaml", "-o", mine)
    assert done.code == 2
    assert "--overwrite" in done.err
    assert _digests(mine) == before
    done = cli("export", "--trust", tiny_stack / "stack.yaml", "-o", mine, "--overwrite")
    assert done.code == 0, done.err
    assert _digests(mine) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


BROKEN = {
    "cycle": (
        'trees: {forest: "trees/{target}-{bag}.ubj", reads: features}',
        'trees: {forest: "trees/{target}-{bag}.ubj", reads: [features, stage2]}',
        "trees",
    ),
    "unknown column": ("features.user_id", "features.user_idd", "user_id"),
    "unknown step": ("[features, trees, grouped, keras, torch]", "[features, trees, grouped, keras, torsh]", "torsh"),
    "missing artifact": ("net.keras", "not.keras", "not.keras"),
    "unsupported type": ("net: net.keras", "net: stack.yaml", "stack.yaml"),
    "garbage artifact": ("net: net.pt2", "net: garbage.pt2", "garbage.pt2"),
    "no length for a list": ("  tags: {max_length: 3}\n", "", "tags"),
    "unknown key": ("golden:", "golde:", "golde"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_stack_that_cannot_be_gets_one_clear_line(
    case: str, tiny_stack: Path, tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    old, new, words = BROKEN[case]
    stack = shutil.copytree(tiny_stack, tmp_path / "stack")
    (stack / "garbage.pt2").write_bytes(os.urandom(4096))
    text = (stack / "stack.yaml").read_text(encoding="utf-8")
    assert old in text
    (stack / "stack.yaml").write_text(text.replace(old, new), encoding="utf-8")
    mine = shutil.copytree(tiny_repository, tmp_path / "mine")
    before = _digests(mine)
    done = cli("export", "--trust", stack / "stack.yaml", "-o", mine, "--overwrite")
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err
    assert _digests(mine) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "stack"]


def test_a_saved_workflow_is_read_only_when_it_is_trusted(
    tiny_stack: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    done = cli("export", tiny_stack / "stack.yaml", "-o", tmp_path / "repository")
    assert done.code == 2
    assert "--trust" in done.err
    assert str(tiny_stack / "workflow") in done.err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_loses_nothing(tiny_stack: Path, tiny_repository: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(tiny_repository, tmp_path / "mine")
    before = _digests(mine)
    # no file may grow beyond what a graph needs: the kernel answers as a full disk would
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from tristage.export import export; from tristage.export.stack_file import read_stack;"
        "from tristage.errors import ExportError; from pathlib import Path;"
        "import tristage.export._export as whole;"
        "write = whole.write_models\n"
        "def full(*arguments, **named):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); write(*arguments, **named)\n"
        "whole.write_models = full\n"
        "try: export(read_stack(Path(sys.argv[1])), sys.argv[2], overwrite=True, trust=True)\n"
        "except ExportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tiny_stack / "stack.yaml"), str(mine)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "untouched" in done.stdout
    assert str(mine) in done.stdout
    assert _digests(mine) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_changed_repository_is_not_served(tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    mine = shutil.copytree(tiny_repository, tmp_path / "mine")
    graph = mine / "tiny_keras" / "1" / "graph.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    done = cli("serve", mine, "--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
    assert done.code == 2
    assert "tiny_keras/1/graph.onnx" in done.err
    assert "Traceback" not in done.err


def test_inspect_shows_columns_steps_and_versions(tiny_repository: Path, cli: Callable[..., Any]) -> None:
    done = cli("inspect", tiny_repository)
    assert done.code == 0, done.err
    for words in ("tiny_features", "followers", "list of string", "nvtabular"):
        assert words in done.out
    assert json.loads(cli("inspect", tiny_repository, "--json").out)["stack"] == "tiny"

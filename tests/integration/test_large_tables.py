"""Tables in files: served by a real Triton, in both layouts, and shared by its instances."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tristage.serving import serve


def _export(stack: Path, repository: Path, layout: str) -> None:
    """Export with every table a large one; in a process of its own, since reading artifacts imports every framework."""
    import subprocess
    import sys

    script = (
        "import sys\nfrom pathlib import Path\n"
        "from tristage.export import export, onnx_graph\n"
        "from tristage.export.stack_file import read_stack\n"
        "from tristage.export.workflow import dictionary\n"
        "dictionary.LARGE, onnx_graph.LARGE = 4, 1\n"
        "export(read_stack(Path(sys.argv[1])), sys.argv[2], layout=sys.argv[3], trust=True)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(stack), str(repository), layout], check=True, timeout=300)


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_served_from_files(layout: str, tiny_stack: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    repository = tmp_path / "repository"
    _export(tiny_stack / "stack.yaml", repository, layout)
    model = repository / ("tiny_features" if layout == "ensemble" else "tiny_fused")
    tables = {path.name for path in (model / "1").glob("table-*.bin")}
    assert len(tables) >= 6
    assert not list(tmp_path.glob(".tristage-*"))  # what waited there is gone
    with serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        for url in (server.http_url, server.grpc_url):
            done = cli("verify", repository, "--url", url, "--json")
            assert done.code == 0, done.err
            assert max(json.loads(done.out)["differences"].values()) <= 1e-5
        assert tables <= _mapped(server.pid)


def _mapped(pid: int) -> set[str]:
    """Names of the files that a server and its children have mapped into memory."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return {Path(entry.path).name for process in processes for entry in process.memory_maps()}

"""The load tester from an environment that holds nothing but its own extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from loadtest_triton import write_repository

from tristage.loadtest import read_report
from tristage.serving import serve

ROOT = Path(__file__).parents[2]
SCRIPT = """
import importlib.util, sys
for heavy in ("torch", "tensorflow", "nvtabular", "xgboost", "onnx", "onnxruntime", "pandas", "pytriton", "yaml"):
    assert importlib.util.find_spec(heavy) is None, heavy
from tristage.cli import main
main()
"""


@pytest.mark.slow
def test_the_loadtest_extra_is_enough(tmp_path: Path) -> None:
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(tmp_path / "venv/bin/python")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")], check=True, timeout=60)
    install = [uv, "pip", "install", "--quiet", "--python", python, f"{ROOT}[loadtest]"]
    subprocess.run(install, check=True, timeout=300)
    core = ["--requests", "5", "--warmup", "0", "--batch", "1,4"]
    with serve(write_repository(tmp_path / "repository"), http_port=0, grpc_port=0, metrics_port=0) as server:
        for protocol in ("http", "grpc", "grpc+shm"):
            url = server.http_url if protocol == "http" else server.grpc_url.removeprefix("grpc://")
            files = ["-o", f"{protocol}.json", "-o", f"{protocol}.html"]
            done = subprocess.run(
                [python, "-c", SCRIPT, "loadtest", "--url", url, "--protocol", protocol, *core, *files],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                cwd=tmp_path,
                env={"PATH": "/usr/bin:/bin"},
            )
            assert done.returncode == 0, done.stderr
            assert "leaked" not in done.stderr  # shared memory was taken back
            report = read_report(tmp_path / f"{protocol}.json")
            assert (report.protocol, [cell.requests for cell in report.cells]) == (protocol, [5, 5])
            assert (tmp_path / f"{protocol}.html").stat().st_size > 5000

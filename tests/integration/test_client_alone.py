"""Another process, with nothing installed but the client's own dependencies, calls the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tristage.serving import serve

ROOT = Path(__file__).parents[2]
SCRIPT = """
import importlib.util, sys
for heavy in ("torch", "tensorflow", "nvtabular", "xgboost", "onnxruntime", "pandas", "pytriton", "yaml"):
    assert importlib.util.find_spec(heavy) is None, heavy
from tristage.client import Client
row = {"user": "u1", "language": "en", "followers": 1.0, "age": 3, "verified": True, "tokens": [4], "tags": []}
for url in sys.argv[1:]:
    with Client(url) as client:
        print(*(f"{client.predict([row])[0][name]:.6f}" for name in ("like", "reply")))
"""


@pytest.mark.slow
def test_the_client_extra_is_enough(tiny_repository: Path, tmp_path: Path) -> None:
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(tmp_path / "venv/bin/python")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")], check=True, timeout=60)
    install = [uv, "pip", "install", "--quiet", "--python", python, f"{ROOT}[client]"]
    subprocess.run(install, check=True, timeout=300)
    with serve(tiny_repository, cores=[0], http_port=0, grpc_port=0, metrics_port=0) as server:
        done = subprocess.run(
            [python, "-c", SCRIPT, server.http_url, server.grpc_url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
        )
    assert done.returncode == 0, done.stderr
    over_http, over_grpc = done.stdout.splitlines()
    assert over_http == over_grpc
    assert all(0 < float(value) < 1 for value in over_http.split())

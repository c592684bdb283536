"""Drift, as a user sees it: a column is shifted, and the gateway's totals and metrics say so."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

from gateway_stack import run_gateway, some_rows, write_repository

from tristage.serving import serve


def _read(url: str, body: Any = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(response.read().decode())


def _counted(url: str, rows: int) -> dict[str, float]:
    """The index of every column, once so many rows are counted."""
    until = time.monotonic() + 30
    while (drift := json.loads(_read(f"{url}/v1/live"))["drift"])["rows"] < rows:
        assert time.monotonic() < until
        time.sleep(0.1)
    return {each["column"]: each["psi"] for each in drift["columns"]}


def test_a_shifted_column_is_seen(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "repository")
    golden = some_rows(20)[7:]  # what the reference was made of
    with (
        serve(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        run_gateway("--url", server.grpc_url, "--repository", repository) as url,
    ):
        assert json.loads(_read(f"{url}/v1/live"))["drift"] == {
            "rows": 0, "enough": 200, "known": True, "columns": []
        }  # fmt: skip
        assert "drift_psi{" not in _read(f"{url}/metrics")
        for _ in range(20):
            _read(f"{url}/v1/predict", {"rows": golden})
        same = _counted(url, 260)
        assert set(same) == {"amount", "user.age", "class", "verified", "tokens", "tags", "click", "buy"}
        assert max(same.values()) < 1e-6
        shifted = [{**row, "amount": row["amount"] + 1000} for row in golden]
        for _ in range(40):
            _read(f"{url}/v1/predict", {"rows": shifted})
        moved = _counted(url, 780)
        assert moved["amount"] > 0.25
        assert moved["click"] > 0.25  # which is made of it
        assert max(value for name, value in moved.items() if name not in ("amount", "click")) < 1e-6
        told = _read(f"{url}/metrics")
        psi = re.search(r'tristage_gateway_drift_psi{column="amount",side="input"} (\S+)', told)
        assert psi is not None
        assert float(psi[1]) > 0.25
        assert "tristage_gateway_drift_rows_total 780.0" in told

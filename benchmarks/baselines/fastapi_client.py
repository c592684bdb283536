"""Starts baseline 2 and asks it, from another core, over one kept connection."""

from __future__ import annotations

import http.client
import json
import math
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil

from benchmarks.baselines.figures import Turn, enough
from benchmarks.baselines.process import ROOT, WayFailed, environment
from benchmarks.baselines.rows import difference, draws, golden, test_rows
from tristage.manifest import read_manifest

__all__ = ["FastApi"]

READY = 600.0  # seconds until it must be ready: on one core it imports every library and opens every model


class FastApi:
    """A running service; its process is pinned to `core`."""

    def __init__(self, core: int, artifacts: Path, repository: Path) -> None:
        """Start it and wait until it is ready.

        Raises:
            WayFailed: it ended, or was not ready in time.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        argv = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.baselines.fastapi_server"]
        self._process = subprocess.Popen(
            [*argv, str(artifacts.resolve()), str(repository.resolve()), str(port)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment(),
            cwd=ROOT,
        )
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        try:
            self._await_ready()
            signature = read_manifest(repository).signature
            names = [column.name for column in signature.inputs]
            self._outputs = [column.name for column in signature.outputs]
            self._rows = [_json(row) for row in test_rows(artifacts).select(names).to_pylist()]
            rows, self._expected = golden(repository, self._outputs)
            self._golden = [_json(row) for row in rows.to_pylist()]
        except BaseException:
            self.close()
            raise

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY
        while True:
            try:
                self._connection.connect()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._log.seek(0)
                    said = self._log.read().decode(errors="replace").strip().splitlines()
                    raise WayFailed(f"the service did not start: {' | '.join(said[-3:])}") from None
                time.sleep(0.2)

    def check(self) -> dict[str, float]:
        """Answer the golden rows; raises WayFailed where they are not what the training libraries answered."""
        parts = [self._golden[at : at + 1024] for at in range(0, len(self._golden), 1024)]
        answers = [row for part in parts for row in json.loads(self._ask(_body(part)))["rows"]]
        try:
            return difference(np.array([[row[name] for name in self._outputs] for row in answers]), self._expected)
        except ValueError as error:
            raise WayFailed(str(error)) from None

    def ask_by(self, ways: Mapping[str, str]) -> None:
        """Have its steps asked in the ways that baseline 1 found fastest for a batch size."""
        self._ask(json.dumps(dict(ways)).encode(), "PUT", "/ways")

    def measure(self, batch: int, seconds: float, turn: int) -> Turn:
        """One turn of a closed loop; bodies are made before the clock starts, and answers are not read apart."""
        drawn = draws(len(self._rows), batch, turn)
        bodies = [_body([self._rows[row] for row in rows]) for rows in drawn]
        self._ask(bodies[-1])
        process = psutil.Process(self._process.pid)
        took: list[int] = []
        before, began = process.cpu_times(), time.perf_counter()
        while not enough(len(took), time.perf_counter() - began, seconds):
            start = time.perf_counter_ns()
            self._ask(bodies[len(took) % len(bodies)])
            took.append(time.perf_counter_ns() - start)
        after = process.cpu_times()
        return Turn.of(took, batch, after.user + after.system - before.user - before.system)

    def _ask(self, body: bytes, method: str = "POST", path: str = "/predict") -> bytes:
        try:
            self._connection.request(method, path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise WayFailed(f"the service does not answer: {error!r}") from error
        if response.status != 200:
            raise WayFailed(f"the service answers {response.status}: {answer[:300].decode(errors='replace')}")
        return answer

    def close(self) -> None:
        """End the service."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> FastApi:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _json(row: dict[str, Any]) -> bytes:
    """A row as JSON, which has no NaN."""
    plain = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()


def _body(rows: list[bytes]) -> bytes:
    return b'{"rows":[' + b",".join(rows) + b"]}"

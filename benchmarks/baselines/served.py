"""tristage itself: served by Triton on one core, asked over gRPC by tristage's load tester from another."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.baselines.figures import Turn
from benchmarks.baselines.process import WayFailed
from benchmarks.baselines.rows import EXPONENT, test_rows
from tristage.client import Client, verify
from tristage.errors import TristageError
from tristage.loadtest import Cell, run_loadtest
from tristage.manifest import read_manifest
from tristage.serving import serve

__all__ = ["Served"]

READY, WARMUP = 300.0, 0.5  # seconds until it must be ready, and of requests before each turn


class Served:
    """A repository, served.

    Attributes:
        server: the running Triton.
        steps: batch -> Triton model -> its milliseconds in each turn.
    """

    def __init__(self, core: int, artifacts: Path, repository: Path) -> None:
        """Start Triton on it.

        Raises:
            TristageError: Triton does not start.
        """
        manifest = read_manifest(repository)
        self._repository = repository
        self._names = {model: step for step, model in manifest.models.items()} if manifest.layout == "ensemble" else {}
        self._rows = test_rows(artifacts).select([column.name for column in manifest.signature.inputs])
        self.steps: dict[int, dict[str, list[float]]] = {}
        self.server = serve(repository, cores=[core], http_port=0, grpc_port=0, metrics_port=0, timeout=READY)

    def check(self) -> dict[str, float]:
        """Replay the golden rows.

        Raises:
            WayFailed: the answers are not what the training libraries answered.
        """
        try:
            with Client(self.server.grpc_url) as client:
                verification = verify(client, self._repository)
                verification.check()
        except TristageError as error:
            raise WayFailed(str(error)) from error
        return {"largest": verification.largest, "off": 0.0}

    def measure(self, batch: int, seconds: float, turn: int) -> Turn:
        """One turn: a closed loop of one connection.

        Raises:
            WayFailed: the server went away, or a request failed.
        """
        cell = self.load(batch, seconds, turn)
        for name, spent in self._spent(cell).items():
            self.steps.setdefault(batch, {}).setdefault(name, []).append(spent)
        if cell.server_ms is not None and cell.outside_ms is not None:
            known = self.steps.setdefault(batch, {})
            known.setdefault("the ensemble, by Triton's clock", []).append(cell.server_ms)
            known.setdefault("outside: Triton's front end, network, client", []).append(cell.outside_ms)
        assert cell.latency is not None
        assert cell.ms_per_example is not None
        cpu = None if cell.server is None else cell.server.cpu_ms_per_example
        return Turn(cell.requests, cell.latency.p50_ms, cell.latency.p99_ms, cell.ms_per_example, cpu)

    def _spent(self, cell: Cell) -> dict[str, float]:
        """Milliseconds by step, by Triton's statistics; where one model has all steps, by what Triton does for it."""
        if not self._names and cell.steps:
            one = cell.steps[0]
            moved = {"tensors to the runner": one.compute_input_ms, "tensors back": one.compute_output_ms}
            return {"waiting": one.queue_ms, **moved, "the runner": one.compute_infer_ms}
        spent = ((s, s.queue_ms + s.compute_input_ms + s.compute_infer_ms + s.compute_output_ms) for s in cell.steps)
        return {self._names.get(step.model, step.model): ms for step, ms in spent}

    def load(self, batch: int, seconds: float, turn: int) -> Cell:
        """The load tester's cell."""
        load: dict[str, Any] = {"batches": (batch,), "concurrencies": (1,), "duration": seconds, "warmup": WARMUP}
        try:
            report = run_loadtest(
                self.server.grpc_url, rows=self._rows, power_law=EXPONENT, seed=turn, source="test rows", **load
            )
        except TristageError as error:
            raise WayFailed(str(error)) from error
        cell = report.cells[0] if report.cells else None
        if cell is None or not cell.requests or cell.errors or report.ended != "completed":
            why = cell.errors[0].message if cell is not None and cell.errors else report.message
            raise WayFailed(why or "no request was answered")
        return cell

    def close(self) -> None:
        """End Triton."""
        self.server.stop()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

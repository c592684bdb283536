"""A server in memory for the load tester's tests: it answers when it is told to, and keeps what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tristage.columns import SIGNATURE_PARAMETER, Column, Signature
from tristage.errors import ServerUnavailable
from tristage.loadtest import Report, run_loadtest
from tristage.loadtest._wire import TransportWire

URL = "memory://here"
SIGNATURE = Signature("whole", 64, (Column("x", "float32"),), (Column("y", "float32"),))
ROWS = [{"x": float(number)} for number in range(10)]


class Server:
    """Answers in memory: `answer` is given each request's number (0-based) and may sleep or raise."""

    def __init__(self, answer: Callable[[int], None] = lambda number: None) -> None:
        self.answer = answer
        self.lock = threading.Lock()
        self.seen: list[Mapping[str, np.ndarray]] = []
        self.gone = False
        self.open = 0
        self.most_open = 0

    def connect(self) -> Connection:
        return Connection(self)


class Connection:
    url = URL

    def __init__(self, server: Server) -> None:
        self.server = server
        with server.lock:
            server.open += 1
            server.most_open = max(server.most_open, server.open)

    def ready(self, model: str, timeout: float) -> bool:
        self._there()
        return True

    def models(self, timeout: float) -> list[str]:
        self._there()
        return ["whole", "whole_first"]

    def config(self, model: str, timeout: float) -> dict[str, Any]:
        if model != "whole":
            return {"name": model}
        parameters = {SIGNATURE_PARAMETER: {"string_value": SIGNATURE.to_json()}}
        return {
            "name": model,
            "parameters": parameters,
            "ensemble_scheduling": {
                "step": [{"model_name": "whole_first", "input_map": {"x": "x"}, "output_map": {"y": "y"}}]
            },
        }

    def statistics(self, model: str, timeout: float) -> dict[str, Any]:
        self._there()
        count = len(self.server.seen)
        spent = {phase: {"count": count, "ns": count} for phase in ("success", "queue", "compute_infer")}
        return {
            "model_stats": [
                {"name": name, "version": "1", "inference_stats": spent} for name in ("whole", "whole_first")
            ]
        }

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> dict[str, np.ndarray]:
        with self.server.lock:
            number = len(self.server.seen)
            self.server.seen.append(inputs)
        self._there()
        self.server.answer(number)
        return {"y": inputs["x"]}

    def close(self) -> None:
        with self.server.lock:
            self.server.open -= 1

    def _there(self) -> None:
        if self.server.gone:
            raise ServerUnavailable("it went away", url=URL)


def wire(server: Server) -> TransportWire:
    """What carries a loop's requests to the server."""
    return TransportWire(server.connect, "whole", ["y"])


def still_there(server: Server) -> Callable[[], bool]:
    """What a loop asks after a lost request."""
    return lambda: not server.gone


def run(server: Server, **changes: Any) -> Report:
    settings: dict[str, Any] = {"batches": (1, 4), "requests": 10, "warmup": 0, "timeout": 1.0}
    return run_loadtest(URL, rows=ROWS, connect=server.connect, **{**settings, **changes})

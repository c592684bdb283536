"""A way that runs in a process of its own, pinned before it imports anything: asked in turns by `process.Worker`.

`taskset -c CORE python -m benchmarks.baselines.worker KIND ARTIFACTS REPOSITORY... FD`: reads a command a line from the
socket FD, such as `{"do": "measure", "batch": 1, "seconds": 3, "turn": 0}`, and answers each with a line.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from benchmarks.baselines.figures import Turn, enough
from benchmarks.baselines.rows import difference, draws

__all__ = ["Way"]


class Way(Protocol):
    """What is measured."""

    rows: int
    """How many rows there are to draw from."""

    def check(self) -> dict[str, float]:
        """Answer the golden rows; raises ValueError where the answers are not what the training libraries gave."""

    def tune(self, batch: int) -> Mapping[str, str]:
        """Make ready for a batch size; says which step is asked in which way, where there are several."""

    def request(self, rows: Any) -> Any:
        """Rows of these numbers, as the way takes them."""

    def call(self, request: Any) -> Any:
        """Answer a request: this is timed."""

    def steps(self, request: Any) -> Mapping[str, float]:
        """Seconds by step for a request."""


def measure(way: Way, batch: int, seconds: float, turn: int) -> dict[str, Any]:
    """One turn: different rows each call, made ready before the clock starts; an untimed call comes first."""
    requests = [way.request(rows) for rows in draws(way.rows, batch, turn)]
    way.call(requests[-1])
    took: list[int] = []
    cpu, began = time.process_time(), time.perf_counter()
    while not enough(len(took), time.perf_counter() - began, seconds):
        request = requests[len(took) % len(requests)]
        start = time.perf_counter_ns()
        way.call(request)
        took.append(time.perf_counter_ns() - start)
    return vars(Turn.of(took, batch, time.process_time() - cpu))


def where(way: Way, batch: int, seconds: float, turn: int) -> dict[str, float]:
    """Median milliseconds by step."""
    found: dict[str, list[float]] = {}
    until, drawn = time.perf_counter() + seconds, draws(way.rows, batch, turn)
    for rows in drawn:
        if found and time.perf_counter() > until:
            break
        for step, spent in way.steps(way.request(rows)).items():
            found.setdefault(step, []).append(spent * 1e3)
    return {step: median(times) for step, times in found.items()}


class InProcess:
    """Baseline 1."""

    def __init__(self, artifacts: Path, repository: Path) -> None:
        from benchmarks.baselines.libraries import Libraries
        from benchmarks.baselines.rows import golden, test_rows
        from tristage.export.stack_file import read_stack

        self._libraries = Libraries(read_stack(artifacts / "stack.yaml"))
        self._frame = self._libraries.complete(test_rows(artifacts).to_pandas())
        self._golden = golden(repository, self._libraries.outputs)
        self.rows = len(self._frame)

    def check(self) -> dict[str, float]:
        rows, expected = self._golden
        frame = self._libraries.complete(rows.to_pandas())
        return difference(in_parts(self._libraries.answer, frame), expected)

    def tune(self, batch: int) -> Mapping[str, str]:
        return self._libraries.tune(self.request(draws(self.rows, batch, 0)[0]))

    def request(self, rows: Any) -> Any:
        return self._frame.iloc[rows].reset_index(drop=True)

    def call(self, request: Any) -> Any:
        return self._libraries.answer(request)

    def steps(self, request: Any) -> Mapping[str, float]:
        self._libraries.answer(request)
        return dict(self._libraries.spent)

    def features(self, path: str) -> None:
        """Write the numbers that NVTabular makes of the golden rows, for comparison with Merlin Systems."""
        made = self._libraries.transform(self._libraries.complete(self._golden[0].to_pandas()))
        np.savez(path, **made)


def in_parts(answer: Callable[[Any], Any], frame: Any, rows: int = 1024) -> Any:
    """Answers of a data frame, some rows at a time."""
    parts = [frame.iloc[at : at + rows].reset_index(drop=True) for at in range(0, len(frame), rows)]
    return np.concatenate([answer(part) for part in parts])


def _floor(artifacts: Path, fused: Path, ensemble: Path) -> Way:
    from benchmarks.baselines.floor import Floor

    return Floor(artifacts, fused, ensemble)


KINDS: dict[str, Callable[..., Any]] = {"libraries": InProcess, "floor": _floor}


def main() -> None:
    """Open the way, then do as told until the socket closes."""
    kind, *paths, number = sys.argv[1:]
    with socket.socket(fileno=int(number)) as connection, connection.makefile("rw") as lines:

        def tell(answer: Any) -> None:
            lines.write(json.dumps(answer) + "\n")
            lines.flush()

        try:
            way = KINDS[kind](*map(Path, paths))
        except Exception as error:  # whatever a library raises is the parent's to report
            tell({"error": f"{type(error).__name__}: {error}"})
            raise
        commands = {
            "check": way.check,
            "tune": way.tune,
            "measure": lambda **given: measure(way, **given),
            "where": lambda **given: where(way, **given),
            "features": getattr(way, "features", None),
        }
        tell({"answer": "ready"})
        for line in lines:
            given = json.loads(line)
            try:
                tell({"answer": commands[given.pop("do")](**given)})
            except Exception as error:  # as above; the next command may work
                tell({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()

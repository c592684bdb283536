"""What was measured, and what it says: medians of turns, ratios within turns, bars met or missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

__all__ = ["BATCHES", "WAYS", "Bar", "Figures", "Turn", "bars", "enough", "ratio"]

LEAST, SLOW = 2, 3.0  # calls of a turn, but where one takes so many times the turn's seconds

BATCHES = (1, 64, 1024)
WAYS: Mapping[str, str] = {
    "libraries": "1. training libraries, in process",
    "fastapi": "2. training libraries behind FastAPI",
    "fused": "tristage through Triton, fused",
    "ensemble": "tristage through Triton, a model per step",
    "floor": "4. the floor: tristage's graph, no server",
    "merlin": "3. preprocessing by Merlin Systems",
    "features": "tristage's preprocessing through Triton",
}


@dataclass(frozen=True)
class Turn:
    """One way at one batch size, asked again and again for some seconds.

    Attributes:
        calls: how many calls or requests.
        p50_ms, p99_ms: nearest-rank percentiles of a call; of fewer than 100 calls p99 is the slowest.
        ms_per_example: wall time divided by the examples answered.
        cpu_ms_per_example: CPU time of the way's own processes; None where it is not known.
    """

    calls: int
    p50_ms: float
    p99_ms: float
    ms_per_example: float
    cpu_ms_per_example: float | None

    @classmethod
    def of(cls, took_ns: Sequence[int], batch: int, cpu_s: float | None) -> Turn:
        """Sum up calls that came one after the other."""
        p50, p99 = np.quantile(np.asarray(took_ns), (0.5, 0.99), method="inverted_cdf") / 1e6
        examples = len(took_ns) * batch
        cpu = None if cpu_s is None else cpu_s * 1e3 / examples
        return cls(len(took_ns), float(p50), float(p99), sum(took_ns) / 1e6 / examples, cpu)


def enough(calls: int, spent: float, seconds: float) -> bool:
    """Whether a turn of so many seconds may end after so many calls, on which so many were spent."""
    return calls >= 1 and spent >= (seconds if calls >= LEAST else SLOW * seconds)


@dataclass
class Figures:
    """All that a run measured.

    Attributes:
        turns: way -> batch -> its turns, in the order they were measured; a way that failed has none, or fewer.
        failed: way -> why it was not measured, or not to the end.
        steps: where the time goes: title -> batch -> step -> ms a call, medians over the turns.
        notes: what each way is and how it was set up, by way.
    """

    turns: dict[str, dict[int, list[Turn]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    steps: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, way: str, batch: int, turn: Turn) -> None:
        """Keep a turn."""
        self.turns.setdefault(way, {}).setdefault(batch, []).append(turn)

    def of(self, way: str, batch: int) -> Sequence[Turn]:
        """The turns of a way at a batch size."""
        return self.turns.get(way, {}).get(batch, ())

    def is_slow(self, way: str, batch: int, seconds: float) -> bool:
        """Whether a single call of a way outlasts a turn of so many seconds several times."""
        return any(turn.p50_ms > SLOW * seconds * 1e3 for turn in self.of(way, batch))

    def median(self, way: str, batch: int, what: str) -> float | None:
        """The median over turns of one of a turn's figures; None where there is none."""
        found = [value for turn in self.of(way, batch) if (value := getattr(turn, what)) is not None]
        return median(found) if found else None

    def to_json(self) -> Any:
        """As plain values."""
        return asdict(self)


def ratio(figures: Figures, over: str, under: str, batch: int, what: str) -> float | None:
    """How many times larger a figure of `over` is than that of `under`: the median of the turns' ratios.

    Two ways' turns of one number ran within a minute, so that what else the machine does moves both.
    """
    pairs = zip(figures.of(over, batch), figures.of(under, batch), strict=False)
    found = [getattr(one, what) / getattr(other, what) for one, other in pairs]
    return median(found) if found else None


@dataclass(frozen=True)
class Bar:
    """A figure that was aimed at.

    Attributes:
        batch: the batch size it is about.
        what: in words, with its limit.
        limit: the figure.
        measured: what came out; None where it was not measured.
        least: whether `limit` is the least that will do; else the most.
    """

    batch: int
    what: str
    limit: float
    measured: float | None
    least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it was met; None where it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.least else self.measured <= self.limit


def bars(size: str, figures: Figures) -> list[Bar]:
    """The bars of a size; those of the other sizes are none of its."""
    p50 = figures.median("fused", 1, "p50_ms")
    if size == "small":
        return [Bar(1, "batch 1, fused: p50 at most 1.5 ms", 1.5, p50)]
    if size != "paper":
        return []
    over = ratio(figures, "fused", "floor", 1024, "ms_per_example")
    apart = [
        one.p50_ms - other.p50_ms for one, other in zip(figures.of("fused", 1), figures.of("floor", 1), strict=False)
    ]
    return [
        Bar(1024, "batch 1024: at most 0.4 ms/example", 0.4, figures.median("fused", 1024, "ms_per_example")),
        Bar(
            1024,
            "batch 1024: at least 4 times faster than baseline 1",
            4.0,
            ratio(figures, "libraries", "fused", 1024, "ms_per_example"),
            least=True,
        ),
        Bar(1, "batch 1: p50 at most 3 ms", 3.0, p50),
        Bar(
            1,
            "batch 1: at least 50 times faster than baseline 1 (p50)",
            50.0,
            ratio(figures, "libraries", "fused", 1, "p50_ms"),
            least=True,
        ),
        Bar(1, "batch 1: p99 at most 3 times p50", 3.0, _tail(figures.of("fused", 1))),
        Bar(
            1024,
            "batch 1024: Triton, runner and client at most 15% over the floor (ms/example)",
            15.0,
            None if over is None else (over - 1) * 100,
        ),
        Bar(1, "batch 1: Triton, runner and client at most 1 ms over the floor (p50)", 1.0, _middle(apart)),
    ]


def _tail(turns: Sequence[Turn]) -> float | None:
    return _middle([turn.p99_ms / turn.p50_ms for turn in turns])


def _middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None

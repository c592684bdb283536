"""What a run is to measure: its settings, the points it visits, and when an open loop's requests are due."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tristage.errors import InputError
from tristage.loadtest._report import Arrivals

__all__ = ["CONNECTIONS", "Point", "Settings", "Tick", "due_times", "highest_rate", "points"]

CONNECTIONS = 64  # of an open loop, where nothing else is said
_BATCHES = (1, 64, 1024)
_FOREVER_S = 1e9
_FASTEST = 1e5  # requests a second, more than one process can send
_DOUBLINGS = 20
_HALVINGS = 6


@dataclass(frozen=True)
class Settings:
    """What `run_loadtest` was asked for; see there."""

    batches: Sequence[int] | None
    concurrencies: Sequence[int] | None
    rates: Sequence[float]
    arrivals: Arrivals
    max_p99_ms: float | None
    duration: float | None
    band: float
    longest: float
    requests: int | None
    warmup: float
    timeout: float
    power_law: float | None
    seed: int

    def check(self) -> None:
        """Raise InputError where a setting cannot be meant."""
        given: tuple[tuple[str, Sequence[float] | None], ...] = (
            *(("batch", self.batches), ("concurrency", self.concurrencies), ("rate", self.rates or None)),
        )
        for name, numbers in given:
            least = 1 if name != "rate" else 1e-3
            if numbers is not None and (not numbers or not all(least <= number < math.inf for number in numbers)):
                raise InputError(f"{name} is {list(numbers)}; give at least one number, each {least:g} or more")
        if self.requests is not None and self.requests < 1:
            raise InputError(f"requests is {self.requests}; give 1 or more")
        positive = {"duration": self.duration, "longest": self.longest, "timeout": self.timeout}
        for name, value in {
            **positive,
            "band": self.band,
            "max_p99": self.max_p99_ms,
            "power_law": self.power_law,
        }.items():
            if value is not None and not 0 < value < math.inf:
                unit = {"band": "", "power_law": "", "max_p99": " ms"}.get(name, " s")
                raise InputError(f"{name} is {value:g}{unit}; give a number above 0")
        if not 0 <= self.warmup < math.inf:
            raise InputError(f"warmup is {self.warmup:g} s; give a number of seconds, or 0 for none")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; give a whole number, 0 or above")
        if any(rate > _FASTEST for rate in self.rates):
            raise InputError(f"rate is {max(self.rates):g} requests a second; give at most {_FASTEST:,.0f}")
        if self.open and len(self.concurrencies or ()) > 1:
            raise InputError(
                f"concurrency is {list(self.concurrencies or ())}; in an open loop it is the most connections "
                "there may be, so give one number, and vary the rate"
            )
        if self.rates and self.max_p99_ms is not None:
            raise InputError("a rate and max_p99 were given; max_p99 looks for the rate itself, so give one of them")
        if self.requests is not None and self.max_p99_ms is not None:
            raise InputError("requests and max_p99 were given; a rate that holds is found by time, so drop requests")

    @property
    def open(self) -> bool:
        """Whether requests have times at which they are due."""
        return bool(self.rates) or self.max_p99_ms is not None

    @property
    def settles(self) -> bool:
        """Whether a cell runs until its percentiles settle."""
        return self.duration is None and self.requests is None

    @property
    def seconds(self) -> float:
        """How long a cell lasts at most."""
        if self.requests is not None:
            return _FOREVER_S
        return self.longest if self.duration is None else self.duration

    def batches_for(self, stack: str, max_batch: int) -> list[int]:
        """The batch sizes to measure.

        Raises:
            InputError: one is larger than the stack takes.
        """
        if self.batches is None:
            return [batch for batch in _BATCHES if batch <= max_batch]
        for batch in self.batches:
            if batch > max_batch:
                raise InputError(
                    f"a batch of {batch} exceeds the {max_batch} rows that {stack} takes in one request; measure "
                    f"batches up to {max_batch}"
                )
        return list(self.batches)


@dataclass(frozen=True)
class Point:
    """Where one cell lies: rows a request, connections, and in an open loop requests a second."""

    batch: int
    concurrency: int
    rate: float | None = None


@dataclass(frozen=True)
class Tick:
    """How far a run is: cell `cell` (0-based) of `cells` (None while looking for a rate), and its figures so far.

    `elapsed_s` is 0 while the cell warms up.
    """

    cell: int
    cells: int | None
    batch: int
    concurrency: int
    rate: float | None
    requests: int
    elapsed_s: float


def points(settings: Settings, batches: Sequence[int]) -> list[Point]:
    """Every batch size at every concurrency; in an open loop, every batch size at every rate."""
    if settings.rates:
        connections = (settings.concurrencies or (CONNECTIONS,))[0]
        return [Point(batch, connections, rate) for rate in settings.rates for batch in batches]
    return [Point(batch, concurrency) for concurrency in settings.concurrencies or (1,) for batch in batches]


def due_times(
    rate: float, arrivals: Arrivals, *, seconds: float, count: int | None = None, seed: int = 0
) -> NDArray[np.int64]:
    """When requests are due, in nanoseconds from the start, ascending.

    Args:
        rate: requests a second, on average.
        arrivals: "poisson": the times between them are exponential, as those of many users who do not know of each
            other; "constant": all the same.
        seconds: nothing is due later.
        count: requests at most; None: as many as fit.
        seed: of the draw.
    """
    expected = min(rate * seconds, math.inf if count is None else count)
    size = math.ceil(expected + 6 * math.sqrt(expected) + 10)
    if arrivals == "poisson":
        times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, size))
    else:
        times = np.arange(size) / rate
    due: NDArray[np.int64] = (times[times < seconds][:count] * 1e9).astype(np.int64)
    return due


def highest_rate(
    holds: Callable[[float], bool], start: float, closeness: float = 0.05
) -> tuple[float | None, float | None]:
    """The highest rate that holds: doubled until one does not, then halved in between.

    Args:
        holds: measures a rate.
        start: where to begin, above 0.
        closeness: ends when the lowest rate that missed is at most this part above the highest that held.

    Returns:
        the highest rate that held, None where none did; the lowest that missed, None where none did.
    """
    held: float | None = None
    missed: float | None = None
    rate = start
    for _ in range(_DOUBLINGS):
        if holds(rate):
            held = rate
            if missed is not None:
                break
            rate *= 2
        else:
            missed = rate
            if held is not None or rate <= start / 2**_HALVINGS:
                break
            rate /= 2
    while held is not None and missed is not None and missed > held * (1 + closeness):
        rate = math.sqrt(held * missed)
        if holds(rate):
            held = rate
        else:
            missed = rate
    return held, missed

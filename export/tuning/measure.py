"""How long engines take for the same rows on one thread."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tristage.serving.forest import OpenForest

__all__ = ["measure"]

_SECONDS = 0.25  # of turns for each engine at one batch size
_TURNS = 5  # at least
_SAMPLES = 1024  # rows in a turn, in batches of other rows each, so that no engine learns its rows by heart


def measure(
    engines: Mapping[str, OpenForest], rows: NDArray[np.float32], groups: NDArray[np.int64] | None, batch: int
) -> dict[str, float]:
    """The least milliseconds that a call of so many rows takes each engine.

    Engines take turns, so that what else the machine does hits all alike, and it is this process's CPU time that
    counts: an engine that starts more threads pays for them.

    Args:
        engines: by name.
        rows: [any, features] to draw batches from.
        groups: [any], of the same rows; None without groups.
        batch: rows of a call.
    """
    random = np.random.default_rng(0)
    picks = [random.integers(len(rows), size=batch) for _ in range(max(1, min(64, _SAMPLES // batch)))]
    samples = [(rows[pick], None if groups is None else groups[pick]) for pick in picks]
    least = dict.fromkeys(engines, float("inf"))
    until = time.perf_counter() + _SECONDS * len(engines)
    turns = -1  # the first turn warms up
    while turns < _TURNS or time.perf_counter() < until:
        for name, engine in engines.items():
            begun = time.process_time()
            for sample, group in samples:
                engine.predict(sample, group)
            took = (time.process_time() - begun) / len(samples) * 1e3
            if turns >= 0:
                least[name] = min(least[name], took)
        turns += 1
    return least

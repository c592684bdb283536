"""From times to who answers how many rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from tristage.tuning import Chosen

__all__ = ["WORTH", "choose"]

WORTH = 0.95  # of the default's time: what an engine must do with to take its place


def choose(milliseconds: Mapping[int, Mapping[str, float]], default: str) -> tuple[Chosen, ...]:
    """Who answers how many rows.

    The fastest engine at a measured batch size answers the sizes nearer to it than to the next (by their ratio); the
    default stays where no other does with 95% of its time.

    Args:
        milliseconds: batch size -> engine -> time of a call.
        default: an engine that may have no times, and is then not chosen.
    """
    batches = sorted(milliseconds)
    picked: list[str] = []
    for batch in batches:
        times = milliseconds[batch]
        fastest = min(times, key=lambda name: times[name])
        keep = default in times and times[fastest] > WORTH * times[default]
        picked.append(default if keep else fastest)
    ends = [math.isqrt(low * high) for low, high in itertools.pairwise(batches)]
    chosen = [
        Chosen(end, name) for end, name, following in zip(ends, picked, picked[1:], strict=False) if name != following
    ]
    return (*chosen, Chosen(None, picked[-1]))

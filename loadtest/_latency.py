"""How long requests took: percentiles, how far they can be trusted, and a histogram that small reports can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BAND_OF", "Histogram", "Latency", "bands", "settled"]

BAND_OF = {"p50": 0.5, "p90": 0.9, "p99": 0.99}  # the percentiles that have to settle
_BLOCKS = 10
_STUDENT = 2.262  # 97.5% of Student's t with _BLOCKS - 1 degrees of freedom
_RATIO = 1.05


@dataclass(frozen=True)
class Latency:
    """How long requests took, seen by the client: ms per request, of answered requests only.

    A percentile is the nearest-rank one: the smallest measured time that at least that share of the requests did not
    exceed. So each figure is a time that some request really took; with fewer than 100 requests p99 is the maximum.
    """

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, nanoseconds: NDArray[np.int64]) -> Latency | None:
        """Summarise times of shape [requests], int64 nanoseconds; None where there are none."""
        if not len(nanoseconds):
            return None
        ranks = np.quantile(nanoseconds, (0.5, 0.9, 0.95, 0.99, 0.999, 1.0), method="inverted_cdf") / 1e6
        return cls(float(nanoseconds.mean() / 1e6), *map(float, ranks))


@dataclass(frozen=True)
class Histogram:
    """Requests by how long they took, in buckets that grow by the same ratio, so that each is as exact as the next.

    Attributes:
        first_ms: where the first bucket begins.
        ratio: each bucket ends at so many times where it begins, and there the next one begins.
        counts: requests in each bucket; the first and the last are not empty.
    """

    first_ms: float
    ratio: float
    counts: tuple[int, ...]

    @classmethod
    def of(cls, nanoseconds: NDArray[np.int64]) -> Histogram | None:
        """Count times of shape [requests], int64 nanoseconds; None where there are none."""
        if not len(nanoseconds):
            return None
        buckets = np.floor(np.log(np.maximum(nanoseconds, 1) / 1e6) / math.log(_RATIO)).astype(np.int64)
        first = int(buckets.min())
        return cls(_RATIO**first, _RATIO, tuple(np.bincount(buckets - first).tolist()))

    def edges(self) -> list[float]:
        """Where buckets begin, in ms, and behind them where the last one ends."""
        return [self.first_ms * self.ratio**number for number in range(len(self.counts) + 1)]


def bands(took_ns: NDArray[np.int64]) -> dict[str, float]:
    """How far p50, p90 and p99 can be trusted: half the width of a 95% interval, as a part of the percentile.

    The requests are cut into ten blocks in the order of their answers, and the percentile's mean over the blocks is
    given its interval by Student's t. Blocks, and not single requests, because neighbours are alike: a server that is
    slow for a second, or grows slower, widens the band as it should.

    Args:
        took_ns: times in the order of the answers, int64 [requests].

    Returns:
        percentile -> band; without those for which a block would hold too few requests (1,000 in all for p99).
    """
    found = {}
    for name, share in BAND_OF.items():
        if len(took_ns) * (1 - share) < _BLOCKS or len(took_ns) < 5 * _BLOCKS:
            continue
        blocks = np.array([np.quantile(block, share) for block in np.array_split(took_ns, _BLOCKS)])
        found[name] = float(_STUDENT * blocks.std(ddof=1) / math.sqrt(_BLOCKS) / blocks.mean())
    return found


def settled(found: Mapping[str, float], band: float) -> bool:
    """Whether every percentile that has to settle is known, and lies within `band`."""
    return found.keys() == BAND_OF.keys() and max(found.values()) <= band

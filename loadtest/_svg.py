"""Charts as SVG text: the few marks that the report draws, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from tristage.loadtest._latency import Histogram, Latency
from tristage.loadtest._words import figure

__all__ = ["Curve", "histogram", "latency_against_throughput"]

SERIES = 6  # colours that the style sheet has; then they repeat


@dataclass(frozen=True)
class Curve:
    """One line: a batch size along concurrencies or rates.

    Attributes:
        name: what the legend says.
        points: examples/s, p50 in ms, p99 in ms, and what the point is.
    """

    name: str
    points: Sequence[tuple[float, float, float, str]]


@dataclass(frozen=True)
class _Log:
    """A logarithmic axis from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, margin: float = 1.15) -> _Log:
        low, high = min(values) / margin, max(values) * margin
        if high / low < 3:  # a point or two need room around them
            middle = math.sqrt(low * high)
            low, high = middle / math.sqrt(3), middle * math.sqrt(3)
        return cls(low, high, start, end)

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values on the axis, as many as fit."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        found: list[float] = []
        for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            found = [value for value in values if self.low <= value <= self.high]
            if len(found) <= most:
                return found
        return found[:: math.ceil(len(found) / most)]


def latency_against_throughput(curves: Sequence[Curve]) -> str:
    """Latency (p50 and p99, ms) over throughput (examples/s), both logarithmic, a colour for each curve."""
    width, height, left, right, top, bottom = 860, 410, 62, 16, 14, 60
    throughputs = [point[0] for curve in curves for point in curve.points]
    latencies = [value for curve in curves for point in curve.points for value in point[1:3]]
    x = _Log.over(throughputs, left, width - right, 1.3)
    y = _Log.over(latencies, height - bottom, top, 1.3)
    parts = [_title("Latency against throughput", "p50 and p99 of each measurement; the table has the figures")]
    parts += _axis_x(x, x.ticks(8), height - bottom, top, height - 8, "examples/s")
    for tick in y.ticks(8):
        at = y.at(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    middle = (top + height - bottom) / 2
    parts.append(f'<text class="axis" transform="translate(15 {middle}) rotate(-90)" text-anchor="middle">ms</text>')
    for number, curve in enumerate(curves):
        colour = f"s{number % SERIES}"
        for name, dash in (("p99", " dashed"), ("p50", "")):
            times = [p99 if dash else p50 for _, p50, p99, _ in curve.points]
            line = " ".join(
                f"{x.at(point[0]):.1f},{y.at(ms):.1f}" for point, ms in zip(curve.points, times, strict=True)
            )
            if len(times) > 1:
                parts.append(f'<polyline class="{colour}{dash}" points="{line}"/>')
            for point, ms in zip(curve.points, times, strict=True):
                kind = f"hollow {colour}" if dash else f"dot {colour}"
                words = f"{curve.name}, {point[3]}: {name} {figure(ms)} ms"
                parts.append(
                    f'<circle class="{kind}" cx="{x.at(point[0]):.1f}" cy="{y.at(ms):.1f}" r="5">'
                    f"<title>{escape(words)} at {figure(point[0])} examples/s</title></circle>"
                )
    return _svg(width, height, parts)


def histogram(counts: Histogram, latency: Latency, name: str, x_range: tuple[float, float]) -> str:
    """How many requests took how long: a bar a bucket over a logarithmic axis, p50 and p99 marked.

    Args:
        counts: the buckets.
        latency: of the same requests.
        name: which requests.
        x_range: the axis's ends in ms, the same for charts that stand side by side.
    """
    width, height, left, right, top, bottom = 340, 190, 12, 12, 26, 40
    x = _Log(*x_range, left, width - right)
    tallest, floor = max(counts.counts), height - bottom
    parts = [_title(f"Latency histogram, {name}", f"{sum(counts.counts):,} requests")]
    parts += _axis_x(x, x.ticks(5), floor, top, height - 5, "ms")
    edges = counts.edges()
    for low, high, count in zip(edges[:-1], edges[1:], counts.counts, strict=True):
        if count:
            tall = max(count / tallest * (floor - top), 1.0)  # a single request is still seen
            begin, end = x.at(low), x.at(high)
            parts.append(
                f'<rect class="bar" x="{begin:.1f}" y="{floor - tall:.1f}" width="{max(end - begin - 0.5, 0.8):.1f}" '
                f'height="{tall:.1f}"><title>{count:,} requests took {figure(low)} to {figure(high)} ms</title></rect>'
            )
    for mark, value, anchor in (("p50", latency.p50_ms, "end"), ("p99", latency.p99_ms, "start")):
        at = x.at(value)
        anchor = "start" if at < 90 else "end" if at > width - 90 else anchor
        nudge = 4 if anchor == "start" else -4
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 10}" y2="{floor}"/>')
        row = 12 if mark == "p50" else 24
        parts.append(
            f'<text class="marked" x="{at + nudge:.1f}" y="{row}" text-anchor="{anchor}">{mark} {figure(value)}</text>'
        )
    return _svg(width, height, parts)


def _axis_x(x: _Log, ticks: Sequence[float], floor: float, top: float, below: float, unit: str) -> Iterator[str]:
    for tick in ticks:
        at = x.at(tick)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{floor}"/>'
        yield f'<text class="tick" x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{_tick(tick)}</text>'
    yield f'<line class="base" x1="{x.start}" x2="{x.end}" y1="{floor}" y2="{floor}"/>'
    yield f'<text class="axis" x="{(x.start + x.end) / 2}" y="{below}" text-anchor="middle">{unit}</text>'


def _tick(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _title(title: str, words: str) -> str:
    return f"<title>{escape(title)}</title><desc>{escape(words)}</desc>"


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'

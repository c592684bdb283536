"""Two reports side by side: seconds for so many examples step by step, speed-up, and what they cost.

The shape is that of the table by which the winners of the RecSys Challenge 2021 compared a CPU with a GPU: a line a
step, seconds for all examples, how many times faster; and the price of the hours that took.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from tristage.errors import InputError
from tristage.loadtest._report import Cell, Report
from tristage.loadtest._words import figure, where
from tristage.manifest import model_of

__all__ = ["Comparison", "Line", "Pair", "comparison", "comparison_json", "comparison_markdown"]

SCHEMA = "tristage.compare/1"


@dataclass(frozen=True)
class Line:
    """One figure of both reports; None where a report has none."""

    name: str
    a: float | None
    b: float | None

    @property
    def times(self) -> float | None:
        """How many times smaller B's is."""
        return self.a / self.b if self.a is not None and self.b else None


@dataclass(frozen=True)
class Pair:
    """The measurements of both reports at the same batch size and concurrency, or rate.

    Attributes:
        at: which.
        steps: seconds of computing for all examples, by step; a step of one report only is None in the other.
        rest: seconds of everything else: waiting in Triton, hops, network, client; None where steps run side by side,
            or several requests do, so that the steps together take longer than the whole.
        all: wall seconds for all examples.
        figures: ms/example, percentiles in ms, server CPU ms/example, peak memory in MB.
        cost: what those seconds cost; None without prices.
    """

    at: str
    steps: tuple[Line, ...]
    rest: Line
    all: Line
    figures: tuple[Line, ...]
    cost: Line | None


@dataclass(frozen=True)
class Comparison:
    """What two reports say side by side.

    Attributes:
        names: of A and of B.
        examples: how many examples seconds and costs are for.
        prices: of an hour of A's and of B's machine; None where not given.
        pairs: what both measured.
        notes: in what else the two differ, and what only one of them measured.
    """

    names: tuple[str, str]
    examples: int
    prices: tuple[float, float] | None
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]


def comparison(
    a: Report,
    b: Report,
    *,
    names: tuple[str, str] = ("A", "B"),
    prices: Sequence[float] = (),
    examples: int = 1_000_000,
) -> Comparison:
    """Set two reports side by side.

    Args:
        a: what is compared with.
        b: what is compared.
        names: what to call them.
        prices: of an hour of both machines, or of A's and of B's; empty: no costs.
        examples: how many examples to give seconds and costs for.

    Raises:
        InputError: they measured nothing in common, or there are more prices than machines.
    """
    if len(prices) > 2 or any(not 0 <= price < float("inf") for price in prices):
        raise InputError(f"--price takes the price of an hour, or two of them, not {list(prices)}; such as 0.36,3.675")
    hourly = (prices[0], prices[-1]) if prices else None
    left, right = _measured(a), _measured(b)
    common = [key for key in left if key in right]
    if not common:
        have = "; ".join(f"{n}: {', '.join(where(c) for c in r.cells)}" for n, r in zip(names, (a, b), strict=True))
        raise InputError(
            f"the reports measured nothing in common ({have}); give loadtest the same --batch and --concurrency"
        )
    pairs = tuple(_pair((a, left[key]), (b, right[key]), hourly, examples) for key in common)
    notes = list(_notes(a, b, left, right))
    if any(rest is None and pair.steps for pair in pairs for rest in (pair.rest.a, pair.rest.b)):
        notes.append("without a rest: steps, or requests, ran side by side, and together took longer than the whole")
    return Comparison(names, examples, hourly, pairs, tuple(notes))


_Key = tuple[int, int, float | None]


def _measured(report: Report) -> dict[_Key, Cell]:
    cells = [cell for cell in report.cells if cell.ms_per_example is not None]
    return {(cell.batch, cell.concurrency, cell.rate): cell for cell in cells}


def _pair(a: tuple[Report, Cell], b: tuple[Report, Cell], hourly: tuple[float, float] | None, examples: int) -> Pair:
    sides = (a, b)
    steps = [_step_seconds(report, cell, examples) for report, cell in sides]
    names = dict.fromkeys([*steps[0], *steps[1]])
    wall = [(cell.ms_per_example or 0.0) * examples / 1e3 for _, cell in sides]
    rest = [
        whole - sum(its.values()) if its and whole > sum(its.values()) else None
        for whole, its in zip(wall, steps, strict=True)
    ]
    cells = (a[1], b[1])
    latency, server = [cell.latency for cell in cells], [cell.server for cell in cells]
    figures = [Line("ms/example", cells[0].ms_per_example, cells[1].ms_per_example)]
    for name, field in (("p50 ms", "p50_ms"), ("p99 ms", "p99_ms")):
        figures.append(Line(name, *(None if its is None else getattr(its, field) for its in latency)))
    for name, field in (("server CPU ms/example", "cpu_ms_per_example"), ("server peak MB", "peak_mb")):
        figures.append(Line(name, *(None if its is None else getattr(its, field) for its in server)))
    costs = None if hourly is None else [seconds / 3600 * price for seconds, price in zip(wall, hourly, strict=True)]
    return Pair(
        at=where(a[1]),
        steps=tuple(Line(name, steps[0].get(name), steps[1].get(name)) for name in names),
        rest=Line("the rest", *rest),
        all=Line("all", *wall),
        figures=tuple(figures),
        cost=None if costs is None else Line("cost", *costs),
    )


def _step_seconds(report: Report, cell: Cell, examples: int) -> dict[str, float]:
    """Seconds of computing, by step; steps are named without the stack's name, so that two stacks can be compared."""
    scale = examples / cell.examples / 1e3
    return {
        model_of(step.model).removeprefix(f"{report.stack}_"): step.compute_ms * step.count * scale
        for step in cell.steps
    }


def _notes(a: Report, b: Report, left: dict[_Key, Cell], right: dict[_Key, Cell]) -> Iterator[str]:
    for what, one, other in (
        ("stack", a.stack, b.stack),
        ("protocol", a.protocol, b.protocol),
        ("load", a.arrivals or "closed loop", b.arrivals or "closed loop"),
        ("rows", f"{a.row_count:,} from {a.rows}", f"{b.row_count:,} from {b.rows}"),
        ("draw", a.draw, b.draw),
        ("client", a.machine.get("processor", ""), b.machine.get("processor", "")),
        ("tristage", a.version, b.version),
    ):
        if one != other:
            yield f"{what}: A {one}, B {other}"
    for name, mine, others in (("A", left, right), ("B", right, left)):
        alone = [where(cell) for key, cell in mine.items() if key not in others]
        if alone:
            yield f"only {name} measured {'; '.join(alone)}"
        for cell in mine.values():
            if not cell.complete or cell.errors:
                yield f"{name}, {where(cell)}: {cell.failed:,} requests failed{'' if cell.complete else ', cut short'}"


def comparison_json(found: Comparison) -> str:
    """The comparison as JSON, with every line's ratio."""

    def line(one: Line | None) -> object:
        return None if one is None else {**asdict(one), "times": one.times}

    pairs = [
        {
            "at": pair.at,
            "steps": [line(one) for one in pair.steps],
            "rest": line(pair.rest),
            "all": line(pair.all),
            "figures": [line(one) for one in pair.figures],
            "cost": line(pair.cost),
        }
        for pair in found.pairs
    ]
    document = {"schema": SCHEMA, **asdict(found), "pairs": pairs}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def comparison_markdown(found: Comparison) -> str:
    """The comparison's tables as Markdown."""
    lines = [f"# {found.names[0]} (A) against {found.names[1]} (B)", "", f"Seconds for {found.examples:,} examples."]
    for pair in found.pairs:
        lines += ["", f"## {pair.at}", "", "| step | A, s | B, s | A / B |", "|---|---|---|---|"]
        lines += [_row(line) for line in (*pair.steps, pair.rest)]
        lines += [_row(pair.all, "**")]
        lines += ["", "| | A | B | A / B |", "|---|---|---|---|"]
        lines += [_row(line) for line in pair.figures]
        if pair.cost is not None and found.prices is not None:
            lines += [
                f"| price an hour | {found.prices[0]:g} | {found.prices[1]:g} | |",
                _row(Line(f"cost of {found.examples:,} examples", pair.cost.a, pair.cost.b), "**"),
            ]
    return "\n".join([*lines, *([""] if found.notes else []), *(f"- {note}" for note in found.notes)]) + "\n"


def _row(line: Line, mark: str = "") -> str:
    cells = [line.name, figure(line.a), figure(line.b), figure(line.times)]
    return "| " + " | ".join(f"{mark}{cell}{mark}" for cell in cells) + " |"

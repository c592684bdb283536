"""The results as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.baselines.figures import BATCHES, SLOW, WAYS, Bar, Figures, bars, ratio

__all__ = ["Run", "document", "markdown"]

STACK = ("libraries", "fastapi", "ensemble", "fused", "floor")
PREPROCESSING = ("merlin", "features")


@dataclass(frozen=True)
class Run:
    """What a reader has to know of a run, beside its figures.

    Attributes:
        size: of the stack.
        command: that made it.
        date: ISO 8601.
        machine: words by name.
        versions: library -> version.
        rows: how many rows were drawn from.
        seconds, turns: of each way at each batch size.
        cores: the server's, and the client's.
        profiles: what was profiled -> lines.
    """

    size: str
    command: str
    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    rows: int
    seconds: float
    turns: int
    cores: tuple[int, int]
    profiles: Mapping[str, Sequence[str]] = field(default_factory=dict)


def document(run: Run, figures: Figures) -> dict[str, Any]:
    """Everything, as plain values."""
    found = [{**vars(bar), "met": bar.met} for bar in bars(run.size, figures)]
    return {**vars(run), **figures.to_json(), "bars": found}


def markdown(run: Run, figures: Figures) -> str:
    """The report."""
    machine = ", ".join(f"{key} {value}" for key, value in run.machine.items())
    server, client = run.cores
    where = f"clients on core {client}" if client != server else "clients on the same core: this machine has one"
    parts = [
        f"# One core: the {run.size} reference stack, and the ways to serve it",
        f"`{run.command}`, {run.date}. {machine}. Everything that answers was pinned to core {server} with one thread "
        f"a pool, {where}. The ways took turns, {run.turns} of {run.seconds:g} s for each batch size (one, where a "
        f"call takes more than {SLOW:g} of them), and all got the same requests, made before the clock started, of "
        f"{run.rows:,} test rows drawn by a power law. Figures are "
        "medians of the turns; of fewer than 100 calls p99 is the slowest.",
        ", ".join(f"{library} {version}" for library, version in run.versions.items()) + ".",
        *([_bars_table(found)] if (found := bars(run.size, figures)) else []),
    ]
    for batch in BATCHES:
        parts += [f"## Batch {batch}", _table(figures, batch, STACK, "libraries")]
    preprocessing = [
        f"Batch {batch}:\n\n{_table(figures, batch, PREPROCESSING, 'merlin')}"
        for batch in BATCHES
        if any(figures.of(way, batch) for way in PREPROCESSING)
    ]
    parts += ["## Preprocessing alone, through the same tritonserver, asked by NVIDIA's client", *preprocessing]
    if figures.failed:
        parts += ["## Not measured, or not to the end", _lines({WAYS[way]: why for way, why in figures.failed.items()})]
    parts += ["## How each was set up", _lines({WAYS[way]: note for way, note in figures.notes.items()})]
    parts += ["## Where the time goes", "Milliseconds a call, medians."]
    parts += [f"{title}:\n\n{_steps(by_batch)}" for title, by_batch in figures.steps.items() if by_batch]
    for what, lines in run.profiles.items():
        parts += [f"Profile of {what}:", "```text\n" + "\n".join(lines) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _bars_table(found: Sequence[Bar]) -> str:
    lines = ["| bar | measured | |", "|---|---|---|"]
    for bar in found:
        words = {True: "met", False: "**missed**", None: "not measured"}[bar.met]
        lines.append(f"| {bar.what} | {_number(bar.measured)} | {words} |")
    return "\n".join(lines)


def _table(figures: Figures, batch: int, ways: Sequence[str], first: str) -> str:
    number = WAYS[first].partition(".")[0]
    lines = [
        f"| way | p50 ms | p99 ms | ms/example | CPU ms/example | times faster than baseline {number} | calls |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in ways:
        turns = figures.of(way, batch)
        if not turns:
            lines.append(f"| {WAYS[way]} | not measured | | | | | |")
            continue
        cells = [
            _number(figures.median(way, batch, what))
            for what in ("p50_ms", "p99_ms", "ms_per_example", "cpu_ms_per_example")
        ]
        faster = "" if way == first else _number(ratio(figures, first, way, batch, "ms_per_example"))
        lines.append(f"| {WAYS[way]} | {' | '.join(cells)} | {faster} | {sum(turn.calls for turn in turns):,} |")
    return "\n".join(lines)


def _steps(by_batch: Mapping[int, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for steps in by_batch.values() for name in steps))
    heads = " | ".join(f"batch {batch}" for batch in by_batch)
    lines = [f"| step | {heads} |", "|---" * (len(by_batch) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(_number(steps.get(name)) for steps in by_batch.values()) + " |" for name in names
    ]
    return "\n".join(lines)


def _lines(said: Mapping[str, str]) -> str:
    return "\n".join(f"- {what}: {words}" for what, words in said.items())


def _number(value: float | None) -> str:
    """Three figures or more, without exponents."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"

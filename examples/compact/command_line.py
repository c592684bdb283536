"""What a command of examples does: runs the systems that are named, and shows what came of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean

from rich.table import Table

from examples.compact.run import BATCHES, Result, run
from examples.compact.system import System
from tristage.errors import TristageError
from tristage.terminal import console, out, stages

__all__ = ["carry_out", "markdown", "parser", "table"]

_STAGES = 5


def parser(prog: str, description: str | None, systems: Mapping[str, System]) -> argparse.ArgumentParser:
    """The options that every command has."""

    def known(name: str) -> str:
        if name not in systems:
            raise argparse.ArgumentTypeError(f"there is no system {name}; systems are {', '.join(systems)}")
        return name

    made = argparse.ArgumentParser(prog=prog, description=description)
    made.add_argument(
        "systems", nargs="*", metavar="NAME", type=known, help=f"of {', '.join(systems)}; all if not said"
    )
    made.add_argument("--size", choices=("small", "full"), default="small", help="small if not said")
    made.add_argument("--seconds", type=float, default=2.0, help="how long each batch size is measured; 0: not at all")
    shape = made.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="for machines")
    shape.add_argument("--markdown", action="store_true", help="as docs/systems.md has it")
    return made


def carry_out(options: argparse.Namespace, systems: Mapping[str, System], title: str, file: str) -> int:
    """Run what the options name.

    Args:
        options: of `parser`.
        systems: all there are.
        title: of the table.
        file: see `markdown`.

    Returns:
        The exit code.
    """
    results = []
    try:
        for name in dict.fromkeys(options.systems or systems):
            with stages(name, _STAGES if options.seconds else _STAGES - 1) as on_stage:
                results.append(run(systems[name], options.size, options.seconds, on_stage))
    except TristageError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return error.exit_code
    if options.json:
        sys.stdout.write(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    elif options.markdown:
        sys.stdout.write(markdown(results, systems, file) + "\n")
    else:
        out.print(table(results, systems, title))
    return 0


def table(results: Sequence[Result], systems: Mapping[str, System], title: str) -> Table:
    """The results for a terminal."""
    scored = any(result.scores for result in results)
    made = Table(title=f"{title}, on one CPU core", title_style="bold")
    made.add_column("system", no_wrap=True)
    for batch in BATCHES:
        made.add_column(f"ms/example batch {batch}", justify="right", min_width=10)
    made.add_column("furthest off", justify="right", max_width=8)
    made.add_column("golden + awkward rows", justify="right", max_width=8)
    if scored:
        made.add_column("mean AP", justify="right", max_width=5)
    for result in results:
        name, *cells = _cells(result, systems)
        compared = f"{result.golden} + {result.awkward}"
        learned = [f"{fmean(result.scores.values()):.3f}"] if result.scores else []
        made.add_row(name, *cells, compared, *learned)
    return made


def markdown(results: Sequence[Result], systems: Mapping[str, System], file: str) -> str:
    """The results as docs/systems.md has them; `file`, in which {name} stands for a system's, is where each lies."""
    headings = ["system", "text", "what it needs", "example"]
    headings += [*(f"ms/example, batch {batch}" for batch in BATCHES), "largest difference"]
    lines = [headings, ["---"] * len(headings)]
    for result in results:
        system, (_, *figures) = systems[result.name], _cells(result, systems)
        place = file.format(name=system.name)
        link = f"[{place.rpartition('/')[2]}](../examples/{place})"
        lines.append([system.title, system.text, system.needs, link, *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(result: Result, systems: Mapping[str, System]) -> list[str]:
    costs = [result.ms_per_example.get(batch) for batch in BATCHES]
    shown = ["" if cost is None else f"{cost:.3f}" for cost in costs]
    return [systems[result.name].title, *shown, f"{result.difference:.1e}"]

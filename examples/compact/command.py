"""The command line of the compact examples: trains, exports, serves, compares and measures each that is named."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from examples.compact.run import BATCHES, Result, run
from examples.compact.systems import SYSTEMS
from tristage.errors import TristageError
from tristage.terminal import console, out, stages

__all__ = ["main", "markdown", "table"]

_STAGES = 5


def table(results: Sequence[Result]) -> Table:
    """The results for a terminal."""
    made = Table(title="compact examples, on one CPU core", title_style="bold")
    made.add_column("system", no_wrap=True)
    for batch in BATCHES:
        made.add_column(f"ms/example, batch {batch}", justify="right")
    made.add_column("furthest off", justify="right")
    made.add_column("rows compared", justify="right")
    for result in results:
        made.add_row(*_cells(result), f"{result.golden} golden, {result.awkward} awkward")
    return made


def markdown(results: Sequence[Result]) -> str:
    """The results as docs/systems.md has them."""
    headings = ["system", "text", "what it needs", "example"]
    headings += [*(f"ms/example, batch {batch}" for batch in BATCHES), "largest difference"]
    lines = [headings, ["---"] * len(headings)]
    for result in results:
        system, (_, *figures) = SYSTEMS[result.name], _cells(result)
        link = f"[{system.name}.py](../examples/compact/{system.name}.py)"
        lines.append([system.title, system.text, system.needs, link, *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(result: Result) -> list[str]:
    costs = [result.ms_per_example.get(batch) for batch in BATCHES]
    shown = ["" if cost is None else f"{cost:.3f}" for cost in costs]
    return [SYSTEMS[result.name].title, *shown, f"{result.difference:.1e}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.compact", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="NAME", help=f"of {', '.join(SYSTEMS)}; all if not said")
    parser.add_argument("--size", choices=("small", "full"), default="small", help="small if not said")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="how long each batch size is measured; 0: not at all"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="for machines")
    shape.add_argument("--markdown", action="store_true", help="the table of docs/systems.md")
    options = parser.parse_args(arguments)
    strange = [name for name in options.systems if name not in SYSTEMS]
    if strange:
        parser.error(f"there is no system {strange[0]}; systems are {', '.join(SYSTEMS)}")
    results = []
    try:
        for name in dict.fromkeys(options.systems or SYSTEMS):
            with stages(name, _STAGES if options.seconds else _STAGES - 1) as on_stage:
                results.append(run(SYSTEMS[name], options.size, options.seconds, on_stage))
    except TristageError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return error.exit_code
    if options.json:
        sys.stdout.write(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    elif options.markdown:
        sys.stdout.write(markdown(results) + "\n")
    else:
        out.print(table(results))
    return 0

"""`tristage tune`, and what of it `tristage inspect` shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from tristage.errors import StackError
from tristage.terminal import out, stages
from tristage.tuning import Tuning

if TYPE_CHECKING:
    from tristage.manifest import Manifest
    from tristage.serving.program_file import ForestCall

__all__ = ["engines_table", "measure_forests", "tune", "untuned_table"]


def tune(
    repository: Annotated[Path, typer.Argument(help="The model repository.")] = Path("model_repository"),
    batches: Annotated[
        str, typer.Option(help="Rows of a call to measure; at most as many as a request may hold.")
    ] = "1,16,256,4096",
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Read the saved workflows of steps that NVTabular itself serves: reading a pickle runs it."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
) -> None:
    """Measure every forest engine on this machine, and have the fastest answer at each batch size.

    Our own engine, ONNX Runtime, oneDAL and XGBoost are asked about the golden rows; those that answer otherwise than
    the training library by more than 1e-6 are left out, the others measured on one thread. Another than the default
    answers where it is 5% faster. Serve on the machine that was measured, with the same libraries installed.
    """
    sizes = []
    for size in batches.split(","):
        if not size.strip().isdecimal() or int(size) < 1:
            raise StackError(f"--batches is {batches}; write batch sizes with commas between, such as 1,16,256")
        sizes.append(int(size))
    tuned = measure_forests(repository, sizes, trust).tuned
    if as_json:
        typer.echo(json.dumps(None if tuned is None else asdict(tuned)))
    elif tuned is None:
        out.print(f"{repository} has no forests; there is nothing to choose", markup=False)
    else:
        out.print(engines_table(tuned))


def measure_forests(repository: Path, batches: Sequence[int] | None = None, trust: bool = False) -> Manifest:
    """`tristage.export.tuning.tune` with a progress bar; None is the batch sizes that it has."""
    from tristage.export.tuning import BATCHES
    from tristage.export.tuning import tune as run
    from tristage.manifest import read_manifest
    from tristage.serving.program_file import read_calls

    calls = read_calls(repository, dict.fromkeys(read_manifest(repository).models.values()))
    with stages("tune", len(calls)) as on_stage:
        return run(repository, batches=batches or BATCHES, trust=trust, on_stage=on_stage)


def engines_table(tuned: Tuning) -> Group:
    """Who answers how many rows of each forest step, how long a call takes every engine, and who is left out."""
    table = Table("forest", "rows", "answered by", "milliseconds a call")
    table.title = f"measured on {escape(tuned.processor)}, {tuned.threads} thread"
    notes = []
    for step, forest in tuned.forests.items():
        first, name = 1, step
        for chosen in forest.engines:
            last = chosen.rows
            said = f"{first} and more" if last is None else f"{first} to {last}"
            sizes = [
                batch for batch in sorted(forest.milliseconds) if first <= batch and (last is None or batch <= last)
            ]
            times = [f"{_rows(batch)}: {_times(forest.milliseconds[batch])}" for batch in sizes]
            table.add_row(name, said, chosen.engine, "\n".join(times))
            first, name = (last or 0) + 1, ""
        table.add_section()
        notes.append(f"{step} is compared with {forest.reference} on {forest.rows}")
        notes += [f"{step}: {engine} is left out: {reason}" for engine, reason in forest.left_out.items()]
    return Group(table, *map(escape, notes))


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _times(times: Mapping[str, float]) -> str:
    return ", ".join(f"{engine} {times[engine]:.2g}" for engine in sorted(times, key=lambda name: times[name]))


def untuned_table(calls: Sequence[ForestCall], repository: Path) -> Table:
    """Who answers each forest step where nothing was measured."""
    table = Table("forest", "engine", "why")
    for call in calls:
        table.add_row(call.step, call.engines[-1].engine, f"not measured: tristage tune {escape(str(repository))}")
    return table

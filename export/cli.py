"""`tristage export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tristage.errors import StackError
from tristage.export.tuning.cli import engines_table, measure_forests
from tristage.stack import ListInput, Stack
from tristage.targets import TARGETS, find_target
from tristage.terminal import console, hush_tensorflow, out, stages

if TYPE_CHECKING:
    from tristage.export import Fallback

__all__ = ["export"]

_TARGETS = "; ".join(f"{target.name}, {target.about}" for target in TARGETS.values())


def export(
    stack: Annotated[
        Path | None, typer.Argument(help="The stack.yaml that names the trained artifacts.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the model repository.")] = Path(
        "model_repository"
    ),
    target: Annotated[str, typer.Option(help=f"Where it will be served: {_TARGETS}.")] = "pip-cpu",
    layout: Annotated[
        str | None,
        typer.Option(
            help="ensemble: a Triton model per step; fused: all steps in one, soonest for small requests. fused if not "
            "said for pip-gpu, else ensemble.",
            show_default=False,
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Rows that one request may hold.")] = 1024,
    instances: Annotated[
        int | None,
        typer.Option(
            help="Copies of every model that answer side by side: as many as the server has cores; 1 unless the stack "
            "says otherwise.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a repository that is there.")] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Read saved workflows, Merlin graphs and .joblib forests, which are pickles: reading one runs it.",
        ),
    ] = False,
    from_merlin: Annotated[
        Path | None,
        typer.Option(help="Instead of a stack.yaml: the folder that Merlin Systems' Ensemble.export wrote."),
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(help="With --from-merlin: Parquet file of held-out raw rows to prove it with.")
    ] = None,
    list_length: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=N", help="With --from-merlin: how long a raw list column may be; once for each."),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure the forest engines on this machine then, as `tristage tune` does.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Turn trained artifacts into a Triton model repository.

    Preprocessing, stage-1 models and the stage-2 stacker become one Triton ensemble: raw columns in, answers out. The
    stack's golden rows are asked of the training libraries and of the exported graphs, and nothing is written where
    the two differ by more than 1e-5.
    """
    hush_tensorflow()
    from tristage.export import export as run

    if tune and target != "pip-cpu":
        raise StackError(f"--tune chooses among the engines of pip-cpu; {find_target(target).name} has none to choose")
    declared = _declared(stack, from_merlin, golden, list_length or [], trust)
    # a stage for every step, then the training libraries, the comparison and the writing
    with stages("export", len(declared.steps) + 3) as on_stage:
        made = run(
            declared,
            output,
            target=target,
            layout=layout,
            max_batch=max_batch,
            instances=instances,
            overwrite=overwrite,
            trust=trust,
            on_stage=on_stage,
        )
    differences = {} if made.parity is None else dict(made.parity.differences)
    compared = 0 if made.parity is None else int((~made.parity.edge).sum())
    for fallback in made.fallbacks:
        console.print(
            f"[yellow]{escape(_cost(fallback))}[/]",
            soft_wrap=True,
        )
    tuned = measure_forests(made.path, trust=trust).tuned if tune else None
    if as_json:
        document = {"repository": str(made.path), "stack": made.manifest.stack, "notes": made.manifest.notes}
        fallbacks = [asdict(fallback) for fallback in made.fallbacks]
        typer.echo(
            json.dumps(
                {**document, "golden_rows": compared, "differences": differences, "fallbacks": fallbacks}
                | ({} if tuned is None else {"tuned": asdict(tuned)})
            )
        )
        return
    table = Table("step", "Triton model", "largest difference", title=f"{made.manifest.stack} -> {made.path}")
    for step, model in made.manifest.models.items():
        table.add_row(step, model, f"{differences[step]:.1e}" if step in differences else "")
    out.print(table)
    proof = (
        f"{compared} golden rows agree with the training libraries."
        if compared
        else "[yellow]No golden rows: unproven.[/]"
    )
    if tuned is not None:
        out.print(engines_table(tuned))
    trusting = " --trust" if made.fallbacks else ""
    console.print(f"{proof} Serve it: tristage serve {made.path} --cores 0{trusting}")


def _cost(fallback: Fallback) -> str:
    return (
        f"step {fallback.step} is served by NVTabular itself, which took {fallback.milliseconds:.3g} ms for one row "
        f"just now, where a compiled workflow takes a fraction of a millisecond: {fallback.reason}. A lowering is one "
        "function, registered with tristage.export.workflow.lowers: see docs/custom_operators.md"
    )


def _declared(stack: Path | None, merlin: Path | None, golden: Path | None, lengths: list[str], trust: bool) -> Stack:
    """The stack that a file declares, or a Merlin graph is."""
    from tristage.export.stack_file import read_stack

    if (stack is None) == (merlin is None):
        raise StackError("give a stack.yaml, or --from-merlin and the folder that Ensemble.export wrote")
    if stack is not None:
        if golden is not None or lengths:
            raise StackError(
                f"{stack} says golden rows and lengths of lists itself; leave --golden and --list-length out"
            )
        return read_stack(stack)
    inputs = {}
    for option in lengths:
        column, _, length = option.partition("=")
        if not length.isdecimal():
            raise StackError(f"--list-length is {option}; write it as COLUMN=N, such as tokens=48")
        inputs[column] = ListInput(int(length))
    return Stack.from_merlin(merlin, inputs=inputs, golden=golden, trust=trust)

"""`tristage features`."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tristage.errors import InputError
from tristage.terminal import console, hush_tensorflow, out

if TYPE_CHECKING:
    from tristage.export.feature_tables import FeatureTable

__all__ = ["features"]


def features(
    repository: Annotated[Path, typer.Argument(help="The model repository.")] = Path("model_repository"),
    step: Annotated[
        str | None, typer.Argument(help="The features step whose table is to be another.", show_default=False)
    ] = None,
    table: Annotated[
        Path | None, typer.Argument(help="Parquet file of the new table: the same columns.", show_default=False)
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Serve the version before the one that is served.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False,
) -> None:
    """Show the tables of features that a repository looks up by id, or have another one served.

    `tristage features model_repository users today.parquet` compiles the new table, compares it with what NVTabular
    answers and exchanges it in one go; servers that run change over by themselves, between two requests. The two
    versions before it are kept, and --back serves the last of them again.
    """
    from tristage.export.feature_tables import find_tables, go_back, replace_table
    from tristage.manifest import read_manifest

    read_manifest(repository)  # says what is wrong where it is no repository
    if (table is not None or back) and step is None:
        raise InputError("name the step whose table is to be another: tristage features REPOSITORY STEP TABLE")
    if table is not None and back:
        raise InputError("give a new table, or --back, not both")
    if step is not None and table is None and not back:
        raise InputError(f"give {step} a new table, tristage features {repository} {step} TABLE, or say --back")
    if step is not None and table is not None:
        from tristage.export.lower import lower

        hush_tensorflow()  # which NVTabular imports
        with console.status(f"compiling {table}"):
            replace_table(repository, step, table, partial(lower))
    elif step is not None:
        go_back(repository, step)
    tables = find_tables(repository)
    if as_json:
        typer.echo(json.dumps([_document(each) for each in tables]))
    elif tables:
        out.print(_shown(tables))
    else:
        out.print(f"{repository} looks up no tables of features", markup=False)


def _document(table: FeatureTable) -> dict[str, object]:
    about = {name: value for name, value in asdict(table.about).items() if name != "files"}
    return {"step": table.step, "version": table.version, "before": list(table.before), **about}


def _shown(tables: list[FeatureTable]) -> Table:
    shown = Table("step", "version", "ids", "rows", "features", "before", title="tables of features")
    for each in tables:
        about = each.about
        names = [f"{name} {dtype}" for name, dtype in about.columns.items()]
        some = ", ".join(names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"])
        shown.add_row(
            each.step, each.version, f"{about.ids} {about.dtype}", f"{about.rows:,}", some, ", ".join(each.before)
        )
    return shown

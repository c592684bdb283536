"""The client's commands: `tristage predict` and `tristage verify`."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections import Counter
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tristage.errors import InputError

__all__ = ["predict", "verify"]

_ROWS_AT_ONCE = 8192  # read, sent and written before the next are read
_URL = "http://127.0.0.1:8000"


class UnknownColumns(str, Enum):
    """What to do about columns the stack does not have."""

    error = "error"
    ignore = "ignore"


def predict(
    rows: Annotated[str, typer.Argument(help="A .parquet or .jsonl file, or - for JSON lines on standard input.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .parquet or .jsonl file, or - for JSON lines on standard output.")
    ] = "-",
    url: Annotated[str, typer.Option(help="The server: http://HOST:8000 or grpc://HOST:8001.")] = _URL,
    stack: Annotated[str | None, typer.Option(help="The stack's name, where the server has several.")] = None,
    unknown: Annotated[
        UnknownColumns, typer.Option(help="What to do about columns the stack does not have.")
    ] = UnknownColumns.error,
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take.", min=0.001)] = 30.0,
) -> None:
    """Predict the rows of a file with a served stack."""
    from tristage.client import Client
    from tristage.client._files import count_rows, read_parts, write_rows
    from tristage.terminal import console, progress

    total, done, cut = count_rows(rows), 0, Counter[tuple[str, int]]()
    with Client(url, stack=stack, timeout=timeout) as client:
        signature = client.signature
        most = max(signature.max_batch, _ROWS_AT_ONCE // signature.max_batch * signature.max_batch)
        shown = console.is_terminal and not (output == "-" and sys.stdout.isatty())
        bar: Any = progress() if shown else nullcontext()
        with write_rows(output, signature.outputs) as write, bar:
            task = bar.add_task("predict", total=total) if shown else None
            for part in read_parts(rows, most):
                write(_predict(client, part, unknown.value, cut))
                done += len(part.rows)
                if task is not None:
                    bar.update(task, completed=done)
            if not done:
                raise InputError(f"no rows in {'standard input' if rows == '-' else rows}: there is nothing to predict")
    for (column, limit), count in cut.items():
        console.print(f'note: column "{column}": {count} lists longer than {limit} were cut', markup=False)
    if output != "-":
        console.print(f"{done} rows written to {output}", markup=False, soft_wrap=True)


def verify(
    repository: Annotated[Path, typer.Argument(help="The repository that is served.")] = Path("model_repository"),
    url: Annotated[str, typer.Option(help="The server: http://HOST:8000 or grpc://HOST:8001.")] = _URL,
    tolerance: Annotated[float, typer.Option(help="The largest absolute difference that passes.", min=0.0)] = 1e-5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Replay a repository's golden rows through the server that serves it; end with 1 where answers differ."""
    from rich.table import Table
    from rich.text import Text

    from tristage.client import Client
    from tristage.client import verify as replay
    from tristage.manifest import read_manifest
    from tristage.terminal import out

    name = read_manifest(repository).stack
    with Client(url, stack=name) as client:
        found = replay(client, repository, tolerance=tolerance)
    if as_json:
        # JSON has no infinity
        differences = {name: value if math.isfinite(value) else "inf" for name, value in found.differences.items()}
        document = {"stack": found.stack, "url": found.url, "rows": found.rows, "tolerance": found.tolerance}
        narrow = {"narrow_weights": dict(found.narrow)} if found.narrow else {}
        typer.echo(json.dumps({**document, "differences": differences, **narrow, "passed": found.passed}))
    else:
        table = Table(title=Text(f"{found.stack}: {found.rows} golden rows through {found.url}"))
        table.add_column("output")
        table.add_column("largest difference", justify="right")
        table.add_column(f"within {tolerance:g}" + (" and what narrow weights do" if found.narrow else ""))
        for output, value in found.differences.items():
            allowed = found.allowed(output)
            limit = f" ({allowed:.3g})" if found.narrow else ""
            table.add_row(
                Text(output), f"{value:.3g}", f"yes{limit}" if value <= allowed else f"[bold red]NO[/]{limit}"
            )
        out.print(table)
    found.check()


def _predict(client: Any, part: Any, unknown: str, cut: Counter[tuple[str, int]]) -> Any:
    """One part's answers; counts lists that were cut, and names lines where rows are lines."""
    from tristage.client import ListTruncated

    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", ListTruncated)
        try:
            answers = client.predict(part.rows, unknown=unknown, first_row=part.first_row)
        except InputError as error:
            if part.lines is None or error.row is None:
                raise
            line = part.lines[error.row - part.first_row]
            raise InputError(f"line {line}: {error}", column=error.column, row=error.row) from error
    for warning in raised:
        if isinstance(warning.message, ListTruncated):
            cut[warning.message.column, warning.message.limit] += warning.message.rows
    return answers

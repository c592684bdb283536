"""The `tristage loadtest` command."""

from __future__ import annotations

import enum
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tristage.errors import InputError, ServerUnavailable

if TYPE_CHECKING:
    from tristage.loadtest import Report, Tick

__all__ = ["loadtest"]


_REDRAW_S = 0.5


class _Protocol(str, enum.Enum):
    http = "http"
    grpc = "grpc"


def loadtest(
    url: Annotated[
        str, typer.Option(help="The server: http://HOST:8000 or grpc://HOST:8001.")
    ] = "http://127.0.0.1:8000",
    protocol: Annotated[_Protocol | None, typer.Option(help="For a URL that does not say: HOST:PORT.")] = None,
    stack: Annotated[str | None, typer.Option(help="The stack to measure, where the server has more than one.")] = None,
    rows: Annotated[
        Path, typer.Option(help="A Parquet file of raw rows, or a model repository, whose golden rows are sent.")
    ] = Path("model_repository"),
    batch: Annotated[str, typer.Option(help="Rows a request, one or more numbers.")] = "1,64,1024",
    concurrency: Annotated[str, typer.Option(help="Connections, one or more numbers.")] = "1",
    duration: Annotated[float, typer.Option(help="Seconds for each batch size at each concurrency.")] = 5.0,
    requests: Annotated[
        int | None, typer.Option(help="Requests for each batch size at each concurrency, instead of --duration.")
    ] = None,
    warmup: Annotated[float, typer.Option(help="Seconds of requests before each, that do not count.")] = 1.0,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take.")] = 30.0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, not as tables.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report here: FILE.json.")] = None,
) -> None:
    """Measure what an example costs: ms/example, percentiles, and the share of each step.

    A closed loop: each connection sends its next request when the last one is answered. Ctrl-C ends it early and
    shows what was measured.
    """
    from tristage.loadtest import rows_from, run_loadtest, write_report
    from tristage.loadtest._tables import tables
    from tristage.terminal import console, out, progress

    if output is not None and (output.suffix != ".json" or not output.parent.is_dir()):
        raise InputError(f"the report cannot be written to {output}; give -o a .json file in a folder that exists")
    batches, concurrencies = _numbers("--batch", batch), _numbers("--concurrency", concurrency)
    bar = progress()
    bar.live.auto_refresh = False  # drawing takes the interpreter from the threads that are timed: do it rarely
    bar.live.transient = True
    drawn = 0.0
    with bar:
        task = bar.add_task("connecting", total=None)
        bar.refresh()

        def watch(tick: Tick) -> None:
            nonlocal drawn
            now = time.monotonic()
            if tick.elapsed_s and now - drawn < _REDRAW_S:
                return
            drawn = now
            bar.update(
                task,
                description=_progress(tick),
                total=duration if requests is None else requests,
                completed=min(tick.elapsed_s, duration) if requests is None else tick.requests,
            )
            bar.refresh()

        report = run_loadtest(
            url,
            rows=rows_from(rows),
            batches=batches,
            concurrencies=concurrencies,
            duration=duration,
            requests=requests,
            warmup=warmup,
            timeout=timeout,
            stack=stack,
            protocol=None if protocol is None else protocol.value,
            source=str(rows),
            watch=watch,
        )
    try:
        if output is not None:
            write_report(report, output)
            console.print(f"report: {output}", markup=False, soft_wrap=True)
    finally:  # a full disk must not cost the figures
        if json:
            typer.echo(report.to_json())
        else:
            for part in tables(report):
                out.print(part)
    _end(report)


def _progress(tick: Tick) -> str:
    where = f"{tick.cell + 1} of {tick.cells}: batch {tick.batch}, concurrency {tick.concurrency}"
    if not tick.elapsed_s:
        return f"{where}, warming up"
    return f"{where}, {tick.elapsed_s * 1e3 / (tick.requests * tick.batch):.3g} ms/example" if tick.requests else where


def _end(report: Report) -> None:
    if report.ended == "unavailable":
        raise ServerUnavailable(
            f"{report.message} ({len(report.cells)} measured before that, shown above)", url=report.url
        )
    if report.ended == "interrupted":
        from tristage.terminal import console

        console.print(report.message, markup=False)
        raise typer.Exit(130)


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option} {text!r} cannot be read; give whole numbers with commas between: 1,64,1024"
        ) from None

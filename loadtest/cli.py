"""The `tristage loadtest` and `tristage compare` commands."""

from __future__ import annotations

import enum
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tristage.errors import InputError, ServerUnavailable

if TYPE_CHECKING:
    from tristage.loadtest import Report, Tick

__all__ = ["compare", "loadtest"]

_REDRAW_S = 0.5


class _Protocol(str, enum.Enum):
    http = "http"
    grpc = "grpc"
    shared_memory = "grpc+shm"


class _Arrivals(str, enum.Enum):
    poisson = "poisson"
    constant = "constant"


def loadtest(
    url: Annotated[
        str | None, typer.Option(help="The server: http://HOST:8000 or grpc://HOST:8001.", show_default="this machine")
    ] = None,
    protocol: Annotated[
        _Protocol | None,
        typer.Option(
            help="http, grpc, or grpc+shm: tensors in shared memory.", show_default="http, or what --url says"
        ),
    ] = None,
    stack: Annotated[str | None, typer.Option(help="The stack to measure, where the server has more than one.")] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="A Parquet file of raw rows, or a model repository, whose golden rows are sent.",
            show_default="the server's repository, or model_repository",
        ),
    ] = None,
    power_law: Annotated[
        float | None,
        typer.Option(
            help="Draw rows: the k-th most popular in proportion to 1/k**THIS, such as 1.", show_default="in turn"
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Rows a request, one or more numbers.", show_default="1,64,1024")
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(help="Connections, one or more numbers; at most so many with --rate.", show_default="1; 64"),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Open loop: requests a second, one or more numbers, sent when due.", show_default="closed loop"
        ),
    ] = None,
    arrivals: Annotated[_Arrivals, typer.Option(help="Open loop: when requests are due.")] = _Arrivals.poisson,
    max_p99: Annotated[
        float | None, typer.Option(help="Find the highest rate whose p99 is at most so many ms.", metavar="MS")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds for each measurement.", show_default="until percentiles settle")
    ] = None,
    settle: Annotated[float, typer.Option(help="Settled: p50, p90, p99 known to ± so many percent (95%).")] = 5.0,
    longest: Annotated[float, typer.Option(help="Seconds after which unsettled measurements end.")] = 20.0,
    requests: Annotated[int | None, typer.Option(help="Requests for each measurement, instead of a time.")] = None,
    warmup: Annotated[float, typer.Option(help="Seconds of requests before each, that do not count.")] = 1.0,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn: arrivals, rows.")] = 0,
    server_pid: Annotated[
        int | None,
        typer.Option(help="The server's process, for its CPU and memory.", show_default="what listens on the port"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, not as tables.")] = False,
    output: Annotated[
        list[Path] | None,
        typer.Option("--output", "-o", help="Write the report here: FILE.html, .json, .csv or .md; may be repeated."),
    ] = None,
) -> None:
    """Measure what an example costs: ms/example, percentiles, CPU and memory, and the share of each step.

    A closed loop, unless --rate or --max-p99 is given: each connection sends its next request when the last one is
    answered, which shows what an example costs. With a rate, requests are sent when they are due and timed from then,
    which shows what users wait. Ctrl-C ends it early and shows what was measured.

    With nothing else said, it measures the server on this machine with its repository's golden rows. Then:
    tristage loadtest --protocol grpc --concurrency 1,2,4 -o report.html; tristage loadtest --batch 1 --max-p99 20
    """
    from tristage.loadtest import rows_from, run_loadtest
    from tristage.loadtest._files import check_path
    from tristage.loadtest._rows import find_rows

    outputs = output or []
    for path in outputs:
        check_path(path)
    if url is None:
        url = "http://127.0.0.1:8000" if protocol in (None, _Protocol.http) else "grpc://127.0.0.1:8001"
    settings: dict[str, Any] = {
        "batches": None if batch is None else _numbers("--batch", batch, int),
        "concurrencies": None if concurrency is None else _numbers("--concurrency", concurrency, int),
        "rates": () if rate is None else _numbers("--rate", rate, float),
    }
    plain: Any = "grpc" if protocol is _Protocol.shared_memory else None if protocol is None else protocol.value
    source = find_rows(url, plain, timeout) if rows is None else rows
    with _Shown(requests, duration or longest) as shown:
        report = run_loadtest(
            url,
            rows=rows_from(source),
            **settings,
            arrivals=arrivals.value,
            max_p99_ms=max_p99,
            duration=duration,
            band=settle / 100,
            longest=longest,
            requests=requests,
            warmup=warmup,
            timeout=timeout,
            power_law=power_law,
            seed=seed,
            stack=stack,
            protocol=None if protocol is None else protocol.value,
            server_pid=server_pid,
            source=str(source),
            watch=shown.watch,
        )
    _give(report, outputs, json)


def compare(
    first: Annotated[Path, typer.Argument(help="A report that loadtest -o FILE.json wrote.", metavar="A.json")],
    second: Annotated[Path, typer.Argument(help="Another one.", metavar="B.json")],
    price: Annotated[
        str | None, typer.Option(help="Price of an hour of A's machine, or of A's and B's: 0.36,3.675.")
    ] = None,
    examples: Annotated[int, typer.Option(help="How many examples to count seconds for.", min=1)] = 1_000_000,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON, not as tables.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it here: FILE.md or FILE.json.")] = None,
) -> None:
    """Compare two load tests: seconds for a million examples, step by step, side by side, speed-up and cost.

    Measurements are compared where both reports have the same batch size and concurrency, or rate.
    """
    from tristage.loadtest import read_report
    from tristage.loadtest._compare import comparison, comparison_json, comparison_markdown
    from tristage.loadtest._compare_tables import comparison_tables
    from tristage.loadtest._files import check_path, write_text
    from tristage.terminal import console, out

    texts = {".json": comparison_json, ".md": comparison_markdown}
    if output is not None:
        check_path(output, texts)
    prices = [] if price is None else _numbers("--price", price, float)
    found = comparison(
        read_report(first), read_report(second), names=(str(first), str(second)), prices=prices, examples=examples
    )
    if output is not None:
        write_text(texts[output.suffix](found), output)
        console.print(f"comparison: {output}", markup=False, soft_wrap=True)
    if json:
        typer.echo(comparison_json(found), nl=False)
        return
    for part in comparison_tables(found):
        out.print(part)


class _Shown:
    """The live line of a run on stderr: where it is, and what an example costs so far."""

    def __init__(self, requests: int | None, seconds: float) -> None:
        from tristage.terminal import progress

        self._requests, self._seconds = requests, seconds
        self._bar = progress()
        self._bar.live.auto_refresh = False  # drawing takes the interpreter from the threads that are timed: rarely
        self._bar.live.transient = True
        self._drawn = 0.0

    def __enter__(self) -> _Shown:
        self._bar.start()
        self._task = self._bar.add_task("connecting", total=None)
        self._bar.refresh()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def watch(self, tick: Tick) -> None:
        now = time.monotonic()
        if tick.elapsed_s and now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        by_time = self._requests is None
        self._bar.update(
            self._task,
            description=_progress(tick),
            total=self._seconds if by_time else self._requests,
            completed=int(min(tick.elapsed_s, self._seconds)) if by_time else tick.requests,
        )
        self._bar.refresh()


def _progress(tick: Tick) -> str:
    of = "" if tick.cells is None else f" of {tick.cells}"
    at = f"concurrency {tick.concurrency}" if tick.rate is None else f"{tick.rate:,.4g} requests/s"
    where = f"{tick.cell + 1}{of}: batch {tick.batch}, {at}"
    if not tick.elapsed_s:
        return f"{where}, warming up"
    return f"{where}, {tick.elapsed_s * 1e3 / (tick.requests * tick.batch):.3g} ms/example" if tick.requests else where


def _give(report: Report, outputs: list[Path], json: bool) -> None:
    from tristage.loadtest import write_report
    from tristage.loadtest._tables import tables
    from tristage.terminal import console, out

    try:
        for path in outputs:
            write_report(report, path)
            console.print(f"report: {path}", markup=False, soft_wrap=True)
    finally:  # a full disk must not cost the figures
        if json:
            typer.echo(report.to_json())
        else:
            for part in tables(report):
                out.print(part)
    if report.ended == "unavailable":
        raise ServerUnavailable(
            f"{report.message} ({len(report.cells)} measured before that, shown above)", url=report.url
        )
    if report.ended == "interrupted":
        console.print(report.message, markup=False)
        raise typer.Exit(130)


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        example, what = ("1,64,1024", "whole numbers") if kind is int else ("0.5,100", "numbers")
        raise InputError(f"{option} {text!r} cannot be read; give {what} with commas between: {example}") from None

"""The command `tristage serve`."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.markup import escape

from tristage.errors import RepositoryError, ServerError, TristageError
from tristage.manifest import MANIFEST
from tristage.terminal import console

if TYPE_CHECKING:
    from tristage.serving.server import Server

__all__ = ["follow", "parse_cores", "serve"]

_LOOK = 1.0  # seconds between two looks at the repository
_LOOK_AGAIN = 5.0  # and after one that found it incomplete


class _Asked(BaseException):
    """SIGINT or SIGTERM came. Not an Exception, so that nothing on the way up takes it for a failure."""


def serve(
    repository: Annotated[
        Path,
        typer.Argument(
            help="The model repository that `tristage export` wrote.", show_default=True, envvar="TRISTAGE_REPOSITORY"
        ),
    ] = Path("model_repository"),
    cores: Annotated[
        str | None,
        typer.Option(
            help="Cores to pin the server to, such as 0 or 0,2-3; thread pools get as many threads. All if unset.",
            envvar="TRISTAGE_CORES",
        ),
    ] = None,
    http_port: Annotated[
        int, typer.Option(help="Port for HTTP; 0 picks a free one.", envvar="TRISTAGE_HTTP_PORT")
    ] = 8000,
    grpc_port: Annotated[
        int, typer.Option(help="Port for gRPC; 0 picks a free one.", envvar="TRISTAGE_GRPC_PORT")
    ] = 8001,
    metrics_port: Annotated[
        int, typer.Option(help="Port for Prometheus metrics; 0 picks a free one.", envvar="TRISTAGE_METRICS_PORT")
    ] = 8002,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. There is no authentication: 0.0.0.0 serves whoever reaches it.",
            envvar="TRISTAGE_HOST",
        ),
    ] = "127.0.0.1",
    timeout: Annotated[
        float, typer.Option(help="Seconds until all models must be ready.", envvar="TRISTAGE_START_TIMEOUT")
    ] = 120.0,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Read the saved workflows of steps that NVTabular itself serves: reading a pickle runs it."
        ),
    ] = False,
    backends: Annotated[
        Path | None,
        typer.Option(
            help="Folder of Triton's native backends (fil, onnxruntime), for repositories of the targets ngc-*.",
            envvar="TRISTAGE_NATIVE_BACKENDS",
        ),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(
            help="Opens Triton's shared memory, tracing and logging to requests that carry it; closed if unset.",
            envvar="TRISTAGE_ADMIN_KEY",
        ),
    ] = None,
    percentiles: Annotated[
        bool,
        typer.Option(
            "--percentiles",
            help="Have the metrics hold percentiles of each model's durations, at some cost to every request.",
            envvar="TRISTAGE_PERCENTILES",
        ),
    ] = False,
    traces: Annotated[
        str | None,
        typer.Option(
            help="OpenTelemetry collector, such as http://127.0.0.1:4318, that gets spans of requests with a "
            "traceparent, such as the gateway's; none if unset.",
            envvar="TRISTAGE_TRACES_URL",
        ),
    ] = None,
) -> None:
    """Serve a model repository with Triton until Ctrl-C or SIGTERM; requests in flight are answered.

    A new export of the stack to the same repository (`tristage export --overwrite`) is loaded while the old one
    answers, and takes over in one go: no request fails. One that does not load, or has other columns, is not served,
    and a note says why.
    """
    from tristage.manifest import read_manifest
    from tristage.serving.server import serve as start
    from tristage.traces import collector, collector_of_environment

    sent = collector(traces) if traces else collector_of_environment()
    pinned = None if cores is None else parse_cores(cores)
    manifest = read_manifest(repository)
    began = time.monotonic()
    shown = f"traces   {sent}\n" if sent else ""
    where = "all cores" if pinned is None else f"core{'s' if len(pinned) > 1 else ''} {cores}"
    console.print(f"serving {manifest.stack} ({manifest.target}) from {repository} on {where}", markup=False)
    running: list[Server] = []

    def hurry(number: int, frame: FrameType | None) -> None:
        for server in running:
            server.kill()

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, hurry)
        raise _Asked

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with start(
            repository,
            cores=pinned,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            host=host,
            timeout=timeout,
            trust=trust,
            backends=backends,
            admin_key=admin_key,
            percentiles=percentiles,
            traces=sent,
            log=sys.stderr,
        ) as server:
            running.append(server)
            console.print(
                f"HTTP     {server.http_url}\n"
                f"gRPC     {server.grpc_url}\n"
                f"metrics  {server.metrics_url}\n{shown}"
                f"ready after {time.monotonic() - began:.1f} s (tritonserver is process {server.pid}); try:\n"
                f"  curl {server.http_url}/v2/models/{manifest.stack}\n"
                "Ctrl-C ends it",
                markup=False,
                soft_wrap=True,
            )
            follow(server, repository)
            raise ServerError(f"Triton ended by itself: {server.why()}; its log is above; start it again")
    except _Asked:
        console.print("ended")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(server: Server, repository: Path) -> None:
    """Serve every new export that is written to the repository, until the server ends."""
    seen, told, pause = None, "", _LOOK
    while server.wait(pause) is None:
        stamp, pause = _stamp(repository), _LOOK
        if stamp is None or stamp == seen:
            continue
        try:
            if server.reload():
                console.print(f"serving the new export of {server.stack}; the old one is unloaded")
            seen, told = stamp, ""
        except TristageError as error:
            if str(error) != told:
                console.print(f"[yellow]note:[/] not served: {escape(str(error))}", soft_wrap=True)
            told = str(error)
            if isinstance(error, RepositoryError):
                pause = _LOOK_AGAIN  # it may still be being copied
            else:
                seen = stamp


def _stamp(repository: Path) -> tuple[int, int, int] | None:
    """What tells one manifest from another; None while there is none, as in the midst of an export."""
    try:
        found = (repository / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def parse_cores(text: str) -> list[int]:
    """ "0,2-3" -> [0, 2, 3].

    Raises:
        ServerError: the text is no such list.
    """
    found: set[int] = set()
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            cores = range(int(first), int(last if dash else first) + 1)
            if not cores or len(cores) > 65536:
                raise ValueError
            found.update(cores)
    except ValueError:
        raise ServerError(f"--cores {text!r} is no list of cores; write it like 0 or 0,2-3") from None
    return sorted(found)

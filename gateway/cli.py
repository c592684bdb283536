"""The command `tristage gateway`."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tristage.errors import InputError, PortInUse, ServerError
from tristage.terminal import console

__all__ = ["gateway"]

# Seconds that an idle connection is kept: longer than callers and proxies keep theirs (mostly 60), since a request that
# is sent just as this end closes fails
_KEEP_ALIVE = 75
# Connections accepted between two looks at the others: uvloop accepts one of each listening socket, so it gets as many
# of the same. With one, hundreds of callers that came at once waited seconds behind those who asked again and again.
_ACCEPTED = 128
_OTHER_FILES = 256  # that the process has open besides connections to callers and to Triton


def gateway(
    url: Annotated[
        str, typer.Option(help="Triton: grpc://HOST:8001 or http://HOST:8000.", envvar="TRISTAGE_TRITON_URL")
    ] = "grpc://127.0.0.1:8001",
    repository: Annotated[
        Path | None,
        typer.Option(
            help="The repository that Triton serves, for versions, checksums and an example.",
            envvar="TRISTAGE_REPOSITORY",
        ),
    ] = None,
    stack: Annotated[
        str | None, typer.Option(help="The stack's name, where the server has several.", envvar="TRISTAGE_STACK")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is all of them.", envvar="TRISTAGE_LISTEN_HOST")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 picks a free one.", envvar="TRISTAGE_LISTEN_PORT")
    ] = 8080,
    max_in_flight: Annotated[
        int, typer.Option(help="Requests taken at once; more get 503.", envvar="TRISTAGE_MAX_IN_FLIGHT", min=1)
    ] = 256,
    max_connections: Annotated[
        int,
        typer.Option(help="Connections kept; more get 503 and are closed.", envvar="TRISTAGE_MAX_CONNECTIONS", min=1),
    ] = 2048,
    max_rows: Annotated[
        int, typer.Option(help="Rows that one request may hold.", envvar="TRISTAGE_MAX_ROWS", min=1)
    ] = 8192,
    max_body_mib: Annotated[
        int, typer.Option(help="MiB that one request's body may hold.", envvar="TRISTAGE_MAX_BODY_MIB", min=1)
    ] = 16,
    timeout: Annotated[
        float, typer.Option(help="Seconds that one request may take.", envvar="TRISTAGE_TIMEOUT", min=0.001)
    ] = 10.0,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests a second that each API key may send; any number if unset.", envvar="TRISTAGE_RATE"),
    ] = None,
    api_keys_file: Annotated[
        Path | None,
        typer.Option(
            help="File of name:key, one a line; whoever has none is refused. Or the same in TRISTAGE_API_KEYS.",
            envvar="TRISTAGE_API_KEYS_FILE",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="A web page's origin that may call, such as https://shop.example; none may if unset.",
            envvar="TRISTAGE_CORS_ORIGINS",
        ),
    ] = None,
    traces: Annotated[
        str | None,
        typer.Option(
            help="OpenTelemetry collector that spans go to, such as http://127.0.0.1:4318; none if unset.",
            envvar="TRISTAGE_TRACES_URL",
        ),
    ] = None,
) -> None:
    """Answer over HTTP and JSON in front of Triton, with a page that shows the stack at work, until Ctrl-C."""
    import uvicorn

    from tristage.gateway.app import create_app
    from tristage.gateway.connections import LINGERING, Connections
    from tristage.gateway.settings import Settings
    from tristage.traces import collector, collector_of_environment

    if rate is not None and not rate > 0:
        raise InputError(f"--rate {rate:g} lets nobody in; leave it out for any number of requests")
    settings = Settings(
        url=url,
        stack=stack,
        repository=repository,
        max_in_flight=max_in_flight,
        max_connections=max_connections,
        max_rows=max_rows,
        max_body=max_body_mib << 20,
        timeout=timeout,
        keys=_keys(api_keys_file),
        rate=rate,
        origins=tuple(cors_origin or ()),
        traces=collector(traces) if traces else collector_of_environment(),
    )
    app = create_app(settings)
    _allow_files(max_connections + LINGERING + max_in_flight + _OTHER_FILES)
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    sent = f"traces   {settings.traces}\n" if settings.traces else ""
    console.print(
        f"gateway  http://{shown}:{listening.getsockname()[1]}  (docs: /docs)\ntriton   {url}\n{sent}Ctrl-C ends it",
        markup=False,
        soft_wrap=True,
    )
    config = uvicorn.Config(
        app,
        http=cast(Any, Connections(max_connections, app.metrics.refuse)),  # called as a class would be
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing asks for the caller's address
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=30,
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again once it has ended
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening, *(listening.dup() for _ in range(_ACCEPTED - 1))])
    console.print("ended")


def _keys(path: Path | None) -> dict[str, bytes]:
    from tristage.gateway.settings import read_keys

    text = os.environ.get("TRISTAGE_API_KEYS", "")
    if path is not None:
        try:
            text += "\n" + path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the API keys {path} cannot be read ({error})") from error
        if not read_keys(text):  # an empty file must not open the door
            raise InputError(f"the API keys {path} hold no key; write name:key, one a line")
    return read_keys(text)


def _allow_files(wanted: int) -> None:
    """Let this process have as many files open: where it may not, accepting a connection fails, and all others wait."""
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise InputError(
                f"this process may have {hard} files open, and needs {wanted}; raise the limit (ulimit -Hn, "
                "LimitNOFILE), or lower --max-connections or --max-in-flight"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
        # what is accepted inherits it; asyncio sets it on no socket that it did not make; a large answer is many writes
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} is taken; choose another with --port, or 0 for a free one", port=port
            ) from error
        raise ServerError(f"cannot listen on {host}:{port} ({error.strerror or error}); correct --host") from error

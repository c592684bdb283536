"""Starts Triton on a model repository and sees it to its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from tristage.errors import ArtifactError, PortInUse, RepositoryError, ServerError
from tristage.manifest import Manifest, check_files, has_rate_limits, keeps_answers, read_manifest
from tristage.serving.feature_files import check_tables
from tristage.serving.log import Log, LogTarget, reason, still_loading, taken_port
from tristage.serving.machine import address_of, check_cores, choose_ports
from tristage.serving.reload import check_same_stack, first_generation, switch
from tristage.serving.triton import EXIT_TIMEOUT, Ports, Triton, arguments, environment, find_triton
from tristage.serving.workflow_file import TRUST, WORKFLOW_FILE, WorkflowFile, check_folder
from tristage.traces import collector

__all__ = ["Server", "serve"]

_PATIENCE = EXIT_TIMEOUT + 10.0  # seconds from asking Triton to end to killing it
_POLL = 0.05  # seconds between two looks at a server that is starting


@dataclass(frozen=True)
class _Source:
    """Where a server's models come from, and what it takes to load others."""

    root: Path
    staging: Path
    key: str
    trust: bool
    timeout: float


class Server:
    """A running Triton. Made by `serve`; ends with its `with` block, with `stop`, or when this program ends.

    Attributes:
        http_url: such as "http://127.0.0.1:8000".
        grpc_url: such as "grpc://127.0.0.1:8001".
        metrics_url: Prometheus metrics, such as "http://127.0.0.1:8002/metrics".
        pid: tritonserver's process id.
        cores: the cores it is pinned to; None where it is not.
        stack: the name of the ensemble it serves.
    """

    def __init__(
        self,
        warden: subprocess.Popen[bytes],
        log: Log,
        *,
        pid: int,
        host: str,
        ports: Ports,
        source: _Source,
        serves: Manifest,
    ) -> None:
        self._warden = warden
        self._log = log
        self._asked = False
        self._source = source
        self._serves = first_generation(serves)
        self._tries = 1
        self._reloading = threading.Lock()
        self.pid = pid
        self.http_url = f"http://{host}:{ports.http}"
        self.grpc_url = f"grpc://{host}:{ports.grpc}"
        self.metrics_url = f"http://{host}:{ports.metrics}/metrics"
        self.cores: tuple[int, ...] | None = None
        self.stack = serves.stack

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def alive(self) -> bool:
        """Whether Triton is still running."""
        return self._warden.poll() is None

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until Triton has ended.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Its exit code, 128 + n where signal n ended it; None while it is still running after `timeout`.
        """
        try:
            code = self._warden.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        self._log.finish(5.0)
        return code

    def reload(self) -> bool:
        """Serve what the repository holds now, where that is another export of the stack than the one that is served.

        Requests go on being answered, each by the old export or by the new one, and when this returns by the new one.
        For a while both are in memory.

        Returns:
            Whether there was another export.

        Raises:
            RepositoryError: the repository is incomplete, or holds another stack, or one with other columns; here and
                below the server goes on with what it has.
            ArtifactError: a saved workflow has to be read, and is not trusted, gone or changed.
            ServerError: a model of the new export does not load.
        """
        with self._reloading:
            its, before = self._source, self._serves.manifest
            manifest = read_manifest(its.root)
            if manifest.files == before.files:
                return False
            check_same_stack(before, manifest)
            check_files(its.root, manifest)
            check_tables(its.root)
            _check_workflows(its.root, manifest, its.trust)
            self._tries += 1
            address = self.grpc_url.removeprefix("grpc://")
            self._serves = switch(
                self._serves,
                self._tries,
                manifest,
                its.root,
                its.staging,
                address=address,
                key=its.key,
                patience=its.timeout,
            )
            return True

    def stop(self) -> None:
        """End Triton: requests in flight are answered, for up to 30 seconds; then it is killed. Safe to call again."""
        self._end()
        if self.wait(_PATIENCE + 10.0) is None:  # the warden itself is stuck
            for group in (self.pid, self._warden.pid):
                _kill_group(group)
            self.wait(10.0)

    def kill(self) -> None:
        """Have Triton ended at once, requests in flight or not; does not wait for it, `stop` does."""
        if not self._asked:
            self._end()
            time.sleep(0.1)
        if self.alive():
            self._warden.send_signal(signal.SIGTERM)  # told again, the warden does not wait any longer

    def why(self) -> str:
        """Why Triton ended, as far as its exit code and its log tell."""
        code = self.wait(5.0)
        if code is not None and code > 128:
            name = signal.Signals(code - 128).name
            hint = ", perhaps because memory ran out" if name == "SIGKILL" else ""
            return f"it was ended by {name}{hint}"
        return reason(self.log_tail())

    def log_tail(self) -> list[str]:
        """The last lines of Triton's log, oldest first."""
        return self._log.tail()

    def _end(self) -> None:
        if not self._asked:
            self._asked = True
            self._warden.send_signal(signal.SIGTERM)


def serve(
    repository: str | os.PathLike[str],
    *,
    cores: Sequence[int] | None = None,
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    host: str = "127.0.0.1",
    timeout: float = 120.0,
    trust: bool = False,
    backends: str | os.PathLike[str] | None = None,
    admin_key: str | None = None,
    percentiles: bool = False,
    traces: str | None = None,
    log: LogTarget = None,
) -> Server:
    """Start Triton on a repository that `tristage export` wrote, and wait until all its models are ready.

    Args:
        repository: the folder that holds manifest.json.
        cores: cores the server and everything it starts is pinned to; thread pools get as many threads. None: all.
        http_port: port for HTTP; 0 picks a free one, here and below.
        grpc_port: port for gRPC.
        metrics_port: port for Prometheus metrics.
        host: IPv4 address or name of this machine to listen on; "0.0.0.0" is all of them.
        timeout: seconds until the server must be ready.
        trust: whether the saved workflows of steps that could not be compiled may be read, which runs what their
            pickles say.
        backends: a folder of further backends, which repositories of the targets ngc-cpu and ngc-gpu need: a folder
            for each, such as `fil` and `onnxruntime`.
        admin_key: opens Triton's APIs for shared memory, tracing and logging to requests that carry it, in the header
            `tristage-admin-key` (over gRPC `triton-grpc-protocol-tristage-admin-key`). None: they stay closed. Shared
            memory needs no key while only this machine is listened to.
        percentiles: whether Triton's metrics hold percentiles of each model's durations, which cost every request time.
        traces: an OpenTelemetry collector's address, such as "http://127.0.0.1:4318", which gets Triton's spans of the
            requests that carry a `traceparent`, as the gateway's do. None: no spans.
        log: takes Triton's log, a function line by line or an open text file; None drops it.

    Returns:
        The running server.

    Raises:
        RepositoryError: the repository is incomplete, or a file in it is not the one that was exported.
        ArtifactError: a saved workflow has to be read, and is not trusted, gone or changed.
        PortInUse: a port is taken.
        ServerError: no Triton is installed, a core does not exist, the key is no key, a model does not load, or the
            server is not ready in time.
        InputError: the collector's address cannot be read.
    """
    sent = None if traces is None else collector(traces)
    key = secrets.token_hex(32) if admin_key is None else _check_key(admin_key)  # one that nobody knows closes them
    root = Path(repository).absolute()
    manifest = read_manifest(root)
    check_files(root, manifest)
    check_tables(root)
    if not (root / manifest.stack).is_dir():
        raise RepositoryError(f"{root} has no model {manifest.stack}, which its manifest names; export the stack again")
    _check_workflows(root, manifest, trust)
    pinned = check_cores(cores)
    address = address_of(host)
    wanted = {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
    triton = find_triton(None if backends is None else Path(backends))
    env = {**environment(triton, pinned), TRUST: "1" if trust else "0"}
    deadline = time.monotonic() + timeout
    attempts = 3 if 0 in wanted.values() else 1  # between choosing a free port and using it, another may take it
    while True:
        attempts -= 1
        ports = choose_ports(address, wanted)
        name = f"tristage-{secrets.token_hex(6)}"
        source = _Source(root, Path(tempfile.mkdtemp(prefix="tristage-models-")), secrets.token_hex(32), trust, timeout)
        argv = arguments(
            triton,
            root,
            source.staging,
            host=address,
            ports=ports,
            server_id=name,
            admin_key=key,
            repository_key=source.key,
            percentiles=percentiles,
            traces=sent,
            cache=keeps_answers(manifest),
            rate_limits=has_rate_limits(manifest),
        )
        server = _launch(
            triton, argv, env, name, pinned, log=log, host=address, ports=ports, source=source, serves=manifest
        )
        try:
            _await_ready(server, ports, name, deadline, timeout)
            return server
        except PortInUse:
            server.kill()
            server.stop()
            if not attempts:
                raise
        except BaseException:  # an interrupt too must not leave a server behind
            server.kill()
            server.stop()
            raise


def _launch(
    triton: Triton,
    argv: list[str],
    env: dict[str, str],
    name: str,
    cores: tuple[int, ...] | None,
    *,
    log: LogTarget,
    host: str,
    ports: Ports,
    source: _Source,
    serves: Manifest,
) -> Server:
    report_here, report_there = os.pipe()
    task = {"parent": os.getpid(), "report": report_there, "argv": argv, "cores": cores, "patience": _PATIENCE}
    task |= {"preload": str(triton.libpython), "shm": name, "http_port": ports.http, "staging": str(source.staging)}
    script = Path(__file__).with_name("warden.py")  # which removes the staging folder at the end
    try:
        warden = subprocess.Popen(  # noqa: S603  nothing in it comes from a network
            [sys.executable, "-I", "-S", str(script), json.dumps(task)],
            env=env,
            cwd=triton.start,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C in a terminal reaches only this program
            restore_signals=False,  # SIGPIPE stays ignored: requests are answered though nobody reads the log
            pass_fds=[report_there],
        )
    except OSError as error:
        os.close(report_here)
        source.staging.rmdir()
        raise ServerError(f"cannot start {sys.executable}: {error}") from error
    finally:
        os.close(report_there)
    reader = Log(cast("IO[bytes]", warden.stdout), log)
    with os.fdopen(report_here) as report:
        pid = report.readline()
    if not pid:
        warden.kill()
        warden.wait()
        reader.finish(5.0)
        raise ServerError(f"tritonserver was not started: {reason(reader.tail())}")
    shown = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104  every address includes this one
    server = Server(warden, reader, pid=int(pid), host=shown, ports=ports, source=source, serves=serves)
    server.cores = cores
    return server


def _await_ready(server: Server, ports: Ports, name: str, deadline: float, timeout: float) -> None:
    """Return when every model is ready; raise as soon as that cannot happen any more."""
    host = server.http_url.removeprefix("http://").rpartition(":")[0]
    while server.alive():
        if _is_ready(host, ports.http, name, server.stack) and _listens(server.pid, ports.metrics):
            return
        if taken := taken_port(server.log_tail()):
            raise PortInUse(
                f"port {taken} was taken by another program while Triton was starting; choose another port", port=taken
            )
        if time.monotonic() > deadline:
            loading = ", ".join(still_loading(server.log_tail())) or "no model any more"
            raise ServerError(f"Triton was not ready after {timeout:g} s, loading {loading}; allow more with --timeout")
        time.sleep(_POLL)
    why = server.why()
    if "unable to find backend library" in why:
        why += (
            "\nthis Triton lacks backends that the repository was exported for: serve it in NVIDIA's container "
            "tritonserver:24.10-py3, or name the folder of its backends with --backends"
        )
    raise ServerError(f"Triton ended while it was starting: {why}")


def _is_ready(host: str, port: int, name: str, stack: str) -> bool:
    """Whether this server, and not another one at the same port, is ready with all its models."""
    connection = http.client.HTTPConnection(host, port, timeout=5.0)
    try:
        for path in ("/v2/health/ready", f"/v2/models/{stack}/ready", "/v2"):
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                return False
        return bool(json.loads(body)["name"] == name)
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    finally:
        connection.close()


def _listens(pid: int, port: int) -> bool:
    """Whether a process itself listens on a TCP port. Triton goes on without metrics where that port is taken."""
    open_files = set()
    with contextlib.suppress(OSError):  # the process may end at any time, and close a file at any time
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                open_files.add(os.fspath(entry.readlink()))
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()  # local address at 1, state at 3 (0A listens), inode at 9
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return f"socket:[{fields[9]}]" in open_files
    return False


def _check_workflows(root: Path, manifest: Manifest, trust: bool) -> None:
    """Refuse, before anything is started, saved workflows that are not trusted or not what they were."""
    for name in manifest.files:
        if not name.endswith(f"/1/{WORKFLOW_FILE}"):
            continue
        file = WorkflowFile.read(root / name)
        if not trust:
            raise ArtifactError(
                f"{manifest.stack} runs NVTabular on the saved workflow {file.folder}, and reading that runs whatever "
                "its pickle says; if you trust who wrote it, say so with --trust, or trust=True in Python",
                path=Path(file.folder),
            )
        check_folder(file)


def _check_key(key: str) -> str:
    """Triton takes the key apart at its marks, so it has none."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,}", key):
        raise ServerError(
            "the admin key must be 16 or more letters, digits, - or _; make one with: openssl rand -hex 32"
        )
    return key


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)

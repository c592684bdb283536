"""Serves what Merlin Systems exported, on the same tritonserver that tristage serves with.

The server's Python models run in the environment of Merlin Systems (`make merlin`), everything else is the same:
binary, Python backend, pinning, threads.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tritonclient.grpc as grpc

from tristage.serving.triton import Ports, arguments, environment, find_triton

MERLIN = Path(__file__).parents[1] / ".venv-merlin"
READY = 300.0  # seconds until it must be ready: on one core its models import TensorFlow and PyTorch, one by one


@contextmanager
def serve_merlin(repository: Path, core: int | None = None, path: Path | None = None) -> Iterator[str]:
    """Serve a repository that `Ensemble.export` wrote; its models must be of the Python backend.

    Args:
        repository: the folder.
        core: the core that the server and its children are pinned to.
        path: a folder that the models import modules from, such as those that a workflow's pickle names: they find
            none but in their environment and where the server was started.

    Yields:
        The server's gRPC address, such as "127.0.0.1:8001".

    Raises:
        RuntimeError: the server ended, or was not ready in time; its log is the message.
    """
    triton = find_triton()
    env = environment(triton, None if core is None else [core])
    env |= {"PATH": f"{MERLIN / 'bin'}:{env['PATH']}", "VIRTUAL_ENV": str(MERLIN), "CUDA_VISIBLE_DEVICES": ""}
    ports = _free_ports()
    name = f"merlin-{secrets.token_hex(6)}"
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as empty, ExitStack() as stack:
        argv = arguments(
            triton,
            repository,
            Path(empty),
            host="127.0.0.1",
            ports=ports,
            server_id=name,
            admin_key=secrets.token_urlsafe(),
            repository_key=secrets.token_urlsafe(),
            percentiles=False,
            traces=None,
        )
        if core is not None:
            argv = ["taskset", "-c", str(core), *argv]
        process = subprocess.Popen(argv, env=env, cwd=path or empty, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(_end, process)
        address = f"127.0.0.1:{ports.grpc}"
        deadline = time.monotonic() + READY
        while not _ready(address):
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise RuntimeError(log.read().decode(errors="replace")[-5000:])
            time.sleep(0.2)
        yield address


def _ready(address: str) -> bool:
    with grpc.InferenceServerClient(address) as client:
        try:
            return bool(client.is_server_ready())
        except grpc.InferenceServerException:
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports() -> Ports:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return Ports(*(each.getsockname()[1] for each in sockets))


def python() -> Path:
    """The interpreter of Merlin Systems' environment.

    Raises:
        FileNotFoundError: it has not been made.
    """
    path = MERLIN / "bin" / "python"
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; make it with: make merlin")
    return path


__all__ = ["MERLIN", "python", "serve_merlin"]

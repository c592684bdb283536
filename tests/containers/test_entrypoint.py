"""The GPU image's entrypoint, with the wheel's tritonserver in place of the image's."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from collector import Collector, collecting

from tristage.client import connect_async, encode
from tristage.loadtest import rows_from
from tristage.manifest import read_manifest
from tristage.serving.triton import environment, find_triton

SCRIPT = Path(__file__).parents[2] / "docker" / "entrypoints" / "triton.sh"


def free_ports() -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def get(url: str, headers: dict[str, str] | None = None) -> int:
    """The status of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


async def ask(url: str, repository: Path, traceparent: str) -> None:
    """One row, as part of a trace."""
    signature = read_manifest(repository).signature
    row = encode(rows_from(repository).slice(0, 1), signature)
    transport = connect_async(url)
    names = [column.name for column in signature.outputs]
    await transport.infer(signature.stack, row, names, 20.0, headers={"traceparent": traceparent})
    await transport.close()


@pytest.mark.slow
def test_it_serves_and_keeps_administration_closed(
    tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    with collecting() as collector:
        _serves(tiny_repository, tmp_path, cli, collector)


def _serves(tiny_repository: Path, tmp_path: Path, cli: Callable[..., Any], collector: Collector) -> None:
    triton = find_triton()
    (tmp_path / "tritonserver").write_text(f'#!/bin/sh\nexec "{triton.binary}" "$@"\n')
    (tmp_path / "tritonserver").chmod(0o755)
    http, grpc, metrics = free_ports()
    key = "0123456789abcdef"
    env = environment(triton, None)
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", "TRISTAGE_REPOSITORY": str(tiny_repository), "TRISTAGE_ADMIN_KEY": key}
    env |= {"LD_PRELOAD": str(triton.libpython)}  # as `tristage serve` has it for its own backend
    env |= {"TRISTAGE_HTTP_PORT": str(http), "TRISTAGE_GRPC_PORT": str(grpc), "TRISTAGE_METRICS_PORT": str(metrics)}
    env |= {"TRISTAGE_PERCENTILES": "1", "TRISTAGE_TRACES_URL": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    log = tmp_path / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [str(SCRIPT), f"--backend-directory={triton.backends}"], env=env, cwd=triton.start, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 60
        while get(f"http://127.0.0.1:{http}/v2/health/ready") != 200:
            assert time.monotonic() < deadline, log.read_text()
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        for url in (f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}"):
            assert cli("verify", tiny_repository, "--url", url).code == 0
            trace = secrets.token_hex(16)
            asyncio.run(ask(url, tiny_repository, f"00-{trace}-00f067aa0ba902b7-01"))
            spans = collector.of(trace, lambda spans: "InferRequest" in {span.name for span in spans})
            assert {"tiny", "compute"} <= {span.name for span in spans}
        assert collector.paths == {"/v1/traces"}
        logging = f"http://127.0.0.1:{http}/v2/logging"
        assert get(logging) == 403
        assert get(logging, {"tristage-admin-key": key}) == 200
        measured = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10).read().decode()
        assert 'nv_inference_request_summary_us{model="tiny"' in measured
        server.send_signal(signal.SIGTERM)
        assert server.wait(40) == 0
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("key", ["short", "0123456789abcdef=", "0123456789 abcdef"])
def test_a_key_that_triton_would_misread_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "manifest.json").touch()
    code, err = start(tmp_path, TRISTAGE_ADMIN_KEY=key)
    assert code == 2
    assert "16 or more letters" in err


def test_an_empty_repository_says_what_to_do(tmp_path: Path) -> None:
    code, err = start(tmp_path)
    assert code == 2
    assert "tristage export stack.yaml --target ngc-gpu" in err


def start(repository: Path, **env: str) -> tuple[int, str]:
    """How the script ends that has no server to start, and what it says."""
    done = subprocess.run(
        [str(SCRIPT)],
        env={**os.environ, "TRISTAGE_REPOSITORY": str(repository), **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr

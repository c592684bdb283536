"""Starts a way in a process of its own on one core, and asks it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tristage.serving.triton import THREAD_VARIABLES

__all__ = ["ROOT", "WayFailed", "Worker", "environment"]

ROOT = Path(__file__).parents[2]
PATIENCE = 900.0  # seconds that an answer may take: NVTabular joins whole tables to a row


class WayFailed(Exception):
    """A way cannot be measured; the message says why. The others go on."""


def environment() -> Mapping[str, str]:
    """One thread for every pool, before any library is imported."""
    threads = dict.fromkeys((*THREAD_VARIABLES, "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    # `benchmarks` is found from the repository's root, which must then be looked in
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return {**inherited, **threads, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


class Worker:
    """A `benchmarks.baselines.worker`, pinned to a core."""

    def __init__(self, core: int, kind: str, *paths: Path) -> None:
        """Start it and wait until it is ready.

        Raises:
            WayFailed: it ended, or said why it cannot start.
        """
        here, there = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        argv = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.baselines.worker", kind]
        with there:
            self._process = subprocess.Popen(
                [*argv, *(str(path.resolve()) for path in paths), str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=environment(),
                cwd=ROOT,
            )
        here.settimeout(PATIENCE)
        self._socket, self._lines = here, here.makefile("rw")
        self.pid = self._process.pid
        try:
            self._answer()
        except WayFailed:
            self.close()
            raise

    def ask(self, do: str, **given: Any) -> Any:
        """Have a command done.

        Raises:
            WayFailed: it failed, or the process ended or said nothing.
        """
        try:
            self._lines.write(json.dumps({"do": do, **given}) + "\n")
            self._lines.flush()
        except OSError:
            raise WayFailed(self._ended()) from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            line = self._lines.readline()
        except OSError:
            raise WayFailed(f"no answer within {PATIENCE:g} s") from None
        if not line:
            raise WayFailed(self._ended())
        said = json.loads(line)
        if "error" in said:
            raise WayFailed(said["error"])
        return said["answer"]

    def _ended(self) -> str:
        code = self._process.wait(10)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with {code}: {' | '.join(lines[-3:])}"

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

"""Where a served stack spends its CPU time, by Linux's perf: tritonserver and the runner below it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import psutil

from benchmarks.baselines.process import WayFailed
from benchmarks.baselines.served import Served

__all__ = ["profile"]

FREQUENCY = 997  # samples a second
BEFORE = 2.0  # seconds from the load's start to the first sample: rows are encoded first
WIDTH, LIBRARIES, FUNCTIONS = 150, 8, 16


def profile(served: Served, batch: int, seconds: float) -> list[str]:
    """Which libraries and functions take the CPU while a served stack is asked, or why that cannot be said.

    Raises:
        WayFailed: the server did not answer.
    """
    perf = shutil.which("perf")
    if perf is None:
        return ["there is no perf on this machine"]
    root = psutil.Process(served.server.pid)
    pids = ",".join(str(process.pid) for process in (root, *root.children(recursive=True)))
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "perf.data")
        words = [perf, "record", "-q", "-F", str(FREQUENCY), "-p", pids, "-o", data, "--", "sleep", str(seconds)]
        failed: list[WayFailed] = []

        def load() -> None:
            try:
                served.load(batch, BEFORE + seconds + 1, 0)
            except WayFailed as error:
                failed.append(error)

        loading = threading.Thread(target=load)
        loading.start()
        loading.join(BEFORE)
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 60, check=False)
        loading.join()
        if failed:
            raise failed[0]
        if done.returncode:
            return [f"perf cannot record here: {' '.join(done.stderr.split())[:300]}"]
        return [*_shares(perf, data, "comm,dso", LIBRARIES), "", *_shares(perf, data, "comm,dso,sym", FUNCTIONS)]


def _shares(perf: str, data: str, by: str, count: int) -> list[str]:
    words = [perf, "report", "-i", data, "--stdio", "--no-children", "-q", "-F", f"overhead,{by}", "-w", "7,20,30,80"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False).stdout
    return [line.rstrip()[:WIDTH] for line in said.splitlines() if line.strip()][:count] or ["perf saw nothing"]

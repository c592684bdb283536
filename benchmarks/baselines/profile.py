"""Where a served stack spends its CPU time, by Linux's perf: functions of tritonserver and of the runner below it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil

from benchmarks.baselines.served import Served

__all__ = ["profile"]

FREQUENCY = 997  # samples a second
LINES = 25


def profile(served: Served, batch: int, seconds: float) -> list[str]:
    """Ask a served stack for some seconds, and say which functions took the CPU, or why that cannot be said."""
    perf = shutil.which("perf")
    if perf is None:
        return ["there is no perf on this machine"]
    root = psutil.Process(served.server.pid)
    pids = ",".join(str(process.pid) for process in (root, *root.children(recursive=True)))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        # a little longer than the load, which warms up first
        record = [perf, "record", "-q", "-F", str(FREQUENCY), "-p", pids, "-o", str(data), "--", "sleep", str(seconds)]
        recording = subprocess.Popen(record, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        served.load(batch, seconds, 0)
        try:
            said = recording.communicate(timeout=30)[1]
        except subprocess.TimeoutExpired:
            recording.kill()
            return ["perf did not end"]
        if recording.returncode or not data.is_file():
            return [f"perf cannot record here: {' '.join(said.split())[:300]}"]
        words = [perf, "report", "-i", str(data), "--stdio", "--no-children", "-s", "comm,dso,symbol", "-g", "none"]
        shown = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False).stdout
    lines = [line.rstrip() for line in shown.splitlines() if line.strip() and not line.startswith("#")]
    return lines[:LINES] or ["perf saw nothing"]

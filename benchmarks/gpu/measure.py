"""Proves and measures a packed stack on a GPU."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.ceilings import ceilings, clock_of
from benchmarks.gpu.parts import EXPECTED, ROWS
from tristage.serving.device.program import DeviceProgram
from tristage.serving.device.stretch import Stretch

__all__ = ["BATCHES", "TOLERANCE", "measure"]

BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 131_072)
TOLERANCE = 1e-3  # of probabilities, from the training libraries: float32 sums in another order
_LONGEST = 4.0  # seconds that one batch size is measured, about
_BY_PART = (1, 1024, 65_536)

Rows = dict[str, NDArray[Any]]


def measure(
    folder: Path, about: dict[str, Any], threads: int, device: str = "cuda", most: int = BATCHES[-1]
) -> dict[str, Any]:
    """Everything that `publish` prints, as JSON takes it.

    Args:
        folder: what `join` unpacked.
        about: what `pack` said of it.
        threads: threads of the host that texts may take.
        device: "cuda"; "cpu" tries the script out where there is no GPU.
        most: rows of the largest batch.
    """
    began = time.perf_counter()
    program = DeviceProgram.open(folder / "model", device, threads=threads)
    if device == "cuda":
        torch.cuda.synchronize()
    opened = time.perf_counter() - began
    rows, expected = _rows(folder)
    parity = {
        str(batch): _furthest(program, rows, expected, batch) for batch in (1, 7, 64, len(next(iter(rows.values()))))
    }
    say(f"opened in {opened:.1f} s; the furthest answer is {max(max(its.values()) for its in parity.values()):.1e} off")
    cells = []
    for batch in (batch for batch in BATCHES if batch <= most):
        try:
            cells.append(_cell(program, rows, batch))
        except torch.cuda.OutOfMemoryError:
            say(f"batch {batch:,}: does not fit into the GPU's memory")
            torch.cuda.empty_cache()
            break
        say(f"batch {batch:,}: {cells[-1]['ms_per_example']:.5f} ms/example, p50 {cells[-1]['p50_ms']:.3f} ms")
    return {
        **about,
        "gpu": _card(device),
        "host": {"platform": platform.platform(), "threads": threads, "python": platform.python_version()},
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "opened_s": opened,
        "on_host": {stage.name: stage.why for stage in program.stages if not isinstance(stage, Stretch)},
        "tables_in_part": [{"asked": table.asked, "found": table.found} for table in program.budget.hot],
        "golden_rows": len(next(iter(rows.values()))),
        "parity": parity,
        "tolerance": TOLERANCE,
        "ceilings": ceilings(device),
        "cells": cells,
        "parts": {
            str(batch): _parts(program, _drawn(rows, batch), device)
            for batch in _BY_PART
            if batch <= cells[-1]["batch"]
        },
    }


def say(words: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def _rows(folder: Path) -> tuple[Rows, Rows]:
    with np.load(folder / ROWS, allow_pickle=False) as held:
        rows = {name: _texts(held[name]) for name in held.files}
    with np.load(folder / EXPECTED, allow_pickle=False) as held:
        return rows, {name: held[name] for name in held.files}


def _texts(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "S":
        return array
    out = np.empty(array.size, object)
    out[:] = [value.decode() for value in array.ravel().tolist()]
    return out.reshape(array.shape)


def _given(program: DeviceProgram, rows: Rows, at: Any) -> Rows:
    return {tensor.name: rows[tensor.name][at] for tensor in program.inputs}


def _drawn(rows: Rows, batch: int) -> Rows:
    """So many of the rows, drawn by a power law: some come again and again, most hardly ever."""
    count = len(next(iter(rows.values())))
    shares = np.arange(1, count + 1) ** -1.0
    at = np.random.default_rng(batch).choice(count, batch, p=shares / shares.sum())
    return {name: array[at] for name, array in rows.items()}


def _furthest(program: DeviceProgram, rows: Rows, expected: Rows, batch: int) -> dict[str, float]:
    """Of every output, the largest difference from what the training libraries answered."""
    count = len(next(iter(rows.values())))
    made = [
        program.run(_given(program, rows, slice(start, start + batch)))
        for start in range(0, count if batch > 1 else min(count, 200), batch)
    ]
    furthest = {}
    for name, wanted in expected.items():
        ours = np.concatenate([part[name][:, 0] for part in made])
        furthest[name] = float(np.abs(ours.astype(np.float64) - wanted[: len(ours)]).max())
    return furthest


def _cell(program: DeviceProgram, rows: Rows, batch: int) -> dict[str, Any]:
    """One batch size, from arrays on the host to answers on the host."""
    given = _given(program, _drawn(rows, batch), slice(None))
    for _ in range(4):  # kernels are compiled, and calls of few rows captured
        program.run(given)
    took: list[float] = []
    while (sum(took) < _LONGEST and len(took) < 2000) or len(took) < 3:
        began = time.perf_counter()
        program.run(given)
        took.append(time.perf_counter() - began)
    times = np.sort(took) * 1e3
    return {
        "batch": batch,
        "calls": len(took),
        "ms_per_example": float(np.sum(took) * 1e3 / (batch * len(took))),
        "nanoseconds": [int(value * 1e9) for value in took],
        "p50_ms": float(np.quantile(times, 0.5, method="inverted_cdf")),
        "p99_ms": float(np.quantile(times, 0.99, method="inverted_cdf")),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0,
    }


def _parts(program: DeviceProgram, rows: Rows, device: str) -> dict[str, float]:
    """Seconds of each part by itself; the host's by the clock, the GPU's by its own, in the order that they run."""
    return program.times(_given(program, rows, slice(None)), clock_of(device))


def _card(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {"name": f"{platform.processor() or platform.machine()}, which is no GPU", "memory_gb": 0.0}
    its = torch.cuda.get_device_properties(0)
    return {"name": its.name, "memory_gb": its.total_memory / 1e9, "multiprocessors": its.multi_processor_count}

"""What a device can do at most, measured: bytes moved and products summed in a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

__all__ = ["ceilings", "clock_of"]

Clock = Callable[[Callable[[], Any]], float]

_TIMES, _BEFORE = 10, 3
_SIZES = {"cuda": (1 << 28, 1 << 25, 8192), "cpu": (1 << 22, 1 << 20, 512)}  # numbers copied, read, side of a matrix


def clock_of(device: str) -> Clock:
    """What answers the seconds of a call: the median of several, by the device's own clock where it is a GPU."""
    return partial(_median, _gpu if device == "cuda" else _host)


def _median(once: Clock, run: Callable[[], Any]) -> float:
    for _ in range(_BEFORE):
        run()
    return sorted(once(run) for _ in range(_TIMES))[_TIMES // 2]


def _host(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _gpu(run: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end) / 1e3)


def ceilings(device: str) -> dict[str, float]:
    """GB/s of a copy, read and written, and of random reads of 4 bytes; TFLOP/s of a float32 product of matrices."""
    clock = clock_of(device)
    numbers, reads, side = _SIZES[device]
    found = {"copy_gb_s": _copied(clock, device, numbers), "gather_gb_s": _gathered(clock, device, numbers, reads)}
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    return {**found, "float32_tflop_s": 2 * side**3 / clock(lambda: a @ b) / 1e12}


def _copied(clock: Clock, device: str, numbers: int) -> float:
    a = torch.randn(numbers, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / clock(lambda: b.copy_(a)) / 1e9


def _gathered(clock: Clock, device: str, numbers: int, reads: int) -> float:
    table, at = torch.randn(numbers, device=device), torch.randint(0, numbers, (reads,), device=device)
    return 4 * reads / clock(lambda: table.index_select(0, at)) / 1e9

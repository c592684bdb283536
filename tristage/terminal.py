"""What the command line writes with: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["console", "hush_tensorflow", "out", "progress", "stages"]

console = Console(stderr=True, highlight=False)
out = Console(highlight=False)


def hush_tensorflow() -> None:
    """Keep TensorFlow, which is imported later, from announcing its options on stderr."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def progress() -> Progress:
    """A progress bar on stderr: what is being done, how much of it, for how long."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


@contextmanager
def stages(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar of `total` stages; call what it yields with a few words at the start of each."""
    with progress() as bars:
        task = bars.add_task(what, total=total)
        begun = 0

        def begin(stage: str) -> None:
            nonlocal begun
            bars.update(task, description=f"{what}: {stage}", completed=begun)
            begun += 1

        yield begin
        bars.update(task, description=what, completed=total)

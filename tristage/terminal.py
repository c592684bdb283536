"""What the command line writes with: results on stdout, progress and notes on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["console", "out", "progress"]

console = Console(stderr=True, highlight=False)
out = Console(highlight=False)


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

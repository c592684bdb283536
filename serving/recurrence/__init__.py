"""GRU and LSTM layers inside the server: the engine of our own."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

# In a checkout, what was compiled lies with the package that is installed.
_here = Path(__file__).parent
if not any(_here.glob("_layer.*.so")):
    with contextlib.suppress(PackageNotFoundError):
        __path__.append(str(distribution("tristage").locate_file("tristage/serving/recurrence")))

from tristage.serving.recurrence.engine import RecurrenceEngine, RecurrenceError, available  # noqa: E402

__all__ = ["RecurrenceEngine", "RecurrenceError", "available"]

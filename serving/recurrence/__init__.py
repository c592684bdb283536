"""GRU and LSTM layers inside the server: the engine of our own."""

from __future__ import annotations

from tristage.serving.compiled import find_extension

find_extension(__path__, "_layer")

from tristage.serving.recurrence.engine import RecurrenceEngine, RecurrenceError, available  # noqa: E402

__all__ = ["RecurrenceEngine", "RecurrenceError", "available"]

"""Forests inside the server: the engine of our own, and libraries' engines behind the same protocol."""

from __future__ import annotations

from tristage.serving.compiled import find_extension

find_extension(__path__, "_engine")

from tristage.serving.forest.engine import ForestEngine, ForestError, available  # noqa: E402
from tristage.serving.forest.engines import ENGINES, OpenForest, open_forest  # noqa: E402

__all__ = ["ENGINES", "ForestEngine", "ForestError", "OpenForest", "available", "open_forest"]

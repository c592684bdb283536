"""Forests inside the server: the engine of our own, and libraries' engines behind the same protocol."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

# In a checkout, what was compiled lies with the package that is installed.
_here = Path(__file__).parent
if not any(_here.glob("_engine.*.so")):
    with contextlib.suppress(PackageNotFoundError):
        __path__.append(str(distribution("tristage").locate_file("tristage/serving/forest")))

from tristage.serving.forest.engine import ForestEngine, ForestError, available  # noqa: E402
from tristage.serving.forest.engines import ENGINES, OpenForest, open_forest  # noqa: E402

__all__ = ["ENGINES", "ForestEngine", "ForestError", "OpenForest", "available", "open_forest"]

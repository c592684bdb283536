"""Lowered workflows inside the server, without a graph's nodes: the engine of our own."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

# In a checkout, what was compiled lies with the package that is installed.
_here = Path(__file__).parent
if not any(_here.glob("_columns.*.so")):
    with contextlib.suppress(PackageNotFoundError):
        __path__.append(str(distribution("tristage").locate_file("tristage/serving/columns")))

from tristage.serving.columns.engine import ColumnsEngine, ColumnsError, available, operations  # noqa: E402

__all__ = ["ColumnsEngine", "ColumnsError", "available", "operations"]

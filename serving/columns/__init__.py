"""Lowered workflows inside the server, without a graph's nodes: the engine of our own."""

from __future__ import annotations

from tristage.serving.compiled import find_extension

find_extension(__path__, "_columns")

from tristage.serving.columns.engine import ColumnsEngine, ColumnsError, available, operations  # noqa: E402

__all__ = ["ColumnsEngine", "ColumnsError", "available", "operations"]

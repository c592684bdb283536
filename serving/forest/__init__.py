"""Forests inside the server: the engine of our own."""

from __future__ import annotations

from tristage.serving.forest.engine import ForestEngine, ForestError, available

__all__ = ["ForestEngine", "ForestError", "available"]

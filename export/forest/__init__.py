"""Forests: every tree library in, Treelite as the standard form, ONNX nodes out."""

from __future__ import annotations

from tristage.export.forest.model import Forest, ForestConverter, ForestSet
from tristage.export.forest.read import FORESTS, read_forests

__all__ = ["FORESTS", "Forest", "ForestConverter", "ForestSet", "read_forests"]

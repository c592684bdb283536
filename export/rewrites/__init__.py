"""Exact rewrites of nets: less work for the same answers."""

from __future__ import annotations

from tristage.export.rewrites.finding import Finding, Rewrite
from tristage.export.rewrites.registry import REWRITES, check_names, rewrite

__all__ = ["REWRITES", "Finding", "Rewrite", "check_names", "rewrite"]

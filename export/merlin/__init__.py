"""Merlin Systems' graphs, in memory or as Ensemble.export wrote them, become stacks."""

from tristage.export.merlin.graph import MerlinNote, read_merlin

__all__ = ["MerlinNote", "read_merlin"]

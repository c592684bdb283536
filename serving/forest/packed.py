"""The sections of a packed forest, as NumPy reads and writes them; packed.h says what they hold, and why."""

from __future__ import annotations

import numpy as np

__all__ = [
    "FOREST",
    "GROUP",
    "HEADER",
    "HEAP",
    "LANES",
    "LINE",
    "LINKED",
    "LOWER",
    "NODE",
    "ROOT",
    "SEARCH",
    "SLOT",
    "UNIT",
]

HEADER, LINE = 128, 64  # bytes of the header; what every section begins at a multiple of
LANES, LOWER, LINKED = 16, 4, 5

GROUP = np.dtype([(name, "<u4") for name in ("slot", "slots", "forest", "forests")])
SEARCH = np.dtype([("feature", "<u4"), ("count", "<u4"), ("key", "<u4"), ("low", "<u2"), ("high", "<u2")])
SLOT = np.dtype(
    [(name, "<u4") for name in ("upper", "single", "trees", "first_upper", "first", "unused")]
    + [(name, "<f8") for name in ("start", "scale", "offset")]
)
FOREST = np.dtype(
    [(name, "<u4") for name in ("slot", "width", "output", "postprocessor")] + [("alpha", "<f8"), ("weight", "<f8")]
)
HEAP = np.dtype([("column", "<u2", (16,)), ("rank", "<u2", (16,))])
UNIT = np.dtype([("column", "<u2", (16,)), ("rank", "<u2", (16,)), ("leaf", "<f4", (16,))])
NODE = np.dtype([("column", "<u2"), ("rank", "<u2"), ("next", "<u4")])
ROOT = np.dtype([("node", "<u4"), ("levels", "<u4")])

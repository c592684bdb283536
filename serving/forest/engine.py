"""Opens a packed forest and answers rows, in C."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tristage.serving.packed_file import map_packed

try:
    from tristage.serving.forest._engine import Engine
except ImportError:  # installed where there was no C compiler
    Engine = None  # type: ignore[assignment, misc]

__all__ = ["ForestEngine", "ForestError", "available"]


class ForestError(ValueError):
    """Forests cannot be opened, or rows do not fit them."""


def available() -> bool:
    """Whether the engine was built when tristage was installed."""
    return Engine is not None


class ForestEngine:
    """A packed forest, memory-mapped: instances share its pages. May be used from several threads.

    The file must stay as it is while it is open; writers put a new file in its place.

    Attributes:
        features: columns of a row.
        outputs: columns of an answer.
        groups: how many groups of rows have forests of their own; 1 without groups.
    """

    def __init__(self, path: Path) -> None:
        """Open a file that `tristage.export.forest.to_engine` wrote.

        Raises:
            ForestError: the engine is not installed, or the file is missing, cut short or changed.
        """
        if Engine is None:
            raise ForestError(
                "tristage was installed without its forest engine; install it where there is a C compiler"
            )
        try:
            packed = map_packed(path, "packed forest")
        except ValueError as error:
            raise ForestError(str(error)) from error
        try:
            self._engine = Engine(packed)
        except ValueError as error:
            raise ForestError(f"{path} cannot be opened: {error}; export it again") from error
        self.features: int = self._engine.features
        self.outputs: int = self._engine.outputs
        self.groups: int = self._engine.groups

    def predict(
        self, rows: NDArray[np.float32], groups: NDArray[np.int64] | None = None, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Answer rows.

        Args:
            rows: [rows, features]; other than C-contiguous float32 is copied.
            groups: [rows], the number of each row's group; a row of none (-1) is answered with NaN. None: group 0.
            out: [rows, outputs], C-contiguous, to write the answers to; None makes one.

        Returns:
            The answers, [rows, outputs].

        Raises:
            ForestError: shapes or dtypes do not fit.
        """
        rows = np.ascontiguousarray(rows, np.float32)
        if out is None:
            out = np.empty((len(rows), self.outputs), np.float32)
        if groups is not None:
            groups = np.ascontiguousarray(groups, np.int64)
        try:
            self._engine.predict(rows, out, groups)
        except (ValueError, BufferError) as error:
            raise ForestError(str(error)) from error
        return out
